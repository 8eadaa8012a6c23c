"""The cgroupfs backend: we make the cgroups ourselves, below the one we are in.

our own cgroup (or the nearest above it that is delegated to us)
└── pinfold-<random>        the base of one fold, with its owner record
└── run-<random>        one run, or the spare: made ahead, never used before, used once
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Final

from pinfold.backend import Scope, owner
from pinfold.cgroup.group import Cgroup
from pinfold.cgroup.tree import Place, delegated_place
from pinfold.errors import CgroupError
from pinfold.result import Placement

BASE_PREFIX: Final = "pinfold-"
RUN_PREFIX: Final = "run-"
REMOVE_BOUND: Final = 1.0  # seconds; rmdir may trail `populated 0` (from Linux 6.19)
_LOOK: Final = 0.001


class CgroupfsBackend:
    """Runs in cgroups that we made with mkdir."""

    name: Final = "cgroupfs"

    def __init__(self, place: Place | None = None, *, spare: bool = True) -> None:
        """Make the base cgroup in `place`, by default the nearest that is delegated to us.

        `spare`: make the cgroup of the next run while one is running, which takes mkdir off its path.

        Raises NoCgroup2, NotDelegated or CgroupError.
        """
        place = place or delegated_place()
        self._hierarchy = place.hierarchy
        try:
            self._parent = self._hierarchy.open_root(place.directory)
        except OSError as error:
            raise CgroupError("open", place.directory, error) from error
        self._controllers: frozenset[str] = frozenset()
        self._spare = spare
        self._spares: deque[Scope] = deque()  # its own methods are atomic
        name = BASE_PREFIX + os.urandom(6).hex()
        try:
            self._base = Cgroup.make(self._hierarchy, self._parent, place.path.rstrip("/"), name)
        except BaseException:
            os.close(self._parent)
            raise
        self.path = self._base.path
        try:
            self.signed = owner.sign(self._base.dir)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise CgroupError("setxattr", self.path, error) from error
            raise

    def scope(self) -> Scope:
        """The cgroup of one run. Raises CgroupError."""
        try:
            return self._spares.pop()
        except IndexError:
            return self._make()

    def prepare(self) -> None:
        """Make the spare if there is none. A failure is left to the run that will need it."""
        if self._spare and not self._spares:
            try:
                self._spares.append(self._make())
            except CgroupError:
                return

    def _make(self) -> Scope:
        run_id = os.urandom(8).hex()
        cgroup = Cgroup.make(self._hierarchy, self._base.dir, self.path, RUN_PREFIX + run_id, self._controllers)
        return Scope(run_id, cgroup, Placement(self.name, cgroup.path))

    def kill(self) -> None:
        """Kill all runs at once: `cgroup.kill` reaches every cgroup below."""
        self._base.kill()

    def close(self, *, forked: bool = False) -> None:
        """Remove all that is left; what cannot be emptied stays, and the base keeps its record for a later sweep."""
        while self._spares:
            self._spares.pop().cgroup.close()
        if not forked:
            end = time.monotonic() + REMOVE_BOUND
            while not self._base.remove() and time.monotonic() < end:
                self._base.kill()
                time.sleep(_LOOK)
        self._base.close()
        parent, self._parent = self._parent, -1
        if parent >= 0:
            os.close(parent)
