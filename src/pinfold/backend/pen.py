"""Pen: the cgroup that the runs of a fold are made in, wherever that is, with our owner record and the spare one."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from typing import Final

from pinfold.backend import Scope, Warden, owner
from pinfold.cgroup import control
from pinfold.cgroup.group import Cgroup
from pinfold.cgroup.oom import CgroupsAbove
from pinfold.cgroup.tree import Place
from pinfold.errors import CgroupError
from pinfold.result import Placement

RUN_PREFIX: Final = "run-"
REMOVE_BOUND: Final = 1.0  # seconds; rmdir may trail `populated 0` (from Linux 6.19)
_LOOK: Final = 0.001


class Pen:
    """A cgroup of ours with nothing in it but the cgroups of runs, all with the same controllers."""

    def __init__(self, above: Place, name: str, placement: Placement, *, warden: Warden | None = None,
                 own_unit: bool = False, spare: bool = False) -> None:  # fmt: skip
        """Make it in `above`, and enable for its runs every controller that tells what was used.

        `placement`: as the Results will have it, but for the cgroup. `warden`, `own_unit`: see Scope. `spare`: make
        the cgroup of the next run while one is running, which takes mkdir off its path. Raises CgroupError.
        """
        self._hierarchy, self._placement = above.hierarchy, placement
        self._warden, self._own_unit, self._spare = warden, above.path if own_unit else None, spare
        self._spares: deque[Scope] = deque()  # its own methods are atomic
        self._above: CgroupsAbove | None = None
        self.controllers: frozenset[str] = frozenset()
        try:
            self._parent = self._hierarchy.open_root(above.directory)
        except OSError as error:
            raise CgroupError("open", above.directory, error) from error
        try:
            self._base = Cgroup.make(self._hierarchy, self._parent, above.path.rstrip("/"), name)
        except BaseException:
            os.close(self._parent)
            raise
        self.place = Place(os.path.join(above.directory, name), self._base.path, self._hierarchy)
        try:
            self.signed = owner.sign(self._base.dir)
            self.enable(control.ACCOUNTING)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, CgroupError):
                raise CgroupError("setxattr", self.place.path, error) from error
            raise

    def enable(self, controllers: frozenset[str]) -> None:
        """Give the runs to come these controllers, as far as it has them itself."""
        if controllers <= self.controllers:
            return
        self.controllers = control.give(self.place, controllers)
        if "memory" in self.controllers and self._above is None:
            self._above = CgroupsAbove(self.place)
        self._drop_spares()  # they were made with fewer

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
        run_id, path = os.urandom(8).hex(), self.place.path
        cgroup = Cgroup.make(self._hierarchy, self._base.dir, path, RUN_PREFIX + run_id, self.controllers)
        placement = self._placement._replace(cgroup=cgroup.path)
        return Scope(run_id, cgroup, placement, self.place, self.controllers, self._above, self._warden, self._own_unit)

    def _drop_spares(self) -> None:
        while self._spares:
            spare = self._spares.pop().cgroup
            spare.remove()
            spare.close()

    def kill(self) -> None:
        """Kill all runs at once: `cgroup.kill` reaches every cgroup below."""
        self._base.kill()

    def close(self, *, forked: bool = False) -> None:
        """Remove all that is left; what cannot be emptied stays, and the base keeps its record for a later sweep.

        `forked`: in a forked child, only let go of it.
        """
        if forked:
            while self._spares:
                self._spares.pop().cgroup.close()
        else:
            end = time.monotonic() + REMOVE_BOUND
            while not self._base.remove() and time.monotonic() < end:
                self._base.kill()
                time.sleep(_LOOK)
            self._drop_spares()  # they went with it; this closes them
        self._base.close()
        above, self._above = self._above, None
        if above is not None:
            above.close()
        parent, self._parent = self._parent, -1
        if parent >= 0:
            os.close(parent)
