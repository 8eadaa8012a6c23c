"""Loop: waits for descriptors and deadlines, of one run or of many, and tells each what has come.

The only room with a clock. A run that is driven in its caller's thread has a loop to itself, on poll(2), which needs no
descriptor; the started runs of a fold share one, on epoll(7), in a thread of its own.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Callable

from pinfold.fds import clear_of_stdio, wake
from pinfold.typed import TYPE_CHECKING, Protocol
from pinfold.units import INFINITY

if TYPE_CHECKING:
    from typing import Any, Final


READABLE: Final = select.POLLIN
WRITABLE: Final = select.POLLOUT
PRIORITY: Final = select.POLLPRI
_AT_ONCE: Final = 64  # events; Python makes room for a thousand
_LONGEST: Final = 3600.0  # seconds
_OLD_ENTRIES: Final = 64

clock = time.monotonic
Handler = Callable[[], None]


class Driven(Protocol):
    """A run, as its loop sees it."""

    scheduled: float  # the entry that the loop has for it; INFINITY: none

    @property
    def deadline(self) -> float:
        """When it wants to be told that time has passed."""

    def expire(self, now: float) -> None:
        """Take one timer that has gone off."""

    def fail(self, error: BaseException) -> None:
        """Something was raised while it was driven; it is not the others' matter."""


class Loop:
    """Descriptors with their handlers, and the deadlines in their order. Not thread-safe but for `call` and `aside`."""

    def __init__(self) -> None:
        self._poll: Any = select.poll()
        self._handlers: dict[int, list[tuple[Handler, Driven | None]]] = {}
        self._runs: dict[int, Driven] = {}  # those that have a deadline, by id
        self._due: list[tuple[float, int]] = []  # their deadlines, sorted; and old ones, which `_runs` knows better
        self._calls: deque[tuple[Handler, Driven | None]] = deque()
        self._wake = -1
        self._until = -INFINITY  # when the present wait ends
        self._lock = threading.Lock()  # guards _wake, and _due against being rebuilt while it is added to

    def _wait(self, seconds: float) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = self._poll.poll(seconds * 1000)
        return found

    # ---- descriptors -----------------------------------------------------------------------------------------

    def add(self, fd: int, mask: int, handler: Handler, owner: Driven | None = None) -> None:
        """Call `handler` whenever `fd` is ready. More than one run may watch an fd, for the same."""
        if (others := self._handlers.get(fd)) is not None:
            others.append((handler, owner))
            return
        self._handlers[fd] = [(handler, owner)]
        self._poll.register(fd, mask)

    def drop(self, fd: int, owner: Driven | None = None) -> None:
        """Forget an fd, before it is closed; with an owner, for that one alone. One that is not watched is no error."""
        found = self._handlers.get(fd)
        if found is None:
            return
        if owner is not None:
            found[:] = [one for one in found if one[1] is not owner]
        if owner is None or not found:
            del self._handlers[fd]
            try:
                self._poll.unregister(fd)
            except (OSError, ValueError):  # closed behind our back, or with the loop
                return

    def drop_all(self, owner: Driven) -> None:
        """Forget a run with all that is watched for it."""
        for fd in [fd for fd, found in self._handlers.items() if any(of is owner for _, of in found)]:
            self.drop(fd, owner)
        self.forget(owner)

    def watches(self, fd: int) -> bool:
        """Whether this fd has been added."""
        return fd in self._handlers

    # ---- deadlines -------------------------------------------------------------------------------------------

    def schedule(self, run: Driven) -> None:
        """Take note of its deadline, which may have come nearer. One that has gone further away is seen when due."""
        at = run.deadline
        if at < run.scheduled:
            run.scheduled = at
            try:
                self._runs[id(run)] = run
                with self._lock:
                    insort(self._due, (at, id(run)))
            except BaseException:  # a signal handler's: it would wait for an entry that is not there
                run.scheduled = INFINITY
                raise

    def forget(self, run: Driven) -> None:
        """It has ended."""
        self._runs.pop(id(run), None)
        run.scheduled = INFINITY
        if len(self._due) > 2 * len(self._runs) + _OLD_ENTRIES:
            with self._lock:
                self._due = [(at, key) for at, key in self._due if key in self._runs]

    def _expire(self, now: float) -> None:
        due = []
        while self._due and self._due[0][0] <= now:
            at, key = self._due.pop(0)
            run = self._runs.get(key)
            if run is not None and at == run.scheduled:  # else a nearer one has replaced it, or it has ended
                run.scheduled = INFINITY
                due.append(run)
        for run in due:  # one event each, so that none keeps the others waiting
            self._call(lambda run=run: run.expire(now), run)  # type: ignore[misc]
            self.schedule(run)

    # ---- turning ---------------------------------------------------------------------------------------------

    def turn(self, at_most: float = _LONGEST) -> None:
        """Wait for what comes next, and tell whom it is for."""
        self._until = now = clock()
        first = self._due[0][0] if self._due else INFINITY
        self._until = min(first, now + at_most)
        if self._due and self._due[0][0] < first:  # scheduled by another thread just before it could see `_until`
            self._until = self._due[0][0]
        ready = self._wait(0.0 if self._calls else max(0.0, self._until - now))
        self._until = -INFINITY
        self._tell(ready)
        now = clock()
        if self._due and self._due[0][0] <= now:
            self._tell(self._wait(0.0))  # an exit that is there already wins over the limit it came close to
            self._expire(now)

    def _tell(self, ready: list[tuple[int, int]]) -> None:
        for fd, _mask in ready:
            # An earlier handler of this round may have dropped it.
            for handler, owner in tuple(self._handlers.get(fd, ())):
                self._call(handler, owner)

    def _call(self, handler: Handler, owner: Driven | None) -> None:
        handler()
        if owner is not None:
            self.schedule(owner)

    # ---- from other threads ----------------------------------------------------------------------------------

    def call(self, handler: Handler, owner: Driven | None = None) -> None:
        """Have the loop's thread call this. From any thread; forgotten if the loop is closed."""
        with self._lock:
            self._calls.append((handler, owner))
            if self._wake >= 0:
                wake(self._wake)

    def wake_by(self, at: float) -> None:
        """Have the loop look at its deadlines if its present wait is longer than that."""
        if at < self._until:
            self.call(_nothing)

    def open_wake(self) -> None:
        """Make `call` wake the loop, from now on. Idempotent."""
        if self._wake < 0:
            self._wake = clear_of_stdio(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self.add(self._wake, READABLE, self._take_calls)

    def _take_calls(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        for _ in range(len(self._calls)):
            self._call(*self._calls.popleft())

    def aside(self, work: Callable[[], Handler], owner: Driven) -> bool:
        """Have a thread of its own do something that may wait; the loop calls what it returns.

        False: there is no thread to be had. The thread is a daemon: what it waits for ends with the run, or never.
        """
        self.open_wake()
        thread = threading.Thread(target=lambda: self.call(work(), owner), name="pinfold-aside", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        return True

    def close(self) -> None:
        """Close what is the loop's own; the watched descriptors belong to others. Idempotent."""
        with self._lock:
            wake, self._wake = self._wake, -1
        if wake >= 0:
            self.drop(wake)
            os.close(wake)


class SharedLoop(Loop):
    """A loop for many runs, in a thread of its own. What is raised in one run is that run's.

    What is raised by the loop itself, such as by epoll_wait(2), ends it, and every run in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._poll = select.epoll()
        self._closing = False
        self.failure: Exception | None = None  # what has ended it
        try:
            self.open_wake()
            self._thread = threading.Thread(target=self._turn_on, name="pinfold", daemon=True)
            self._thread.start()
        except BaseException:
            self.close()
            raise

    def _wait(self, seconds: float) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = self._poll.poll(seconds, _AT_ONCE)
        return found

    def _turn_on(self) -> None:
        try:
            while not self._closing:
                self.turn()
        except Exception as error:  # noqa: BLE001  # told to whoever waits for one of the runs
            self.failure = error
            for run in self._owners():
                run.fail(error)

    def _owners(self) -> list[Driven]:
        found = {id(run): run for run in self._runs.copy().values()}
        for watchers in self._handlers.copy().values():
            found.update((id(run), run) for _, run in watchers if run is not None)
        return list(found.values())

    def schedule(self, run: Driven) -> None:
        """As in any loop; if this one has failed, so has the run."""
        super().schedule(run)
        if self.failure is not None:
            run.fail(self.failure)

    def aside(self, work: Callable[[], Handler], owner: Driven) -> bool:
        """As in any loop; False if this one has failed, as it calls nobody any more."""
        return self.failure is None and super().aside(work, owner)

    def _call(self, handler: Handler, owner: Driven | None) -> None:
        try:
            super()._call(handler, owner)
        except Exception as error:  # noqa: BLE001  # told to whoever waits for that run
            if owner is not None:
                owner.fail(error)

    def stop(self) -> None:
        """End the thread, and close everything. Idempotent."""
        self._closing = True
        self.call(_nothing)
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.close()

    def close(self) -> None:
        """Close the epoll instance too. Idempotent."""
        super().close()
        self._poll.close()

    def abandon(self) -> None:
        """In a forked child, which has no such thread: close the copies, and touch nothing that the parent shares."""
        wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)
        self._poll.close()


def _nothing() -> None:
    pass
