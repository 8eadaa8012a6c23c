"""What the actions of the lifecycle do to one run, and what they report.

None of them waits, and none reads what the command controls before it has been killed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from types import GeneratorType

from pinfold.backend import Backend
from pinfold.cgroup import kill
from pinfold.errors import CgroupError, SpawnError
from pinfold.lease import record
from pinfold.runs.ending import Ending
from pinfold.runs.lifecycle import Lifecycle
from pinfold.runs.limiting import AppliedLimits
from pinfold.runs.loop import PRIORITY, Handler, Loop, clock
from pinfold.runs.plan import Plan
from pinfold.runs.reap import collect, collect_orphans, later, remembered
from pinfold.runs.remains import Heap, Remains, clear_all
from pinfold.runs.states import LOOK_EXEC, LOOK_MEMORY, RECORD_AFTER, Event
from pinfold.runs.stdio import Stdio
from pinfold.runs.strays import Naming
from pinfold.spawn import lent, shared, start
from pinfold.spawn.start import Child
from pinfold.typed import TYPE_CHECKING
from pinfold.units import INFINITY

if TYPE_CHECKING:
    from typing import Final


_SLICE: Final = 0.002  # seconds of work between two looks at the clock, and at other runs
_LISTING: Final = 0.005  # for the strays, before the kill
_LONG: Final = 0.01  # a shorter run has waited for nothing that is worth measuring
_LOOK: Final = 0.001
_NO_WORK: Final[Iterator[None]] = iter(())
_OF_A_STOP: Final = (-signal.SIGTERM, -signal.SIGKILL, -signal.SIGHUP)


class Actions(ABC):
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
        self.ended = False  # killed, drained, measured, removed, closed
        self.failure: BaseException | None = None
        self.scheduled = INFINITY
        self._events: deque[Event] = deque()
        self._taking = False
        self._reaped = self._watching = False
        self.shares = False  # until its exec, the child shares more with us than memory
        self._limits: AppliedLimits | None = None
        self._naming: Naming | None = None
        self._work_left = _NO_WORK  # for `_work`
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

    def _changed(self) -> None:
        event = self._look()
        if event is not None:
            self.take(event)

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

    # ---- the main process, and who asked for its end ---------------------------------------------------------

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

    # ---- the actions -----------------------------------------------------------------------------------------

    def _spawn(self) -> Event:
        ending, command, cgroup = self.ending, self.plan.command, self.ending.scope.cgroup
        relaxed = self._limits is not None and self._limits.relax_for_exec()
        self.shares = relaxed or command.identity.changes
        try:
            start.start(self.child, command, self.plan.steps, self.io.child, cgroup.dirfd,
                        vfork="memory" in ending.scope.controllers)  # fmt: skip
        except SpawnError as error:
            return self._never_started(error)
        if self.child.pid < 0:
            failed = start.failure(self.child, command, cgroup.path)
            assert failed is not None
            return self._never_started(failed)
        ending.pid, ending.moved = self.child.pid, bool(self.child.moved)
        clear_all(self._heap)  # the child is on its way: what is done now costs nobody time
        self._backend.prepare()
        if self._limits is not None and self._limits.watch(self._began):
            self.life.look_at(Event.MEMORY_LOOK, clock() + LOOK_MEMORY)
        if not self._let_go():
            self.life.look_at(Event.EXEC_LOOK, clock() + LOOK_EXEC)
        return Event.SPAWNED

    def _never_started(self, error: SpawnError) -> Event:
        self._reap()
        self._refused(error)
        return Event.SPAWN_FAILED

    def _refused(self, error: SpawnError) -> None:
        self.ending.error, self.ending.pid, self.ending.returncode = error, None, None
        if self._limits is not None:
            error.advice = self._limits.advice(error) or error.advice

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

    def _look_exec(self) -> None:
        if self._let_go():
            self.life.look_no_more(Event.EXEC_LOOK)

    def _record(self) -> None:
        """Say on its cgroup what it is. A kernel that takes no such record is no reason not to run."""
        ending = self.ending
        with contextlib.suppress(OSError):
            run = record.RunRecord(ending.pid, ending.started_at, self.plan.labels)
            record.write(ending.scope.cgroup.dirfd, record.RUN, run)

    def _look_cpu(self) -> Event | None:
        used = self.ending.scope.cgroup.cpu_usec() / 1e6
        return Event.CPU_TIMED_OUT if self.life.used_cpu(used, os.cpu_count() or 1, clock()) else None

    def _look_memory(self) -> Event | None:
        return Event.STALLED if self._limits is not None and self._limits.look(clock()) else None

    def _look(self) -> Event | None:
        """Ask the kernel. Nobody is left only once it says `populated 0` and the main process has been reaped."""
        if not self._reaped:
            return self._look_for_exit() if self._killed_at else None
        return Event.POPULATED if self.ending.scope.cgroup.populated() else Event.EMPTY

    def _watch_empty(self) -> None:
        self._watching = True
        self.add(self.ending.scope.cgroup.events_fd, PRIORITY, self._changed)

    def _terminate(self) -> None:
        cgroup, number = self.ending.scope.cgroup, self.plan.bounds.signal
        # The main process once, by its pidfd: a program may take a second request for "now".
        self.signal_main(number)
        self._work_left = itertools.chain(
            kill.signal_each(cgroup, number, but=self.ending.pid),
            # A stopped process would keep the signal pending until the kill; as systemd does.
            kill.signal_each(cgroup, signal.SIGCONT, rounds=1),
        )
        self._work()

    def _name(self) -> Event | None:
        cgroup, ending = self.ending.scope.cgroup, self.ending
        if self._reaped and not cgroup.populated():
            return Event.EMPTY
        pids, ending.unlisted_cgroups = cgroup.list_pids(clock() + _LISTING)
        left = [pid for pid in pids if self._reaped or pid != ending.pid]
        ending.strays = len(left)
        if not left:
            return Event.NAMED
        naming = self._naming = Naming(left)

        def read() -> Handler:
            naming.read_argv()
            return lambda: self.take(Event.NAMED)

        return None if naming.may_have_argv and self._loop.aside(read, self) else Event.NAMED

    def _kill(self) -> None:
        self._killed_at = clock()
        self._bytes_at_kill = self.io.byte_count
        self.ending.scope.cgroup.kill()
        self.signal_main(signal.SIGKILL)  # it may have left the cgroup
        if self._naming is not None:
            self.ending.stray_processes = self._naming.strays()
        if self._limits is not None:
            self._limits.relax_cpu()

    def _kill_each(self) -> None:
        self._leave_work()
        self._work_left = kill.kill_each(self.ending.scope.cgroup)
        self._work()

    def _work(self) -> None:
        until = clock() + _SLICE
        for _ in self._work_left:
            if (now := clock()) >= until:
                self.life.look_at(Event.WORK_DUE, now + _LOOK)
                return

    def _leave_work(self) -> None:
        """Give up what is left of it, while its cgroup is open: the tree may be frozen for it. Idempotent."""
        work, self._work_left = self._work_left, _NO_WORK
        if isinstance(work, GeneratorType):
            with contextlib.suppress(CgroupError):
                work.close()

    def _name_stuck(self) -> None:
        stuck = set(self.ending.scope.cgroup.list_pids(clock() + _LISTING)[0])
        if not self._reaped:
            stuck.add(self.child.pid)
        self.ending.stuck_pids = sorted(stuck)

    def _drain(self) -> Event | None:
        ending = self.ending
        ending.emptied = not ending.stuck_pids
        self._leave_work()
        if self._watching:
            self._watching = False
            self._loop.drop(ending.scope.cgroup.events_fd)
        if self._killed_at and ending.emptied:
            ending.kill_to_empty = clock() - self._killed_at
        if self.io.feed is not None:
            self.io.feed.close()
        return self._take_all()

    def _take_all(self) -> Event | None:
        if not self.io.outputs:
            return Event.DRAINED
        self.io.take_all()
        return Event.DRAINED if self.io.drained else None

    def _look_drain(self) -> Event:
        # The last holder may have gone since we looked.
        return self._take_all() or (Event.SLOW if self.io.receiver_is_slow else Event.HELD)

    def _name_held(self) -> None:
        self.ending.pipe_held = any(output.held for output in self.io.outputs)
        self.ending.receiver_stalled = self.io.receiver_is_slow

    def _close(self) -> None:
        self.io.close()
        if self._killed_at:
            self.ending.bytes_after_kill = self.io.byte_count - self._bytes_at_kill

    def _measure(self) -> None:
        ending = self.ending
        if self._may_leave and ending.emptied and not self._killed_at and self._limits is None:
            self._heap.append(Remains(self._backend, ending, pressure=clock() - self._began > _LONG))
            return
        ending.accounts = ending.scope.cgroup.read_accounts(pressure=clock() - self._began > _LONG)
        if self._limits is not None:
            stalled = self.life.cause is Event.STALLED
            ending.events = self._limits.evaluate(ending.accounts, stall=stalled)
            ending.parts = self._limits.parts

    def _remove(self) -> Event | None:
        if self.ending.rest is not None:
            return Event.REMOVED
        now = clock()
        if self.ending.scope.cgroup.remove_until(now + _SLICE):
            self.ending.removed = True
        elif self.ending.emptied:
            self.life.look_at(Event.REMOVE_AGAIN, now + _LOOK)
            return None
        return Event.REMOVED

    def _release(self) -> Event | None:
        self._forget_unit()

        def release() -> Handler:
            self._give_back()
            return lambda: self.take(Event.RELEASED)

        if self._loop.aside(release, self):
            return None
        self._give_back()
        return Event.RELEASED

    def _give_back(self) -> None:
        self._backend.release(self.ending.scope, removed=self.ending.removed)

    def _end(self) -> None:
        ending, life = self.ending, self.life
        ending.kill_rounds, ending.cause = life.rounds, life.cause
        own_oom = ending.events is not None and ending.events.oom_by == "own"
        ending.outcome = "spawn_failed" if ending.error else life.outcome(ending.returncode, own_oom=own_oom)
        if ending.scope.own_unit is None and ending.rest is None:
            self._give_back()
        self._close_all()
        self._tell_end()

    def _close_all(self) -> None:
        """Close what is ours, and be over. Idempotent."""
        self.io.close()
        ending = self.ending
        if hasattr(ending, "scope"):
            self._leave_work()
            if self._watching:
                self._watching = False
                self._loop.drop(ending.scope.cgroup.events_fd)
            self._forget_unit()
            collect_orphans(ending.scope.cgroup.path)
            if ending.rest is None:
                ending.scope.cgroup.close()
        self._loop.forget(self)
        collect()
        if not self._reaped and self.child.pid > 0:
            self._loop.drop(self.child.pidfd)
            later(self.child)
        if self.plan.command.identity.changes:
            shared.forget(self.child)
        ending.duration = clock() - self._began
        self.ended = True
