"""Supervision: one run from its beginning to its end, driven by a loop; and by force, if something is raised meanwhile.

The lifecycle decides, actions.py does, the loop has the clock.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

from pinfold.cgroup import kill
from pinfold.runs.actions import Actions
from pinfold.runs.limiting import AppliedLimits
from pinfold.runs.loop import READABLE, Handler, Loop, clock
from pinfold.runs.states import KILL_BOUND, REMOVE_BOUND, Action, Event
from pinfold.typed import TYPE_CHECKING
from pinfold.units import INFINITY

if TYPE_CHECKING:
    from typing import Final


_ATTEMPTS: Final = 100  # to abort; each second exception costs one
_ABORT_LOOK: Final = 0.001


class Supervision(Actions):
    """One run, from its cgroup's mkdir to its Ending. Belongs to the thread that drives its loop."""

    def begin(self) -> None:
        """Make all that the run needs, and start the command. A refusal is in the Ending, not raised here.

        After any exception the caller has to `abort`. Nothing is watched before `attach`.
        """
        self.begun = True
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

    # ---- what happens ----------------------------------------------------------------------------------------

    def _exited(self) -> None:
        event = self._look_for_exit()
        if event is not None:
            self.take(event)

    def _unit_lost(self) -> None:
        """Our process in the scope has ended: the scope is being stopped, or somebody wants it dead."""
        self._forget_unit()
        self._ask_the_manager()
        self.take(Event.ABORTED)

    def _wrote(self) -> None:
        self.life.wrote(clock())
        if self.plan.kill_at_limit and self.io.exceeded:
            self.take(Event.OUTPUT_EXCEEDED)

    # ---- from outside ----------------------------------------------------------------------------------------

    def signal_group(self, number: int) -> None:
        """Send a signal to its process group. Its pid is its group's, and ours to use until it has been reaped."""
        if not self._reaped and self.child.pid > 0 and self.plan.command.attributes.new_session:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child.pid, number)

    def look_exec(self) -> bool:
        """Take back what the child has had of ours, if it has come as far as its exec."""
        if not self.ended:
            self._look_exec()
        return not self.shares

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
