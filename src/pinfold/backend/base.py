"""BaseCgroup: the cgroup that the runs of a fold are made in, with our owner record and the spare one."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import weakref
from collections import deque
from collections.abc import Mapping

from pinfold.backend import Revocable, Scope
from pinfold.backend.guard import Guard
from pinfold.cgroup import names
from pinfold.cgroup.controllers import ACCOUNTING, give
from pinfold.cgroup.group import REMOVE_BOUND, Cgroup
from pinfold.cgroup.kill import KILL_ROUND, kill_each
from pinfold.cgroup.oom import AncestorOom
from pinfold.cgroup.places import Place
from pinfold.errors import CgroupError
from pinfold.lease import find, owner, record
from pinfold.result import Placement
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


_LEASE_BOUND: Final = 1.0
_LOOK: Final = 0.001


class BaseCgroup:
    """A cgroup of ours with nothing in it but the cgroups of runs, all with the same controllers."""

    def __init__(self, parent: Place, name: str, placement: Placement, guard: Guard, *,
                 labels: Mapping[str, str], revocable: Revocable | None = None, own_unit: bool = False,
                 spare: bool = False) -> None:  # fmt: skip
        """Make it in `parent`, under the eyes of `guard`, and enable every controller that tells what was used.

        `placement`: as the Results will have it, but for the cgroup. `labels`: for the owner record. `revocable`,
        `own_unit`: see Scope. `spare`: make the cgroup of the next run while one is running, which takes mkdir off its
        path. Raises CgroupError.
        """
        self.place = find.child(parent, name)
        self._hierarchy, self._placement, self.has_owner_record = parent.hierarchy, placement, False
        self._revocable, self._own_unit, self._spare = revocable, parent.path if own_unit else None, spare
        self._spares: deque[Scope] = deque()  # its own methods are atomic
        self._quarantined: deque[str] = deque()  # names of runs that are over, and could not be emptied
        self._ancestor_oom: AncestorOom | None = None
        self._killed_at, self._removed = 0.0, False
        self.controllers: frozenset[str] = frozenset()
        try:
            self._parent = self._hierarchy.open_root(parent.directory)
        except OSError as error:
            raise CgroupError("open", parent.directory, error) from error
        try:
            self._have_watched_by(guard)
            # From mkdir to the record nobody can tell whose it is: a gc waits for this lock.
            owner.lock_shared(self._parent)
            # Nor can anybody else open it until we hold its lock, and so keep us from that.
            self._cgroup = Cgroup.make(self._hierarchy, self._parent, parent.path.rstrip("/"), name, mode=0o700)
        except BaseException:
            os.close(self._parent)
            raise
        try:
            _bases.add(self)
            self._owner = owner.this_process(labels, guard.pid)
            self.has_owner_record = self._sign()
            os.chmod(self._cgroup.dirfd, 0o755)
            owner.unlock(self._parent)
            self.enable(ACCOUNTING)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, CgroupError):
                raise CgroupError("sign", self.place.path, error) from error
            raise

    def guarded_by(self, guard: Guard) -> None:
        """Have another guard, and say so on record."""
        self._have_watched_by(guard)
        self._owner = self._owner._replace(guard=guard.pid)
        if self.has_owner_record:
            record.write(self._cgroup.dirfd, record.OWNER, self._owner)

    def _have_watched_by(self, guard: Guard) -> None:
        try:
            guard.watch(self.place.directory)
        except OSError as error:
            raise CgroupError("have a guard watch", self.place.path, error) from error

    def _sign(self) -> bool:
        if not owner.lock_shared(self._cgroup.dirfd, bound=_LEASE_BOUND):
            raise CgroupError("flock", self.place.path, BlockingIOError(errno.EWOULDBLOCK, "somebody holds its lock"))
        return record.write(self._cgroup.dirfd, record.OWNER, self._owner)

    def enable(self, controllers: frozenset[str]) -> None:
        """Give the runs to come these controllers, as far as it has them itself."""
        if controllers <= self.controllers:
            return
        self.controllers = give(self.place, controllers)
        if "memory" in self.controllers and self._ancestor_oom is None:
            self._ancestor_oom = AncestorOom(self.place)
        self._drop_spares()  # they were made with fewer

    def scope(self) -> Scope:
        """The cgroup of one run. Raises CgroupError."""
        try:
            return self._spares.pop()
        except IndexError:
            return self._make()

    def prepare(self) -> None:
        """Make the spare if there is none. A failure is left to the run that will need it."""
        for _ in range(len(self._quarantined)):
            self._remove_quarantined(self._quarantined.popleft())
        if self._spare and not self._spares:
            with contextlib.suppress(CgroupError):
                self._spares.append(self._make())

    def _make(self) -> Scope:
        run_id, path = names.new_run_id(), self.place.path
        cgroup = Cgroup.make(self._hierarchy, self._cgroup.dirfd, path, names.run(run_id), self.controllers)
        placement = self._placement._replace(cgroup=cgroup.path)
        return Scope(
            run_id, cgroup, placement, self.place, self.controllers, self._ancestor_oom, self._revocable, self._own_unit
        )

    def quarantine(self, scope: Scope) -> None:
        """Take note of a run that is over and could not be removed, for others too: its cgroup says so."""
        name = os.path.basename(scope.cgroup.path)
        if name not in self._quarantined:
            self._quarantined.append(name)
            with contextlib.suppress(OSError):
                record.write(scope.cgroup.dirfd, record.RUN, record.RunRecord(None, time.time(), quarantined=True))

    def _remove_quarantined(self, name: str) -> None:
        """What is left in it has its SIGKILL, and may have died of it meanwhile."""
        try:
            os.rmdir(name, dir_fd=self._cgroup.dirfd)
        except FileNotFoundError:
            return
        except OSError:
            self._quarantined.append(name)

    def _drop_spares(self) -> None:
        while self._spares:
            spare = self._spares.pop().cgroup
            with contextlib.suppress(CgroupError):  # it is empty, and goes with the base at the latest
                spare.remove()
            spare.close()

    def kill(self) -> None:
        """Kill all runs at once: `cgroup.kill` reaches all below. Called again later: also what that misses."""
        now = time.monotonic()
        self._killed_at = self._killed_at or now
        if now - self._killed_at < KILL_ROUND:
            self._cgroup.kill()
        else:
            for _ in kill_each(self._cgroup):
                pass

    def close(self, *, forked: bool = False) -> bool:
        """Remove all that is left; what cannot be emptied stays, and its record says that it is for others to end.

        Whether nothing is left to do. `forked`: in a forked child, only let go of it. Where an exception has cut it
        short, once more goes on.
        """
        if forked:
            while self._spares:
                self._spares.pop().cgroup.close()
        elif self._cgroup.dirfd >= 0:
            end = time.monotonic() + REMOVE_BOUND
            while not self._removed and time.monotonic() < end:
                self._removed = self._is_removed()
                if not self._removed:
                    time.sleep(_LOOK)
            if not self._removed and self.has_owner_record:
                with contextlib.suppress(OSError):
                    record.write(self._cgroup.dirfd, record.OWNER, self._owner._replace(closed=True))
            self._drop_spares()  # they went with it; this closes them
        self._cgroup.close()
        ancestor_oom, self._ancestor_oom = self._ancestor_oom, None
        if ancestor_oom is not None:
            ancestor_oom.close()
        parent, self._parent = self._parent, -1
        if parent >= 0:
            os.close(parent)
        return self._removed

    def _is_removed(self) -> bool:
        with contextlib.suppress(OSError):  # a want of fds or memory may pass
            if self._cgroup.remove():
                return True
            self.kill()
        return False


_bases: weakref.WeakSet[BaseCgroup] = weakref.WeakSet()


def _after_fork() -> None:
    """A forked child shares the lock that is on an open directory: without its copies, it says nothing about us."""
    for base in list(_bases):
        base.close(forked=True)
    _bases.clear()


os.register_at_fork(after_in_child=_after_fork)
