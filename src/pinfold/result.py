"""Result: how a run ended, what it used, and the receipt of its clean-up."""

from __future__ import annotations

import time

from pinfold import late
from pinfold.typed import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from typing import Any, Literal

    from pinfold.outcomes import Guarantee, Outcome


class Stream(NamedTuple):
    """What was written to one output stream. None: it did not pass through us, so nobody counted."""

    bytes: int | None = None
    kept: int | None = None
    truncated: bool = False


class Pressure(NamedTuple):
    """PSI totals: how long some, or all, of its processes waited for CPU, memory or IO (psi.rst). Microseconds."""

    cpu_some_usec: int | None = None
    memory_full_usec: int | None = None
    io_full_usec: int | None = None
    memory_some_usec: int | None = None
    io_some_usec: int | None = None


class Usage(NamedTuple):
    """What the whole tree used, read from the cgroup after its last process was gone.

    Times in microseconds, sizes in bytes, under the names of cpu.stat, memory.peak, memory.swap.peak, pids.peak and
    io.stat. `memory_anon`, `_file`, `_shmem` and `_kernel` are the parts of its memory (memory.stat) at the fullest
    moment that we looked, ten times a second: the kernel keeps no peaks of them. `cpu_throttled_*`: how long, and in
    how many periods, `cpu_max` held it back. None: this host does not tell (no such controller, an older kernel, or a
    run too short to be looked at).
    """

    cpu_usage_usec: int | None = None
    cpu_user_usec: int | None = None
    cpu_system_usec: int | None = None
    memory_peak: int | None = None
    pids_peak: int | None = None
    io_rbytes: int | None = None
    io_wbytes: int | None = None
    pressure: Pressure = Pressure()
    memory_swap_peak: int | None = None
    memory_anon: int | None = None
    memory_file: int | None = None
    memory_shmem: int | None = None
    memory_kernel: int | None = None
    cpu_throttled_usec: int | None = None
    cpu_throttled_periods: int | None = None


class Stray(NamedTuple):
    """A process that was still there when the main process had ended, or that was killed with it."""

    pid: int
    ppid: int | None = None
    sid: int | None = None
    comm: str | None = None
    argv: list[str] | None = None


class Stuck(NamedTuple):
    """A process that could not be killed. None: the host does not tell.

    `state` is the letter of proc_pid_stat(5), D for one that waits in the kernel; `wchan` where it waits there;
    `tracer` who holds it by ptrace(2), 0 for nobody.
    """

    pid: int
    comm: str | None = None
    state: str | None = None
    wchan: str | None = None
    tracer: int | None = None


class Receipt(NamedTuple):
    """The proof of the clean-up.

    `emptied`: the kernel said `populated 0` (and the main process was reaped). `strays` counts all of them,
    `stray_processes` names the first. `kill_rounds` is 0 where nothing was left to kill. `kill_to_empty_usec` runs
    from the first kill to `populated 0`. `pipe_held`: a process outside the cgroup still held an end of an output
    pipe; it was closed. `stuck_pids`: what could not be killed within the bound. `removed`: the cgroup is gone.
    `unlisted_cgroups`: so many cgroups that the command made were not looked into for strays, as that took too long;
    all of them were killed. `receiver_stalled`: whoever reads a relayed stream stopped reading; the rest is lost.
    `escaped_processes`: had left the cgroup, were found by their descent and killed (the command line only).
    `stuck_processes`: what is known of those in `stuck_pids`; `pinfold gc` removes what is left of the run later.
    """

    emptied: bool
    strays: int
    stray_processes: list[Stray]
    kill_rounds: int
    kill_to_empty_usec: int | None
    bytes_after_kill: int
    pipe_held: bool
    stuck_pids: list[int]
    removed: bool
    escaped_processes: list[Stray]
    stuck_processes: list[Stuck]
    unlisted_cgroups: int = 0
    receiver_stalled: bool = False


class Placement(NamedTuple):
    """Where it ran. `entry`: born in its cgroup by `clone3`, or moved there by a write to `cgroup.procs`.

    `unit`: the systemd scope that it belongs to. `why`: why this backend, where it was `auto` that chose.
    """

    backend: str
    cgroup: str
    unit: str | None = None
    entry: Literal["clone3", "cgroup.procs"] | None = None
    why: str | None = None


class Events(NamedTuple):
    """What its limits did. None: this host does not tell.

    `oom` and `pids_max`: how often the limit was hit (memory.events, pids.events). `oom_kill`: not 0 where the kernel
    killed processes of it for want of memory; of a group that it kills as one (`memory_oom_group`) it counts the chosen
    one twice. `oom_by`: whose limit that was: the run's `own`, one `below` that the command set itself, an `ancestor`'s
    (a tenant's slice), or the `host`'s whole memory. `oom_cgroup`: the cgroup that was full. `oom_process`: pid and
    name of the process that the kernel chose last, from its log. `stall`: the stall guard ended it.
    """

    oom: int | None = None
    oom_kill: int | None = None
    pids_max: int | None = None
    oom_by: Literal["own", "below", "ancestor", "host"] | None = None
    oom_cgroup: str | None = None
    oom_process: dict[str, Any] | None = None
    stall: bool = False


# What a Result is asked for later.
_LATE = frozenset({"argv", "stdout_stream", "stderr_stream", "usage", "events", "limits", "receipt", "placement",
                   "error", "limit_hit"})  # fmt: skip


class Late(Protocol):
    """Where a Result gets what it is asked for later, if ever: a method for each field, called at most once."""

    def argv(self) -> list[str]:
        """What was executed."""

    def stdout_stream(self) -> Stream:
        """The figures of its output."""

    def stderr_stream(self) -> Stream:
        """The figures of its other output."""

    def usage(self) -> Usage:
        """What the tree used."""

    def events(self) -> dict[str, Any]:
        """What its limits did."""

    def limits(self) -> dict[str, dict[str, Any]]:
        """What was asked, applied, missing."""

    def receipt(self) -> Receipt:
        """What the clean-up met, and did."""

    def placement(self) -> Placement:
        """Where it ran."""

    def error(self) -> dict[str, Any] | None:
        """What went wrong beside the command."""

    def limit_hit(self) -> float | None:
        """The time limit that ended it, in seconds."""


class Result:  # noqa: PLW1641  # it can be changed, so it has no hash
    """A finished run; a superset of `subprocess.CompletedProcess`.

    `returncode` is negative for a signal, and None if there is none: nothing was started, or the host program took
    the status away (outcome `lost`). `stdout` and `stderr` are None unless captured; what was written to them is
    counted in `stdout_stream` and `stderr_stream`. `duration` is in seconds, `started_at` in seconds since 1970.
    `limit_hit` is the time limit, in seconds, that ended it. `events`: the fields of Events. `limits` has three
    tables: `asked`, `applied` as the kernel read them back, and `missing`, the reasons for those that a best effort did
    without.

    Most runs are only asked for their status and output, so all else is put into words when it is first asked for.
    """

    __slots__ = (
        "_late", "args", "argv", "duration", "error", "events", "guarantee", "limit_hit", "limits", "outcome", "pid",
        "placement", "receipt", "returncode", "run_id", "started_at", "stderr", "stderr_stream", "stdout",
        "stdout_stream", "usage",
    )  # fmt: skip

    argv: list[str]
    stdout_stream: Stream
    stderr_stream: Stream
    usage: Usage
    events: dict[str, Any]
    limits: dict[str, dict[str, Any]]
    receipt: Receipt
    placement: Placement
    error: dict[str, Any] | None
    limit_hit: float | None

    def __init__(
        self,
        *,
        args: Any,
        outcome: Outcome,
        returncode: int | None,
        pid: int | None,
        run_id: str,
        started_at: float,
        duration: float,
        stdout: Any,
        stderr: Any,
        guarantee: Guarantee,
        late: Late,
    ) -> None:
        self.args = args
        self.outcome: Outcome = outcome
        self.returncode = returncode
        self.pid = pid
        self.run_id = run_id
        self.started_at = started_at
        self.duration = duration
        self.stdout = stdout
        self.stderr = stderr
        self.guarantee: Guarantee = guarantee
        self._late = late

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Called for a slot that has no value yet."""
            if name not in _LATE:
                raise AttributeError(f"'Result' object has no attribute {name!r}")
            value = getattr(self._late, name)()
            setattr(self, name, value)
            return value

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """All of it in words: what they are made of has descriptors."""
        return None, {name: getattr(self, name) for name in self.__slots__ if name != "_late"}

    @property
    def ok(self) -> bool:
        """It ran to its own end with status 0."""
        return self.outcome == "exited" and self.returncode == 0

    def check_returncode(self) -> None:
        """Raise TimeoutExpired or CommandFailed unless the command ran to its own end with status 0."""
        if self.ok:
            return
        with late.lock:
            from pinfold.run_errors import CommandFailed, TimeoutExpired

        if self.outcome in ("timed_out", "idle_timed_out", "cpu_timed_out"):
            raise TimeoutExpired(self, self.limit_hit or 0.0)
        raise CommandFailed(self)

    def to_dict(self) -> dict[str, Any]:
        """The Result as plain values, in the shape of schema 1: times in `_usec`, sizes in bytes, None for unknown."""
        return {
            "schema": 1,
            "run_id": self.run_id,
            "argv": self.argv,
            "outcome": self.outcome,
            "returncode": self.returncode,
            "pid": self.pid,
            "started_at": _rfc3339(self.started_at),
            "duration_usec": round(self.duration * 1e6),
            "stdout": _plain(self.stdout_stream),
            "stderr": _plain(self.stderr_stream),
            "usage": _plain(self.usage),
            "events": self.events,
            "limits": self.limits,
            "receipt": _plain(self.receipt),
            "placement": _plain(self.placement),
            "guarantee": self.guarantee,
            "error": self.error,
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """`to_dict()` as JSON text."""
        with late.lock:
            import json

        return json.dumps(self.to_dict(), indent=indent)

    def __eq__(self, other: object) -> bool:
        names = (name for name in self.__slots__ if name != "_late")
        return isinstance(other, Result) and all(getattr(self, name) == getattr(other, name) for name in names)

    def __repr__(self) -> str:
        return (
            f"<pinfold.Result {self.argv!r} {self.outcome}, returncode {self.returncode}, {self.duration:.3f} s, "
            f"{self.receipt.strays} strays>"
        )


def _plain(value: Any) -> Any:
    """Records to dicts, all the way down."""
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _rfc3339(seconds: float) -> str:
    usec = round(seconds * 1e6)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(usec // 1_000_000))
    return f"{whole}.{usec % 1_000_000:06}Z"
