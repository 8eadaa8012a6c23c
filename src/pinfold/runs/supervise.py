"""Supervision: does what the lifecycle says, for one run, and writes down what becomes of it.

The lifecycle decides; here are the descriptors and the kernel's answers; the loop has the clock. No action waits, and
none reads what the command controls before it has been killed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from pinfold.backend import Backend
from pinfold.cgroup import kill
from pinfold.errors import SpawnError
from pinfold.lease import record
from pinfold.runs.ending import Ending
from pinfold.runs.lifecycle import (
    KILL_BOUND,
    LOOK_EXEC,
    LOOK_MEMORY,
    RECORD_AFTER,
    REMOVE_BOUND,
    Action,
    Event,
    Lifecycle,
)
from pinfold.runs.limiting import AppliedLimits
from pinfold.runs.loop import PRIORITY, READABLE, Handler, Loop, clock
from pinfold.runs.plan import Plan
from pinfold.runs.reap import collect, later, remembered
from pinfold.runs.remains import Heap, Remains, clear_all
from pinfold.runs.stdio import Stdio
from pinfold.runs.strays import Naming
from pinfold.spawn import lent, shared, start
from pinfold.spawn.start import Child
from pinfold.units import INFINITY

_SLICE: Final = 0.002  # seconds of work between two looks at the clock, and at other runs
_LISTING: Final = 0.005  # for the strays, before the kill
_LONG: Final = 0.01  # a shorter run has waited for nothing that is worth measuring
_ATTEMPTS: Final = 100  # to abort; each second exception costs one
_ABORT_LOOK: Final = 0.001
_OF_A_STOP: Final = (-signal.SIGTERM, -signal.SIGKILL, -signal.SIGHUP)


class Supervision:
    """One run, from its cgroup's mkdir to its Ending. Belongs to the thread that drives its loop."""

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
        self._shares = False  # until its exec, the child shares more with us than memory
        self._limits: AppliedLimits | None = None
        self._naming: Naming | None = None
        self._work_left: Iterator[None] = iter(())
        self._began = self._killed_at = 0.0
        self._bytes_at_kill = 0
        self._unit_fd = -1

    # ---- the way through -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make all that the run needs, and start the command. A refusal is in the Ending, not raised here.

        After any exception the caller has to `abort`. Nothing is watched before `attach`.
        """
        ending, plan = self.ending, self.plan
        ending.started_at, self._began = time.time(), clock()
        plan.stdio.open(self.io)
        scope = ending.scope = self._backend.scope(plan.asked)
        if scope.ancestor_oom is not None or plan.asked.limits is not None or plan.bounds.stall < INFINITY:
            self._limits = AppliedLimits(plan.asked, scope, plan.bounds.stall)
            ending.limits = self._limits.limits
        if plan.bounds.cpu < INFINITY:
            scope.cgroup.hold("cpu.stat")  # it must be there, whatever the command does
        self.life.started(self._began)
        self.take(Event.START)
        if not self._may_leave and ending.pid is not None:  # others may look for it as soon as its caller has it
            self._record()
            self.life.look_no_more(Event.RECORD_DUE)

    def attach(self) -> None:
        """Have the loop watch it. From here on it belongs to the loop's thread."""
        if self.ended:
            return
        self.io.watch(self, self._wrote if self.plan.watched else None)
        if self.ending.scope.revocable is not None:
            self._unit_fd = self.ending.scope.revocable.fd
            self.add(self._unit_fd, READABLE, self._unit_lost)
        if not self._reaped:
            self.add(self.child.pidfd, READABLE, self._exited)
        self._loop.schedule(self)
        self._loop.wake_by(self.deadline)

    def drive(self, attend: Callable[[Supervision, Loop], None] | None = None) -> None:
        """From the beginning to the end, in this thread. Whatever is raised meanwhile, nothing of the run is left."""
        try:
            self.begin()
            if attend is not None:
                attend(self, self._loop)
            self.attach()
            while not self.ended:
                self._loop.turn()
        except BaseException:
            self.abort()
            raise
        if self.failure is not None:
            raise self.failure

    def take(self, event: Event) -> None:
        """Queue an event, and work off the queue. Events never nest: what an action reports is queued as well."""
        queue = self._events
        queue.append(event)
        if self._taking or self.failure is not None:
            return
        self._taking = True
        try:
            on = self.life.on
            while queue:
                for action in on(queue.popleft(), clock()):
                    found = _DO[action](self)
                    if found is not None:
                        queue.append(found)
        finally:
            self._taking = False

    # ---- for the loop, and for streams -----------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When it wants to be told that time has passed."""
        return self.life.deadline

    def expire(self, now: float) -> None:
        """Take one timer that has gone off."""
        if not self.ended and (event := self.life.due(now)) is not None:
            self.take(event)

    def add(self, fd: int, mask: int, handler: Handler) -> None:
        """Have the loop call a handler of this run's."""
        self._loop.add(fd, mask, handler, self)

    def drop(self, fd: int) -> None:
        """Forget an fd, before it is closed."""
        self._loop.drop(fd)

    def watches(self, fd: int) -> bool:
        """Whether this fd has been added."""
        return self._loop.watches(fd)

    def fail(self, error: BaseException) -> None:
        """Something was raised by this run: end it by force, which takes time, and so a thread of its own."""
        if self.failure is None:
            self.failure = error
            self._loop.drop_all(self)
            if not self._loop.aside(self._abort_aside, self):
                self.abort()
                self._tell_end()

    def _abort_aside(self) -> Handler:
        self.abort()
        return self._tell_end

    def _tell_end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    # ---- what happens ----------------------------------------------------------------------------------------

    def _exited(self) -> None:
        event = self._look_for_exit()
        if event is not None:
            self.take(event)

    def _look_for_exit(self) -> Event | None:
        """Whether the main process has ended, and whether it ever was the command."""
        if not self._reap():
            return None
        if (error := start.failure(self.child, self.plan.command, self.ending.scope.cgroup.path)) is not None:
            self._refused(error)
            return Event.SPAWN_FAILED
        # Before it counts as a death of its own; not for one that we have caused. A younger run is in no list.
        if self.life.cause is None and (self.ending.returncode in _OF_A_STOP or clock() - self._began > RECORD_AFTER):
            self._ask_who_canceled()
        return Event.EXITED

    def _changed(self) -> None:
        event = self._look()
        if event is not None:
            self.take(event)

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

    def _unit_lost(self) -> None:
        """Our process in the scope has ended: the scope is being stopped, or somebody wants it dead."""
        self._forget_unit()
        self._ask_the_manager()
        self.take(Event.ABORTED)

    def _forget_unit(self) -> None:
        """Look no more at our process in the scope. Before it is ended by us. Idempotent."""
        fd, self._unit_fd = self._unit_fd, -1
        if fd >= 0:
            self._loop.drop(fd, self)  # it is that of the fold's other runs, too

    def _wrote(self) -> None:
        self.life.wrote(clock())
        if self.plan.kill_at_limit and self.io.exceeded:
            self.take(Event.OUTPUT_EXCEEDED)

    # ---- the actions -----------------------------------------------------------------------------------------

    def _spawn(self) -> Event:
        ending, command, cgroup = self.ending, self.plan.command, self.ending.scope.cgroup
        relaxed = self._limits is not None and self._limits.relax_for_exec()
        self._shares = relaxed or command.identity.changes
        start.start(self.child, command, self.plan.steps, self.io.child, cgroup.dirfd)
        if self.child.pid < 0:
            self._reap()
            error = start.failure(self.child, command, cgroup.path)
            assert error is not None
            self._refused(error)
            return Event.SPAWN_FAILED
        ending.pid, ending.moved = self.child.pid, bool(self.child.moved)
        clear_all(self._heap)  # the child is on its way: what is done now costs nobody time
        self._backend.prepare()
        if self._limits is not None and self._limits.watch(self._began):
            self.life.look_at(Event.MEMORY_LOOK, clock() + LOOK_MEMORY)
        if not self._let_go():
            self.life.look_at(Event.EXEC_LOOK, clock() + LOOK_EXEC)
        return Event.SPAWNED

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
        if self._shares:
            if self._reaped or self.child.wait_exec(0):
                self._shares = False
                start.settle(self.child, self.plan.command)
                if self._limits is not None:
                    self._limits.restore_cpu()
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
        self._work_left = kill.kill_each(self.ending.scope.cgroup)
        self._work()

    def _work(self) -> None:
        until = clock() + _SLICE
        for _ in self._work_left:
            if (now := clock()) >= until:
                self.life.look_at(Event.WORK_DUE, now + _ABORT_LOOK)
                return

    def _name_stuck(self) -> None:
        stuck = set(self.ending.scope.cgroup.list_pids(clock() + _LISTING)[0])
        if not self._reaped:
            stuck.add(self.child.pid)
        self.ending.stuck_pids = sorted(stuck)

    def _drain(self) -> Event | None:
        ending = self.ending
        ending.emptied = not ending.stuck_pids
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
        self.ending.pipe_held = not self.io.drained

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
        if self.ending.remains is not None:
            return Event.REMOVED
        now = clock()
        if self.ending.scope.cgroup.remove_until(now + _SLICE):
            self.ending.removed = True
        elif self.ending.emptied:
            self.life.look_at(Event.REMOVE_AGAIN, now + _ABORT_LOOK)
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
        if ending.scope.own_unit is None and ending.remains is None:
            self._give_back()
        self._close_all()
        self._tell_end()

    def _close_all(self) -> None:
        """Close what is ours, and be over. Idempotent."""
        self.io.close()
        ending = self.ending
        if hasattr(ending, "scope"):
            if self._watching:
                self._watching = False
                self._loop.drop(ending.scope.cgroup.events_fd)
            self._forget_unit()
            if ending.remains is None:
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

    # ---- from outside ----------------------------------------------------------------------------------------

    def signal_main(self, number: int) -> None:
        """Send a signal to the main process, if it is still there."""
        if not self._reaped and self.child.pid > 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.child.pidfd, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to its process group. Its pid is its group's, and ours to use until it has been reaped."""
        if not self._reaped and self.child.pid > 0 and self.plan.command.attributes.new_session:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child.pid, number)

    def freeze(self) -> bool:
        """Stop the whole tree; `is_frozen` tells when it has come to a stop."""
        if not self.ended:
            self.ending.scope.cgroup.freeze()
        return self.is_frozen()

    def thaw(self) -> bool:
        """Let the tree go on."""
        if not self.ended:
            self.ending.scope.cgroup.thaw()
        return True

    def is_frozen(self) -> bool:
        """Whether all of it has come to a stop, or has ended."""
        return self.ended or self.ending.scope.cgroup.frozen()

    def abort(self) -> None:
        """Kill and clean up by force: for when an exception has passed through, maybe in the middle of an action.

        The lifecycle is not asked, and each step can be done twice: whatever a second exception (another Ctrl-C) cuts
        short is begun again. Waits, up to the bounds of the kill and of the removal.
        """
        until = clock() + KILL_BOUND
        for _ in range(_ATTEMPTS):
            if self.ended:
                return
            with contextlib.suppress(BaseException):  # the first one is on its way to the caller
                self._abort(until)

    def _abort(self, until: float) -> None:
        ending = self.ending
        ending.settle()
        if hasattr(ending, "scope") and not ending.removed:
            cgroup = ending.scope.cgroup
            cgroup.kill()
            while not (self._is_empty() or clock() >= until):
                self.signal_main(signal.SIGKILL)
                for _ in kill.kill_each(cgroup):
                    pass
                time.sleep(_ABORT_LOOK)
            ending.emptied = self._is_empty()
            ending.removed = cgroup.remove_within(REMOVE_BOUND if ending.emptied else 0)
        if hasattr(ending, "scope"):
            self._forget_unit()
            self._give_back()
        self._close_all()

    def _is_empty(self) -> bool:
        return self._reap() and not self.ending.scope.cgroup.populated()


_DO: Final[dict[Action, Callable[[Supervision], Event | None]]] = {
    Action.SPAWN: Supervision._spawn,
    Action.LOOK: Supervision._look,
    Action.WATCH_EMPTY: Supervision._watch_empty,
    Action.LOOK_CPU: Supervision._look_cpu,
    Action.LOOK_MEMORY: Supervision._look_memory,
    Action.LOOK_EXEC: Supervision._look_exec,
    Action.RECORD: Supervision._record,
    Action.TERMINATE: Supervision._terminate,
    Action.NAME: Supervision._name,
    Action.KILL: Supervision._kill,
    Action.KILL_EACH: Supervision._kill_each,
    Action.WORK: Supervision._work,
    Action.NAME_STUCK: Supervision._name_stuck,
    Action.DRAIN: Supervision._drain,
    Action.LOOK_DRAIN: Supervision._look_drain,
    Action.NAME_HELD: Supervision._name_held,
    Action.CLOSE: Supervision._close,
    Action.MEASURE: Supervision._measure,
    Action.REMOVE: Supervision._remove,
    Action.RELEASE: Supervision._release,
    Action.END: Supervision._end,
}
