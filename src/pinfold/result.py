"""Result: how a run ended, what it used, and the receipt of its clean-up."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pinfold import errors
from pinfold.policy import Guarantee

Outcome = Literal[
    "exited", "signaled", "timed_out", "idle_timed_out", "cpu_timed_out", "oom_killed", "output_exceeded", "canceled",
    "spawn_failed", "lost",
]  # fmt: skip


@dataclass(slots=True)
class Stream:
    """What was written to one output stream. None: it did not pass through us, so nobody counted."""

    bytes: int | None = None
    kept: int | None = None
    truncated: bool = False


@dataclass(slots=True)
class Usage:
    """What the whole tree used, read from the cgroup after its last process was gone.

    Times in microseconds, sizes in bytes, under the names of cpu.stat, memory.peak, pids.peak and io.stat;
    `pressure` holds PSI totals. None: this host does not tell (no such controller, or an older kernel).
    """

    cpu_usage_usec: int | None = None
    cpu_user_usec: int | None = None
    cpu_system_usec: int | None = None
    memory_peak: int | None = None
    pids_peak: int | None = None
    io_rbytes: int | None = None
    io_wbytes: int | None = None
    pressure: dict[str, int | None] = field(
        default_factory=lambda: dict.fromkeys(("cpu_some_usec", "memory_full_usec", "io_full_usec"))
    )


@dataclass(slots=True)
class Stray:
    """A process that was still there when the main process had ended, or that was killed with it."""

    pid: int
    ppid: int | None
    sid: int | None
    comm: str | None
    argv: list[str] | None


@dataclass(slots=True)
class Receipt:
    """The proof of the clean-up.

    `emptied`: the kernel said `populated 0` (and the main process was reaped). `strays` counts all of them,
    `stray_processes` names the first. `kill_rounds` is 0 where nothing was left to kill. `kill_to_empty_usec` runs
    from the first kill to `populated 0`. `pipe_held`: a process outside the cgroup still held an end of an output
    pipe; it was closed. `stuck_pids`: what could not be killed within the bound. `removed`: the cgroup is gone.
    `escaped_processes`: had left the cgroup, were found by their descent and killed (the command line only).
    """

    emptied: bool = False
    strays: int = 0
    stray_processes: list[Stray] = field(default_factory=list)
    kill_rounds: int = 0
    kill_to_empty_usec: int | None = None
    bytes_after_kill: int = 0
    pipe_held: bool = False
    stuck_pids: list[int] = field(default_factory=list)
    removed: bool = False
    escaped_processes: list[Stray] = field(default_factory=list)


@dataclass(slots=True)
class Placement:
    """Where it ran. `entry`: born in its cgroup by `clone3`, or moved there by a write to `cgroup.procs`."""

    backend: str
    cgroup: str
    unit: str | None = None
    entry: Literal["clone3", "cgroup.procs"] | None = None


@dataclass(slots=True, kw_only=True)
class Result:
    """A finished run; a superset of `subprocess.CompletedProcess`.

    `returncode` is negative for a signal, and None if there is none: nothing was started, or the host program took
    the status away (outcome `lost`). `stdout` and `stderr` are None unless captured.
    """

    args: Any
    outcome: Outcome
    returncode: int | None
    pid: int | None
    run_id: str
    argv: list[str]
    started_at: float
    duration: float
    stdout: Any = None
    stderr: Any = None
    stdout_stream: Stream = field(default_factory=Stream)
    stderr_stream: Stream = field(default_factory=Stream)
    usage: Usage = field(default_factory=Usage)
    events: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(("oom", "oom_kill", "pids_max")))
    limits: dict[str, dict[str, Any]] = field(default_factory=lambda: {"asked": {}, "applied": {}})
    receipt: Receipt = field(default_factory=Receipt)
    placement: Placement
    guarantee: Guarantee
    error: dict[str, Any] | None = None
    limit_hit: float | None = None

    @property
    def ok(self) -> bool:
        """It ran to its own end with status 0."""
        return self.outcome == "exited" and self.returncode == 0

    def check_returncode(self) -> None:
        """Raise TimeoutExpired or CommandFailed unless the command ran to its own end with status 0."""
        if self.ok:
            return
        if self.outcome in ("timed_out", "idle_timed_out", "cpu_timed_out"):
            raise errors.TimeoutExpired(self, self.limit_hit or 0.0)
        raise errors.CommandFailed(self)

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
        return json.dumps(self.to_dict(), indent=indent)


def _plain(value: Any) -> Any:
    """Records to dicts, all the way down (dataclasses.asdict copies every leaf and is ten times slower)."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _rfc3339(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
