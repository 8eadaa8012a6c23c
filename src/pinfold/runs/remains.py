"""What is left of a run that has ended by itself: an empty cgroup, with the accounts of what was used.

Reading and removing it takes as long as all else that follows an exit, and nobody waits for it. So it is done while the
next command is on its way; at the latest when the Result is asked for it, or when the fold is closed.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from pinfold.backend import Backend
from pinfold.errors import CgroupError
from pinfold.runs.ending import Ending
from pinfold.runs.states import REMOVE_BOUND
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


class Remains:
    """The cgroup of one run, which nothing is in any more."""

    __slots__ = ("_backend", "_clearing", "_ending", "_pressure")

    def __init__(self, backend: Backend, ending: Ending, *, pressure: bool) -> None:
        self._backend: Final = backend
        self._ending: Ending | None = ending
        self._pressure = pressure
        self._clearing = threading.Lock()
        ending.rest = self.clear

    def clear(self) -> None:
        """Read what it tells, and remove it. Idempotent; what cannot be removed within its bound is left to others."""
        with self._clearing:
            ending, self._ending = self._ending, None
            if ending is None:
                return
            scope = ending.scope
            ending.accounts = scope.cgroup.read_accounts(pressure=self._pressure)
            try:
                ending.removed = scope.cgroup.remove_until(time.monotonic()) or scope.cgroup.remove_within(REMOVE_BOUND)
            except CgroupError:
                ending.removed = False  # the receipt says so, and the fold tries again
            self._backend.release(scope, removed=ending.removed)
            scope.cgroup.close()
            ending.rest = None


Heap = deque[Remains]


def clear_all(heap: Heap) -> None:
    """Clear them all."""
    while heap:
        try:
            remains = heap.popleft()
        except IndexError:  # another thread was quicker
            return
        remains.clear()
