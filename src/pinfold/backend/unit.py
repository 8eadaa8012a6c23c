"""A delegated scope of ours: a cgroup that systemd made for us, and our guard in it.

SLICE
└── pinfold-<random>.scope      made by systemd (Delegate=yes); below it, it lets us do as we like
    ├── guard                   the guard
    ├── caller                  the calling program, where it had to move in
    └── runs                    the base of one fold, with its owner record
        └── run-<random>        one run, or the spare
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from pinfold.backend.guard import Guard
from pinfold.cgroup import control, delegation, tree
from pinfold.cgroup.tree import Place
from pinfold.errors import Error, UnitError

if TYPE_CHECKING:
    from pinfold.backend.manager import Manager

GUARD: Final = "guard"
CALLER: Final = "caller"
_STOP_USEC: Final = 10_000_000  # for a stop from outside, until systemd kills what has not obeyed
_ASK_BOUND: Final = 1.0  # seconds, for the manager to say what became of the scope
_LEAF_BOUND: Final = 1.0
_LOOK: Final = 0.001
_INFINITE: Final = 2**64 - 1
# The guard is one process, and must not be what the kernel kills for want of memory: that ends the scope. The cgroups
# themselves cost their unit memory too, up to 100 kB each where there are many CPUs.
_GUARD_ROOM: Final = {"TasksMax": 1, "MemoryMax": 4 << 20}
Property = tuple[str, tuple[str, Any]]


class ScopeUnit:
    """A scope that we started; a Warden."""

    def __init__(self, manager: Manager, name: str, slice_name: str, description: str, properties: list[Property], *,
                 user: bool, caller: bool = False) -> None:  # fmt: skip
        """Have the manager make it, with a guard and, with `caller`, this process in it.

        Raises UnitError, NoSystemd or CgroupError; nothing is left then.
        """
        self.name, self._user = name, user
        self._guard = Guard()
        try:
            manager.start_scope(name, [
                ("Description", ("s", description)),
                ("Slice", ("s", slice_name)),
                ("PIDs", ("au", [self._guard.pid, *([os.getpid()] if caller else [])])),
                ("Delegate", ("b", True)),
                ("CollectMode", ("s", "inactive-or-failed")),
                ("TimeoutStopUSec", ("t", _STOP_USEC)),
                *_with_room_for_the_guard(properties),
            ])  # fmt: skip
            self.place = self._where_the_guard_is()
            # It cannot give controllers to those below while it holds processes itself.
            delegation.move(self.place, GUARD, [self._guard.pid])
            if caller:
                delegation.move(self.place, CALLER, [os.getpid()])
            control.give(self.place, control.ACCOUNTING)
        except BaseException:
            self._guard.end()
            raise

    def _where_the_guard_is(self) -> Place:
        place = tree.place_of(self._guard.pid)
        if os.path.basename(place.path) != self.name:
            raise UnitError(self.name, "start", f"our process is in {place.path} afterwards", "report this")
        return place

    @property
    def fd(self) -> int:
        """Readable once the guard has ended."""
        return self._guard.fd

    @property
    def lost(self) -> bool:
        """Whether the guard has ended without us."""
        return self._guard.ended()

    def revoked(self) -> bool:
        """Whether systemd has stopped the scope, or is about to; if it cannot be asked: whether the guard has ended."""
        from pinfold.backend.manager import Manager

        try:
            with Manager.connect(user=self._user, deadline=_ASK_BOUND) as manager:
                return manager.active_state(self.name, deadline=_ASK_BOUND) != "active"
        except Error:
            return self.lost

    def release(self) -> None:
        """End the guard and remove its leaf: systemd collects the scope once it is empty. Twice is no harm."""
        self._guard.end()
        leaf, end = os.path.join(self.place.directory, GUARD), time.monotonic() + _LEAF_BOUND
        while os.path.isdir(leaf) and time.monotonic() < end:
            try:
                os.rmdir(leaf)
            except FileNotFoundError:
                return
            except OSError:  # the guard is being buried
                time.sleep(_LOOK)

    def forget(self) -> None:
        """Close what is ours, and leave the scope as it is: in a forked child it is the parent's."""
        self._guard.forget()


def _with_room_for_the_guard(properties: list[Property]) -> list[Property]:
    """The run has what was asked for, so its unit has the guard's share on top."""
    wanted = {"TasksMax": ("t", _INFINITE), **dict(properties)}  # or DefaultTasksMax= would be a limit not asked for
    for name, room in _GUARD_ROOM.items():
        if name in wanted and wanted[name][1] != _INFINITE:
            wanted[name] = ("t", wanted[name][1] + room)
    return list(wanted.items())
