"""From a Plan and its Ending to a Result."""

from __future__ import annotations

from errno import errorcode

from pinfold.cgroup.usage import usage
from pinfold.errors import SpawnError
from pinfold.result import Events, Placement, Receipt, Result, Stream, Usage
from pinfold.runs.ending import Ending
from pinfold.runs.pipes import Relay
from pinfold.runs.plan import Plan
from pinfold.runs.states import CAUSES
from pinfold.runs.strays import NAMED_AT_MOST, printable, stuck
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Final


_STATUS_LOST: Final = (
    "the exit status was taken by somebody else: this program ignores SIGCHLD or waits for any child, and the kernel "
    "is older than 6.15"
)


def report(plan: Plan, ending: Ending) -> Result:
    """The Result of an ended run. Raises the SpawnError of a command that was never started, with the Result in it."""
    io = ending.io
    out, err = (io.output(1), io.output(2)) if io.outputs else (None, None)
    result = Result(
        args=plan.args,
        outcome=ending.outcome,
        returncode=ending.returncode,
        pid=ending.pid,
        run_id=ending.scope.run_id,
        started_at=ending.started_at,
        duration=ending.duration,
        stdout=None if out is None else plan.decode(out.data()),
        stderr=None if err is None else plan.decode(err.data()),
        guarantee=plan.policy.guarantee,
        late=Words(plan, ending),
    )
    if ending.stuck_pids:
        result.receipt  # noqa: B018  # what holds them is known now, not later
    if ending.error is not None:
        ending.error.result = result
        raise ending.error
    return result


class Words:
    """An Ending put into the words of a Result; each is asked for once, or never."""

    __slots__ = ("_ending", "_plan")

    def __init__(self, plan: Plan, ending: Ending) -> None:
        self._plan, self._ending = plan, ending

    def argv(self) -> list[str]:
        """What was executed."""
        return [argument.decode("utf-8", "backslashreplace") for argument in self._plan.command.argv]

    def stdout_stream(self) -> Stream:
        """The figures of its output."""
        return self._stream(1)

    def stderr_stream(self) -> Stream:
        """The figures of its other output."""
        return self._stream(2)

    def _stream(self, number: int) -> Stream:
        output = self._ending.io.output(number)
        return Stream() if output is None else output.stream()

    def usage(self) -> Usage:
        """What the tree used."""
        self._ending.settle()
        return usage(self._ending.accounts, self._ending.parts)

    def events(self) -> dict[str, Any]:
        """What its limits did."""
        return (self._ending.events or Events())._asdict()

    def limits(self) -> dict[str, dict[str, Any]]:
        """What was asked, applied, missing."""
        limits = self._ending.limits or {"asked": {}, "applied": {}, "missing": {}}
        return {name: dict(table) for name, table in limits.items()}

    def receipt(self) -> Receipt:
        """What the clean-up met, and did."""
        ending = self._ending
        ending.settle()
        took = ending.kill_to_empty
        return Receipt(
            emptied=ending.emptied,
            strays=ending.strays,
            stray_processes=list(ending.stray_processes),
            kill_rounds=ending.kill_rounds,
            kill_to_empty_usec=None if took is None else round(took * 1e6),
            bytes_after_kill=ending.bytes_after_kill,
            pipe_held=ending.pipe_held,
            stuck_pids=list(ending.stuck_pids),
            removed=ending.removed,
            escaped_processes=[],
            stuck_processes=[stuck(pid) for pid in ending.stuck_pids[:NAMED_AT_MOST]],
            unlisted_cgroups=ending.unlisted_cgroups,
            receiver_stalled=ending.receiver_stalled,
        )

    def placement(self) -> Placement:
        """Where it ran."""
        return self._ending.placement

    def error(self) -> dict[str, Any] | None:
        """What went wrong beside the command."""
        ending = self._ending
        if ending.error is not None:
            return _spawn_error(ending.error)
        if ending.outcome == "lost":
            return {"type": "StatusLost", "step": "wait", "errno": "ECHILD", "message": _STATUS_LOST}
        refused = [output.error for output in ending.io.outputs if isinstance(output, Relay) and output.error]
        return _output_error(refused[-1]) if refused else None

    def limit_hit(self) -> float | None:
        """The time limit that ended it, in seconds."""
        cause = self._ending.cause
        bound = None if cause is None else CAUSES[cause].bound
        return None if bound is None else float(getattr(self._plan.bounds, bound))


def _spawn_error(error: SpawnError) -> dict[str, Any]:
    return {"type": "SpawnError", "step": error.step, "errno": error.errno_name, "message": printable(str(error))}


def _output_error(error: OSError) -> dict[str, Any]:
    name = errorcode.get(error.errno or 0, str(error.errno))
    message = f"its output could not be passed on: {error.strerror}"
    return {"type": "OutputError", "step": "relay", "errno": name, "message": message}
