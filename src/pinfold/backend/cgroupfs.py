"""The cgroupfs backend: we make the cgroups ourselves, below one that is ours to divide.

our own cgroup (or the nearest above it that is delegated to us and can give controllers)
└── pinfold-<random>        the base of one fold, with its owner record
    └── run-<random>        one run, or the spare: made ahead, never used before, used once
"""

from __future__ import annotations

import os
from typing import Final

from pinfold.backend import Asked, Scope
from pinfold.backend.pen import Pen
from pinfold.cgroup import control, delegation
from pinfold.errors import Unsupported
from pinfold.result import Placement

BASE_PREFIX: Final = "pinfold-"


class CgroupfsBackend:
    """Runs in cgroups that we made with mkdir."""

    name: Final = "cgroupfs"

    def __init__(self, *, spare: bool = True, move_caller: bool = False, why: str | None = None) -> None:
        """Make the base cgroup where `delegation.place_for_runs` says.

        `move_caller`: where a limit needs it, move the processes of that place (this one among them) to a leaf.

        Raises NoCgroup2, NotDelegated or CgroupError.
        """
        self._above, self._move_caller = delegation.place_for_runs(), move_caller
        if not control.is_root(self._above.directory):  # what is enabled there concerns the whole host: only on demand
            control.give(self._above, control.ACCOUNTING)
        placement = Placement(self.name, self._above.path, why=why)
        self._pen = Pen(self._above, BASE_PREFIX + os.urandom(6).hex(), placement, spare=spare)
        self.path, self.signed = self._pen.place.path, self._pen.signed

    lost: Final = False  # nobody manages these cgroups but us
    guard: Final = None

    def scope(self, asked: Asked) -> Scope:
        """The cgroup of one run. Raises CgroupError, and Unsupported for a unit of its own."""
        if asked.unit is not None:
            found = "the backend cgroupfs makes no units"
            raise Unsupported(f"unit {asked.unit}", found, "use the backend systemd, on a host that it manages")
        if not asked.controllers <= self._pen.controllers:
            self._provide(asked.controllers | control.ACCOUNTING)
        return self._pen.scope()

    def _provide(self, controllers: frozenset[str]) -> None:
        """Give the runs these controllers, as far as that goes; what is in the way is moved if we may."""
        above = self._above
        withheld = controllers & control.available(above.directory) - control.give(above, controllers)
        if withheld and self._move_caller and delegation.is_delegated(above) and not control.is_root(above.directory):
            delegation.move_to_leaf(above)
            control.give(above, controllers)
        self._pen.enable(controllers)

    def prepare(self) -> None:
        """See Backend."""
        self._pen.prepare()

    def give_back(self, scope: Scope) -> None:
        """Nothing was made for one run alone."""

    def kill(self) -> None:
        """Kill all runs."""
        self._pen.kill()

    def close(self, *, forked: bool = False) -> None:
        """Remove all that is left."""
        self._pen.close(forked=forked)
