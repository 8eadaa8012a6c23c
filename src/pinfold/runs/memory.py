"""A look at a run's memory now and then: what it consists of at its fullest, and whether it is stuck at its limit."""

from __future__ import annotations

from pinfold.cgroup.files import flat_keyed, number, stall_usec
from pinfold.cgroup.group import Cgroup
from pinfold.cgroup.usage import memory_parts
from pinfold.typed import TYPE_CHECKING
from pinfold.units import INFINITY

if TYPE_CHECKING:
    from typing import Final


LOOK: Final = 0.1  # seconds
_STUCK: Final = 0.8  # of the time, in which all its processes waited for memory
_VAIN: Final = 3  # looks in a row; who is being killed may hit the limit a few times more
_FULL: Final = 0.95  # of the limit: reclaim works in batches, and frees a little again and again


class Stall:
    """Whether a cgroup has been stuck for so long: at its memory limit, and hardly anything but waiting for memory.

    Thrashing like that can go on for ever without an OOM kill, as each page that is thrown out makes room for one that
    is read back (psi.rst: `full` is the time in which no process of the cgroup could do anything else).
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._since = self._last = -INFINITY
        self._full = 0

    def look(self, now: float, current: int, ceiling: float, full_usec: int) -> bool:
        """Take one look, in seconds, bytes and microseconds; True once it has been stuck for the whole time."""
        waited, passed = (full_usec - self._full) / 1e6, now - self._last
        stuck = current >= _FULL * ceiling and waited >= _STUCK * passed
        if not stuck:
            self._since = now
        self._last, self._full = now, full_usec
        return stuck and now - self._since >= self._timeout


class MemoryWatch:
    """The looks at one run's memory."""

    def __init__(self, cgroup: Cgroup, stall_timeout: float, start: float) -> None:
        self._cgroup = cgroup
        self._stall = Stall(stall_timeout) if stall_timeout < INFINITY else None
        self._fullest = -1
        self._vain, self._counts = 0, (0, 0)
        self.unkillable = False
        self.parts: dict[str, int] = {}  # of memory.stat, at the fullest look so far
        if self._stall:
            self.look(start)

    def look(self, now: float) -> bool:
        """Whether it is stuck."""
        current = number(self._cgroup.read("memory.current"))
        if current is None:
            return False
        if current > self._fullest:
            self._fullest, self.parts = current, memory_parts(self._cgroup.read("memory.stat") or "")
        if self._in_vain():
            self.unkillable = True
            return True
        if self._stall is None:
            return False
        full = stall_usec(self._cgroup.read("memory.pressure"), "full")
        return full is not None and self._stall.look(now, current, self._ceiling(), full)

    def _in_vain(self) -> bool:
        """Whether the kernel finds nothing to kill at the limit, again and again.

        Root can exempt its processes (oom_score_adj -1000); then they do not die, and fault for ever.
        """
        ooms = flat_keyed(self._cgroup.read("memory.events.local") or "").get("oom", 0)
        kills = flat_keyed(self._cgroup.read("memory.events") or "").get("oom_kill", 0)
        self._vain = self._vain + 1 if ooms > self._counts[0] and kills == self._counts[1] else 0
        self._counts = ooms, kills
        return self._vain >= _VAIN

    def _ceiling(self) -> float:
        limits = (number(self._cgroup.read(name)) for name in ("memory.max", "memory.high"))
        return min((limit for limit in limits if limit is not None), default=INFINITY)
