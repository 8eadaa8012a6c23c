"""The cgroupfs backend: we make the cgroups ourselves, below the one we are in.

our own cgroup (or the nearest above it that is delegated to us)
└── pinfold-<random>        the base of one fold, with its owner record
└── run-<random>        one run, or the spare: made ahead, never used before, used once
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections import deque
from typing import Final

from pinfold.backend import Scope, owner
from pinfold.cgroup.files import DIRECTORY
from pinfold.cgroup.group import Cgroup
from pinfold.cgroup.tree import Place, delegated_place
from pinfold.errors import CgroupError
from pinfold.result import Placement

BASE_PREFIX: Final = "pinfold-"
REMOVE_BOUND: Final = 1.0  # seconds; rmdir may trail `populated 0` (from Linux 6.19)


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
        self._base_name = BASE_PREFIX + secrets.token_hex(6)
        self.path = f"{place.path.rstrip('/')}/{self._base_name}"
        self._base = -1
        self._controllers: frozenset[str] = frozenset()
        self._spare = spare
        self._spares: deque[Scope] = deque()  # its own methods are atomic
        try:
            os.mkdir(self._base_name, 0o755, dir_fd=self._parent)
            self._base = self._hierarchy.open(self._parent, self._base_name, DIRECTORY)
            self.signed = owner.sign(self._base)
        except OSError as error:
            self._remove()
            self._let_go()
            raise CgroupError("mkdir", f"{place.directory}/{self._base_name}", error) from error

    def scope(self) -> Scope:
        """The cgroup of one run. Raises CgroupError."""
        try:
            return self._spares.pop()
        except IndexError:
            return self._make()

    def prepare(self) -> None:
        """Make the spare if there is none. A failure is left to the run that will need it."""
        if self._spare and not self._spares:
            with contextlib.suppress(CgroupError):
                self._spares.append(self._make())

    def _make(self) -> Scope:
        run_id = secrets.token_hex(8)
        cgroup = Cgroup(self._hierarchy, self._base, self.path, "run-" + run_id, self._controllers)
        return Scope(run_id, cgroup, Placement(self.name, cgroup.path))

    def close(self, *, forked: bool = False) -> None:
        """Remove the base cgroup; what could not be emptied in it stays, and keeps its record for a later sweep."""
        while self._spares:
            spare = self._spares.pop().cgroup
            if not forked:
                spare.remove()
            spare.close()
        if not forked:
            self._remove()
        self._let_go()

    def _remove(self) -> None:
        end = time.monotonic() + REMOVE_BOUND
        while True:
            with contextlib.suppress(FileNotFoundError):
                try:
                    os.rmdir(self._base_name, dir_fd=self._parent)
                except OSError:
                    if time.monotonic() < end and not os.stat(self._base).st_nlink > 2:
                        time.sleep(0.001)
                        continue
            return

    def _let_go(self) -> None:
        for fd in (self._base, self._parent):
            if fd >= 0:
                os.close(fd)
        self._base = self._parent = -1
