"""One run as far as its main process goes: what is kept of it, and how its end is noticed.

Nothing here waits. What the command controls is not read before it has been killed.
"""

from __future__ import annotations

import contextlib
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator

from pinfold.backend import Backend
from pinfold.errors import SpawnError
from pinfold.lease import record
from pinfold.runs.ending import Ending
from pinfold.runs.lifecycle import Lifecycle
from pinfold.runs.limiting import AppliedLimits
from pinfold.runs.loop import Handler, Loop, clock
from pinfold.runs.plan import Plan
from pinfold.runs.reap import remembered
from pinfold.runs.remains import Heap
from pinfold.runs.states import RECORD_AFTER, Event
from pinfold.runs.stdio import Stdio
from pinfold.runs.strays import Naming
from pinfold.spawn import lent, start
from pinfold.spawn.start import Child
from pinfold.typed import TYPE_CHECKING
from pinfold.units import INFINITY

if TYPE_CHECKING:
    from typing import Final


NO_WORK: Final[Iterator[None]] = iter(())
_OF_A_STOP: Final = (-signal.SIGTERM, -signal.SIGKILL, -signal.SIGHUP)


class MainProcess(ABC):
    """One run: its descriptors, the kernel's answers, and the Ending that they are written to."""

    def __init__(self, backend: Backend, plan: Plan, loop: Loop, heap: Heap,
                 on_end: Callable[[], None] | None = None) -> None:  # fmt: skip
        """Take note of everything; nothing is opened before `begin`. `on_end`: called once, at its end.

        `heap`: what others have left to be cleared. Without `on_end` a run of its kind is left there too.
        """
        self._backend, self.plan, self._loop, self._heap, self._on_end = backend, plan, loop, heap, on_end
        self._may_leave = on_end is None
        self.life = Lifecycle(plan.bounds, wait=plan.wait, unit=plan.asked.unit is not None or backend.unit_per_run)
        self.ending = Ending()
        self.ending.io = self.io = Stdio()
        self.child = Child()
        self.begun = False  # somebody has to end it
        self.ended = False  # killed, drained, measured, removed, closed
        self.failure: BaseException | None = None
        self.scheduled = INFINITY
        self._events: deque[Event] = deque()
        self._taking = False
        self._reaped = self._watching = False
        self.shares = False  # until its exec, the child shares more with us than memory
        self._limits: AppliedLimits | None = None
        self._naming: Naming | None = None
        self._work_left = NO_WORK  # for `_work`
        self._began = self._killed_at = 0.0
        self._bytes_at_kill = 0
        self._unit_fd = -1

    # ---- events ----------------------------------------------------------------------------------------------

    @abstractmethod
    def take(self, event: Event) -> None:
        """Queue an event, and work off the queue."""

    def add(self, fd: int, mask: int, handler: Handler) -> None:
        """Have the loop call a handler of this run's."""
        self._loop.add(fd, mask, handler, self)

    def _tell_end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    @property
    def deadline(self) -> float:
        """When it wants to be told that time has passed."""
        return self.life.deadline

    def expire(self, now: float) -> None:
        """Take one timer that has gone off."""
        if not self.ended and (event := self.life.due(now)) is not None:
            self.take(event)

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """Something was raised while it was driven."""

    # ---- its end, and who asked for it ---------------------------------------------------------

    def _look_for_exit(self) -> Event | None:
        """Whether the main process has ended, and whether it ever was the command."""
        if not self._reap():
            return None
        if (error := start.failure(self.child, self.plan.command, self.ending.scope.cgroup.path)) is not None:
            self._refused(error)
            return Event.SPAWN_FAILED
        # Before it counts as a death of its own; not for one that we have caused. Without a record it is in no list.
        recorded = not self._may_leave or clock() - self._began > RECORD_AFTER
        if self.life.cause is None and (recorded or self.ending.returncode in _OF_A_STOP):
            self._ask_who_canceled()
        return Event.EXITED

    def _refused(self, error: SpawnError) -> None:
        self.ending.error, self.ending.pid, self.ending.returncode = error, None, None
        if self._limits is not None:
            error.advice = self._limits.advice(error) or error.advice

    def _reap(self) -> bool:
        """Whether the main process has ended, and been collected."""
        if self._reaped:
            return True
        if self.child.pid > 0:
            try:
                status = self.child.reap()
                if status is None:
                    return False
            except ChildProcessError:
                status = remembered(self.child.pidfd)
            self.ending.returncode = status
            self._loop.drop(self.child.pidfd)
        self._reaped = True
        self.child.close()
        self._let_go()
        return True

    def _let_go(self) -> bool:
        """Close, and put back, what the child has its own of by now. False: it has not come that far."""
        done = True
        if self.io.for_child:
            done = self._reaped or self.child.wait_detached(0)
            if done:
                lent.take_back()
                self.io.close_for_child()
        if self.shares:
            if self._reaped or self.child.wait_exec(0):
                start.settle(self.child, self.plan.command)
                if self._limits is not None:
                    self._limits.restore_cpu()
                self.shares = False  # last: other threads look at it
            else:
                done = False
        return done

    def signal_main(self, number: int) -> None:
        """Send a signal to the main process, if it is still there."""
        if not self._reaped and self.child.pid > 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.child.pidfd, number)

    def _ask_who_canceled(self) -> None:
        """Whether somebody outside has asked for the end of a run whose main process has ended."""
        scope = self.ending.scope
        with contextlib.suppress(OSError):
            if record.attribute(scope.cgroup.dirfd, record.CANCELED) is not None:
                self._events.appendleft(Event.REVOKED)
                return
        # systemd ends a scope by signals to all in it, in no order: it has to be asked, by a call of the bus.
        if self.ending.returncode in _OF_A_STOP and scope.revocable is not None:
            self._ask_the_manager()

    def _ask_the_manager(self) -> None:
        revocable = self.ending.scope.revocable
        if revocable is not None and not self.life.asking:

            def ask() -> Handler:
                answer = Event.REVOKED if revocable.revoked() else Event.NOT_REVOKED
                return lambda: self.take(answer)

            self.life.asking = self._loop.aside(ask, self)

    def _forget_unit(self) -> None:
        """Look no more at our process in the scope. Before it is ended by us. Idempotent."""
        fd, self._unit_fd = self._unit_fd, -1
        if fd >= 0:
            self._loop.drop(fd, self)  # it is that of the fold's other runs, too
