"""A delegated scope of ours: a cgroup that systemd made for us, and our guard in it.

systemd makes it with Delegate=yes: below it, we do as we like. `cgroup/names.py` shows what is in it.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Final

from pinfold.backend.guard import Guard
from pinfold.backend.manager import Manager
from pinfold.cgroup import delegation, names, places
from pinfold.cgroup.controllers import ACCOUNTING, exchange, give
from pinfold.cgroup.group import REMOVE_BOUND
from pinfold.cgroup.places import Place
from pinfold.errors import Error, NoSystemd, UnitError

_STOP_USEC: Final = 10_000_000  # for a stop from outside, until systemd kills what has not obeyed
_ASK_BOUND: Final = 1.0  # seconds, for the manager to say what became of the scope
_DYING: Final = 0.01
_LOOK: Final = 0.001
_INFINITE: Final = 2**64 - 1
# The guard is one process, and must not be what the kernel kills for want of memory: that ends the scope. The cgroups
# themselves cost their unit memory too, up to 100 kB each where there are many CPUs.
_GUARD_ROOM: Final = {"TasksMax": ("pids.max", 1), "MemoryMax": ("memory.max", 4 << 20)}
Property = tuple[str, tuple[str, Any]]


class ScopeUnit:
    """A scope that we started; a Revocable. `guard`: the process of ours that keeps it, and ends with it."""

    def __init__(self, manager: Manager, name: str, slice_name: str, description: str, properties: list[Property], *,
                 user: bool, caller: bool = False) -> None:  # fmt: skip
        """Have the manager make it, with a guard and, with `caller`, this process in it.

        Raises UnitError, NoSystemd or CgroupError; nothing is left then.
        """
        self.name, self._user = name, user
        try:
            self.guard = Guard(obeys_term=True)
        except OSError as error:  # for one, where a filter refuses clone3 in the wrong way (EPERM), libc starts nothing
            found = f"its guard could not be started: {error}"
            raise NoSystemd(
                f"the scope {name}", found, "let the seccomp filter pass clone3, or use cgroupfs"
            ) from error
        try:
            manager.start_scope(name, [
                ("Description", ("s", description)),
                ("Slice", ("s", slice_name)),
                ("PIDs", ("au", [self.guard.pid, *([os.getpid()] if caller else [])])),
                ("Delegate", ("b", True)),
                ("CollectMode", ("s", "inactive-or-failed")),
                ("TimeoutStopUSec", ("t", _STOP_USEC)),
                # Or DefaultTasksMax= would be a limit that nobody asked for.
                *([] if any(key == "TasksMax" for key, _ in properties) else [("TasksMax", ("t", _INFINITE))]),
                *map(_with_room_to_start, properties),
            ], passing_slice=slice_name if slice_name == names.SLICE else None)  # fmt: skip
            self.place = self._where_the_guard_is()
            # It cannot give controllers to those below while it holds processes itself.
            delegation.move(self.place, names.GUARD, [self.guard.pid])
            if caller:
                delegation.move(self.place, names.CALLER, [os.getpid()])
            give(self.place, ACCOUNTING)
            _make_room_for_the_guard(self.place, properties)
        except BaseException:
            self.guard.end()
            raise

    def _where_the_guard_is(self) -> Place:
        place = places.place_of(self.guard.pid)
        if os.path.basename(place.path) != self.name:
            raise UnitError(self.name, "start", f"our process is in {place.path} afterwards", "report this")
        return place

    @property
    def fd(self) -> int:
        """Readable once the guard has ended."""
        return self.guard.fd

    @property
    def lost(self) -> bool:
        """Whether the guard has ended without us."""
        return self.guard.ended()

    def revoked(self) -> bool:
        """Whether the scope has been stopped from outside, or killed as a whole, or that is under way."""
        if self.lost:
            return True
        with contextlib.suppress(Error), Manager.connect(user=self._user, deadline=_ASK_BOUND) as manager:
            if manager.active_state(self.name, deadline=_ASK_BOUND) != "active":
                return True
        # systemd signals all of a unit before it answers the next call: the guard may only have to die yet.
        return self.guard.ended(within=_DYING)

    def release(self) -> None:
        """End the guard and remove its leaf: systemd collects the scope once it is empty. Idempotent."""
        self.guard.end()
        leaf, end = os.path.join(self.place.directory, names.GUARD), time.monotonic() + REMOVE_BOUND
        while os.path.isdir(leaf) and time.monotonic() < end:
            try:
                os.rmdir(leaf)
            except FileNotFoundError:
                return
            except OSError:  # the guard is being buried
                time.sleep(_LOOK)

    def forget(self) -> None:
        """Close what is ours, and leave the scope as it is: in a forked child it is the parent's."""
        self.guard.forget()


def _with_room_to_start(wanted: Property) -> Property:
    """A limit in which not even the guard could live is that much larger for the unit; the run has its own."""
    name, (signature, value) = wanted
    room = _GUARD_ROOM[name][1] if name in _GUARD_ROOM else 0
    return (name, (signature, value + room)) if name in _GUARD_ROOM and value <= room else wanted


def _make_room_for_the_guard(place: Place, properties: list[Property]) -> None:
    """Raise what the kernel enforces on the unit by the guard's share, so that the run meets its own limit first.

    systemd shows what was asked for, and would write it again at a reload; the run has it in its own cgroup anyway.
    """
    for name, (_signature, value) in properties:
        if name in _GUARD_ROOM and value != _INFINITE:
            file, room = _GUARD_ROOM[name]
            with contextlib.suppress(OSError):  # no such controller
                exchange(place, file, str(value + room))
