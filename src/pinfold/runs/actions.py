"""What the actions of the lifecycle do to one run, and what they report.

None of them waits, and none reads what the command controls before it has been killed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from types import GeneratorType

from pinfold.cgroup import kill
from pinfold.errors import CgroupError, SpawnError
from pinfold.lease import record
from pinfold.runs.loop import PRIORITY, Handler, clock
from pinfold.runs.main_process import NO_WORK, MainProcess
from pinfold.runs.reap import collect, collect_orphans, later
from pinfold.runs.remains import Remains, clear_all
from pinfold.runs.states import LOOK_EXEC, LOOK_MEMORY, Event
from pinfold.runs.strays import Naming
from pinfold.spawn import shared, start
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


_SLICE: Final = 0.002  # seconds of work between two looks at the clock, and at other runs
_LISTING: Final = 0.005  # for the strays, before the kill
_LONG: Final = 0.01  # a shorter run has waited for nothing that is worth measuring
_LOOK: Final = 0.001


class Actions(MainProcess):
    """One run, with what the table of states.py has done to it."""

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

    def _changed(self) -> None:
        event = self._look()
        if event is not None:
            self.take(event)

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
        work, self._work_left = self._work_left, NO_WORK
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
