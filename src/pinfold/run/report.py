"""From an ended run to its Result."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from pinfold.errors import SpawnError
from pinfold.result import Result, Stream
from pinfold.run.lifecycle import Event
from pinfold.run.strays import printable
from pinfold.run.supervision import Supervision

_STATUS_LOST: Final = (
    "the exit status was taken by somebody else: this program ignores SIGCHLD or waits for any child, and the kernel "
    "is older than 6.15"
)


def report(run: Supervision, args: Any, decode: Callable[[bytes | None], Any]) -> Result:
    """The Result of an ended run; `decode` makes of captured bytes what the caller wants.

    Raises the SpawnError of a command that was never started, with the Result in it.
    """
    out, err = run.io.outputs
    outcome = "spawn_failed" if run.error else run.life.outcome(run.returncode)
    result = Result(
        args=args,
        argv=[printable(os.fsdecode(argument)) for argument in run.command.argv],
        outcome=outcome,
        returncode=run.returncode,
        pid=run.pid,
        run_id=run.scope.run_id,
        started_at=run.started_at,
        duration=run.duration,
        stdout=None if out is None else decode(out.data()),
        stderr=None if err is None else decode(err.data()),
        stdout_stream=Stream() if out is None else out.stream(),
        stderr_stream=Stream() if err is None else err.stream(),
        usage=run.usage,
        receipt=run.receipt,
        placement=run.scope.placement,
        guarantee=run.policy.guarantee,
        limit_hit=_limit_hit(run),
    )
    if run.error is not None:
        result.error = _spawn_error(run.error)
        run.error.result = result
        raise run.error
    if outcome == "lost":
        result.error = {"type": "StatusLost", "step": "wait", "errno": "ECHILD", "message": _STATUS_LOST}
    return result


def _spawn_error(error: SpawnError) -> dict[str, Any]:
    return {"type": "SpawnError", "step": error.step, "errno": error.errno_name, "message": printable(str(error))}


def _limit_hit(run: Supervision) -> float | None:
    bounds = run.bounds
    match run.life.cause:
        case Event.TIMED_OUT:
            return bounds.timeout
        case Event.IDLE_TIMED_OUT:
            return bounds.idle
        case Event.CPU_TIMED_OUT:
            return bounds.cpu
    return None
