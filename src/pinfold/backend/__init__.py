"""Backends: who makes the cgroups of the runs, and who removes them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pinfold.cgroup.group import Cgroup
from pinfold.result import Placement


class Scope(NamedTuple):
    """The home of one run: its cgroup, and where that is in the words of the Result."""

    run_id: str
    cgroup: Cgroup
    placement: Placement


class Backend(Protocol):
    """Maker of Scopes. The run that got a Scope removes its cgroup; the backend removes what is above it."""

    path: str
    signed: bool  # the base cgroup carries our owner record

    def scope(self) -> Scope:
        """The cgroup of one run, never used before."""
        ...

    def prepare(self) -> None:
        """Called while a command runs: a good moment to make the next cgroup."""
        ...

    def kill(self) -> None:
        """Kill every process of every run."""
        ...

    def close(self, *, forked: bool) -> None:
        """Remove what the backend made; in a forked child only let go of it."""
        ...
