"""Ending: the facts of a run, as they become known; all that its report needs. Whatever drives a run fills the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pinfold.result import Events, Placement, Stray
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from pinfold.backend import Scope
    from pinfold.errors import SpawnError
    from pinfold.runs.states import Event
    from pinfold.runs.stdio import Stdio


class Ending:
    """One run's facts, each with the value that it has until it is known.

    Times in seconds: `started_at` since 1970, `duration` and `kill_to_empty` as spans. `cause`: why we ended it; None:
    it ended by itself. `accounts`: the texts of the cgroup's files, by name. `parts`: of its memory, in bytes.
    """

    scope: Scope
    io: Stdio
    started_at = 0.0
    duration = 0.0
    pid: int | None = None
    moved = False  # into its cgroup, by cgroup.procs: clone3 was refused
    returncode: int | None = None
    error: SpawnError | None = None
    cause: Event | None = None
    exited_first = signaled_first = False  # see Lifecycle.outcome
    outcome: Any = "lost"
    # The receipt.
    emptied = removed = pipe_held = receiver_stalled = False
    strays = kill_rounds = bytes_after_kill = unlisted_cgroups = 0
    stray_processes: Sequence[Stray] = ()
    stuck_pids: Sequence[int] = ()
    kill_to_empty: float | None = None
    # What it used, and what its limits did.
    accounts: Mapping[str, str] = {}  # never changed
    parts: Mapping[str, int] = {}  # never changed
    limits: Mapping[str, Mapping[str, Any]] | None = None
    events: Events | None = None
    rest: Callable[[], None] | None = None  # measures and removes its cgroup, if that is still to be done

    def settle(self) -> None:
        """Know all of it."""
        if self.rest is not None:
            self.rest()

    @property
    def placement(self) -> Placement:
        """Where it ran, and how it came there."""
        if self.pid is None:
            return self.scope.placement
        return self.scope.placement._replace(entry="cgroup.procs" if self.moved else "clone3")
