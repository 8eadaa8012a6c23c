"""From an ended run to its Result."""

from __future__ import annotations

from collections.abc import Callable
from errno import errorcode
from functools import partial
from typing import Any, Final

from pinfold.cgroup.accounts import usage
from pinfold.errors import SpawnError
from pinfold.result import Placement, Receipt, Result, Stream
from pinfold.runs.lifecycle import Event
from pinfold.runs.pipes import Relay
from pinfold.runs.strays import NAMED_AT_MOST, printable, stuck
from pinfold.runs.supervision import Supervision

_STATUS_LOST: Final = (
    "the exit status was taken by somebody else: this program ignores SIGCHLD or waits for any child, and the kernel "
    "is older than 6.15"
)


def report(run: Supervision, args: Any, decode: Callable[[bytes | None], Any]) -> Result:
    """The Result of an ended run; `decode` makes of captured bytes what the caller wants.

    Raises the SpawnError of a command that was never started, with the Result in it.
    """
    out, err = run.io.outputs
    events = run.ceilings.events
    outcome = "spawn_failed" if run.error else run.life.outcome(run.returncode, own_oom=events.oom_by == "own")
    result = Result(
        args=args,
        argv=[argument.decode("utf-8", "backslashreplace") for argument in run.command.argv],
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
        usage=partial(usage, run.accounts, run.ceilings.parts),
        events=events,
        limits=run.ceilings.limits,
        receipt=_receipt(run),
        placement=_placement(run),
        guarantee=run.policy.guarantee,
        limit_hit=_limit_hit(run),
    )
    if run.error is not None:
        result.error = _spawn_error(run.error)
        run.error.result = result
        raise run.error
    for output in run.io.outputs:
        if isinstance(output, Relay) and output.error is not None:
            result.error = _output_error(output.error)
    if outcome == "lost":
        result.error = {"type": "StatusLost", "step": "wait", "errno": "ECHILD", "message": _STATUS_LOST}
    return result


def _receipt(run: Supervision) -> Receipt:
    return Receipt(
        run.emptied,
        run.stray_count,
        list(run.stray_processes),
        run.kill_rounds,
        run.kill_to_empty_usec,
        run.bytes_after_kill,
        run.pipe_held,
        list(run.stuck_pids),
        run.removed,
        [],
        [stuck(pid) for pid in run.stuck_pids[:NAMED_AT_MOST]],
    )


def _placement(run: Supervision) -> Placement:
    if run.pid is None:
        return run.scope.placement
    return run.scope.placement._replace(entry="clone3" if run.born_inside else "cgroup.procs")


def _spawn_error(error: SpawnError) -> dict[str, Any]:
    return {"type": "SpawnError", "step": error.step, "errno": error.errno_name, "message": printable(str(error))}


def _output_error(error: OSError) -> dict[str, Any]:
    name = errorcode.get(error.errno or 0, str(error.errno))
    message = f"its output could not be passed on: {error.strerror}"
    return {"type": "OutputError", "step": "relay", "errno": name, "message": message}


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
