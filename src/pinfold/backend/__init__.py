"""Backends: who makes the cgroups of the runs, and who removes them."""

from __future__ import annotations

from pinfold.cgroup.group import Cgroup
from pinfold.cgroup.oom import AncestorOom
from pinfold.cgroup.places import Place
from pinfold.result import Placement
from pinfold.typed import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from pinfold.limits import Limits


class ScopeRequest(NamedTuple):
    """What a run wants of its home.

    `controllers`: those that its limits need. `unit`: a unit of its own by this name; `description`: the words for it.
    """

    limits: Limits | None = None
    controllers: frozenset[str] = frozenset()
    unit: str | None = None
    description: str = ""


class Revocable(Protocol):
    """Who keeps a systemd scope for us, and ends when the manager takes it away."""

    @property
    def fd(self) -> int:
        """Readable once it has ended."""

    def revoked(self) -> bool:
        """Whether the scope has been stopped from outside, or is being stopped."""

    def release(self) -> None:
        """Let go of the scope. Idempotent."""


class Scope(NamedTuple):
    """The home of one run: its cgroup, and where that is in the words of the Result.

    `place`: the cgroup that it was made in. `controllers`: what it has. `ancestor_oom`: the memory
    limits of the cgroups above it, if there is a memory controller. `own_unit`: the path of the one of them that is of
    this run alone and carries its limits too.
    """

    run_id: str
    cgroup: Cgroup
    placement: Placement
    place: Place
    controllers: frozenset[str]
    ancestor_oom: AncestorOom | None = None
    revocable: Revocable | None = None
    own_unit: str | None = None


class Backend(Protocol):
    """Maker of Scopes. The run that got a Scope removes its cgroup; the backend removes what is above it."""

    @property
    def path(self) -> str:
        """The cgroup that the runs' cgroups are made in."""

    @property
    def has_owner_record(self) -> bool:
        """Whether it carries our owner record."""

    @property
    def guard(self) -> int | None:
        """The pid of the process that ends the runs if we cannot, if there is one for all of them."""

    @property
    def unit_per_run(self) -> bool:
        """Whether it makes something for each run alone, which takes time to give back."""

    @property
    def lost(self) -> bool:
        """Whether somebody has taken away what the backend made: no run can be started any more."""

    def scope(self, asked: ScopeRequest) -> Scope:
        """The cgroup of one run, never used before, with the controllers it needs as far as this host has them."""

    def prepare(self) -> None:
        """Called while a command runs: a good moment to make the next cgroup."""

    def release(self, scope: Scope, *, removed: bool) -> None:
        """The run is over, and its cgroup removed or to be removed later; what was made for it alone goes as well."""

    def kill(self) -> None:
        """Kill every process of every run."""

    def close(self, *, forked: bool) -> None:
        """Remove what the backend made; in a forked child only let go of it."""
