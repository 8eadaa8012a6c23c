"""Supervision: does what the lifecycle says, for one run, under one epoll.

The lifecycle decides; here are the fds, the clock and the kernel's answers.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from pinfold.backend import Backend, Scope
from pinfold.cgroup import signals
from pinfold.cgroup.files import clear_of_stdio
from pinfold.cgroup.signals import KILL_ROUND
from pinfold.errors import SpawnError
from pinfold.lease import record
from pinfold.result import Stray
from pinfold.runs import force, outside, strays
from pinfold.runs.bounds import DRAIN_BOUND, KILL_BOUND, RECEIVER_BOUND, REMOVE_BOUND, START_BOUND
from pinfold.runs.ceilings import Ceilings
from pinfold.runs.lifecycle import Action, Event, Lifecycle, State
from pinfold.runs.memory import LOOK
from pinfold.runs.pipes import Poller
from pinfold.runs.reap import collect, later, reap
from pinfold.runs.request import Request
from pinfold.runs.stdio import Stdio
from pinfold.spawn.plan import spawn, starts_under_way
from pinfold.units import INFINITY

_LOOK_FIRST: Final = 0.001  # cgroup.events notifies at most once per 10 ms: while killing, look oftener
_LOOK_LAST: Final = 0.01
_CPU_LOOK: Final = 0.01
_LONGEST_WAIT: Final = 3600.0


class Supervision:
    """One run, from its cgroup's mkdir to what its Result is made of. Not thread-safe but for `wanted`."""

    scope: Scope  # from `start` on
    ceilings: Ceilings
    ended = False  # it is all over: killed, drained, measured, removed, closed
    pid: int | None = None
    pidfd = -1
    born_inside = False
    returncode: int | None = None
    error: SpawnError | None = None
    duration = 0.0
    # The receipt, as far as it is known.
    emptied = removed = pipe_held = False
    stray_count = kill_rounds = bytes_after_kill = 0
    stray_processes: Sequence[Stray] = ()
    stuck_pids: Sequence[int] = ()
    kill_to_empty_usec: int | None = None

    _look_at = INFINITY
    _look_pause = _LOOK_FIRST
    _killed_at = 0.0
    _bytes_at_kill = 0
    _start_time = _end_time = 0.0
    _starts_beside: frozenset[object] = frozenset()

    def __init__(self, backend: Backend, request: Request) -> None:
        """Take note of everything; nothing is opened before `start`."""
        self._backend, self._request = backend, request
        self.command, self.policy, self.bounds = request.command, request.policy, request.bounds
        self.life = Lifecycle(grace=self.bounds.grace > 0, wait=request.wait)
        self.io = Stdio()
        self.wanted: deque[Callable[[], None]] = deque()  # what other threads want done in this one
        self.driver = threading.Lock()  # whoever takes it, for good, brings a started run to its end
        self._timers: dict[Event, float] = {}
        self.accounts: dict[str, str] = {}
        self.born: list[tuple[int, int, bool]] = []

    # ---- the loop --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """From start to end. Whatever is raised meanwhile, nothing of the run is left."""
        try:
            self.start()
            self.drive()
        except BaseException:
            self.abort()
            raise

    def start(self) -> None:
        """Start the command. A refusal is no exception here: it is in `error`, and `drive` comes to the end.

        After any exception the caller has to `abort`.
        """
        self.started_at, self._start_time = time.time(), time.monotonic()
        self._request.stdio.open(self.io)
        self._poller = Poller()
        self.scope = self._backend.scope(self._request.asked)
        self.ceilings = Ceilings(self._request.asked, self.scope, self.bounds.stall)
        if self.bounds.cpu < INFINITY:
            self.scope.cgroup.open_accounts()  # cpu.stat must be there, whatever the command does
        self.take(Event.START)

    def drive(self) -> None:
        """Turn until ended. After any exception the caller has to `abort`."""
        while not self.ended:
            self.turn()

    def turn(self) -> None:
        """Wait for what comes next and take it."""
        due = min(self._look_at, min(self._timers.values(), default=INFINITY))
        self._poller.wait(min(max(0.0, due - time.monotonic()), _LONGEST_WAIT))
        if not self.ended and time.monotonic() >= due:
            self._poller.wait(0)  # an exit that is there already wins over the limit it came close to
            if not self.ended:
                self._fire()
        if self.life.state is State.DRAINING and self.io.drained:
            self.take(Event.DRAINED)

    def accept_requests(self, wake: int) -> None:
        """Take from `wanted` whenever `wake`, an fd of the caller's, is readable; it is only read while not ended."""
        self._poller.add(wake, select.EPOLLIN, lambda: self._take_wanted(wake))

    def _take_wanted(self, wake: int) -> None:
        os.read(wake, 8)
        while self.wanted and not self.ended:  # the run may have ended in the same turn: what it is about is closed
            self.wanted.popleft()()

    def abort(self) -> None:
        """Kill and clean up by force; for when an exception has passed through, maybe in the middle of an action."""
        force.end(self)

    def _fire(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_pause = min(2 * self._look_pause, _LOOK_LAST)
            self._look_at = now + self._look_pause
            self._look()
        for event, at in list(self._timers.items()):
            if now >= at and event in self._timers:
                again = self._again(event, now)
                if again > now:
                    self._timers[event] = again
                else:
                    del self._timers[event]
                    self.take(event)

    def _again(self, event: Event, now: float) -> float:
        """When a timer that has gone off is really due; not later than now: it is."""
        if event is Event.IDLE_TIMED_OUT:
            return self._last_output + self.bounds.idle
        if event is Event.CPU_TIMED_OUT:
            left = self.bounds.cpu - self.scope.cgroup.cpu_usec() / 1e6
            return now + max(_CPU_LOOK, left / (os.cpu_count() or 1)) if left > 0 else now
        if event is Event.STALLED:
            return now if self.ceilings.look(now) else now + LOOK
        if event is Event.DRAIN_OVER:
            return now + _LOOK_LAST if self._worth_waiting(now) else now
        return now

    def _worth_waiting(self, now: float) -> bool:
        """Whether a stream that has not ended still may, though no process of the command is left to hold it."""
        if self.io.receiver_is_slow:
            return now < max(self._start_time + self.bounds.timeout, self._end_time) + RECEIVER_BOUND
        return bool(self._starts_beside & starts_under_way()) and now < self._end_time + START_BOUND

    def take(self, event: Event) -> None:
        """Tell the lifecycle, and do what it says."""
        for action in self.life.on(event):
            _DO[action](self)

    # ---- the actions -----------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        io, child = self.io, self.io.child
        self.ceilings.let_start()
        try:
            spawn(self.command, self.policy, self.scope.cgroup, (child[0], child[1], child[2]), self.born,
                  self._request.rlimits)  # fmt: skip
            self.ceilings.hold()
        except SpawnError as error:
            self.error = error
            error.advice = self.ceilings.advice(error) or error.advice
            io.close_for_child()
            self._begin_streams()
            self.take(Event.SPAWN_FAILED)
            return
        self.pid, self.pidfd, self.born_inside = self.born[0]
        self.pidfd = clear_of_stdio(self.pidfd)
        io.close_for_child()
        self._starts_beside = starts_under_way()  # after the closing: one that begins before it has copies
        self._begin_streams()
        self._poller.add(self.pidfd, select.EPOLLIN, self._exited)
        if self.scope.warden is not None:
            self._poller.add(self.scope.warden.fd, select.EPOLLIN, self._lost_warden)
        self._arm()
        self.take(Event.SPAWNED)
        self._backend.prepare()  # the command is running: what is done now costs nobody time
        outside.tell(self.scope, record.Run(self.pid, self.started_at, self._request.labels))
        if not self.bounds.cpu < INFINITY:
            self.scope.cgroup.open_accounts()

    def _begin_streams(self) -> None:
        watched = self.bounds.idle < INFINITY or self.policy.output_exceeded == "kill"
        self.io.watch(self._poller, self._on_bytes if watched else None)

    def _arm(self) -> None:
        bounds, start = self.bounds, self._start_time
        self._last_output = start
        if bounds.timeout < INFINITY:
            self._timers[Event.TIMED_OUT] = start + bounds.timeout
        if bounds.idle < INFINITY:
            self._timers[Event.IDLE_TIMED_OUT] = start + bounds.idle
        if bounds.cpu < INFINITY:
            self._timers[Event.CPU_TIMED_OUT] = start + min(_CPU_LOOK, bounds.cpu)
        if self.ceilings.watch(start):
            self._timers[Event.STALLED] = start + LOOK

    def _on_bytes(self) -> None:
        self._last_output = time.monotonic()
        if self.policy.output_exceeded == "kill" and self.io.exceeded:
            self.take(Event.OUTPUT_EXCEEDED)

    def _lost_warden(self) -> None:
        """Our process in the scope has ended: the scope is being stopped, or somebody wants it dead."""
        warden = self.scope.warden
        assert warden is not None
        self._poller.drop(warden.fd)
        self.take(Event.REVOKED if warden.revoked() else Event.ABORTED)

    def _exited(self) -> None:
        if self.reaped():
            # Before it counts as a death of its own; not for one that we have caused.
            if self.life.cause is None and outside.was_canceled(self.scope, self.returncode):
                self.take(Event.REVOKED)
            self.take(Event.EXITED)
            if self.life.state not in (State.DRAINING, State.ENDED):
                self._look()

    def reaped(self) -> bool:
        """Whether the main process has ended, and been collected."""
        if self.pidfd < 0:
            return True
        try:
            self.returncode = reap(self.pidfd)
        except BlockingIOError:
            return False
        self._poller.drop(self.pidfd)
        pidfd, self.pidfd = self.pidfd, -1
        os.close(pidfd)
        return True

    def _look(self) -> None:
        """Ask the kernel; EMPTY is an event only once it has said `populated 0` and the main process is reaped."""
        if self.pidfd < 0 and not self.scope.cgroup.populated():
            self.take(Event.EMPTY)

    def _watch_empty(self) -> None:
        self._poller.add(self.scope.cgroup.events, select.EPOLLPRI, self._look)

    def _terminate(self) -> None:
        self._timers[Event.GRACE_OVER] = time.monotonic() + self.bounds.grace
        # The main process once, by its pidfd: a program may take a second request for "now".
        self.signal_main(self.bounds.signal)
        signals.signal_all(self.scope.cgroup, self.bounds.signal, but=self.pid)
        # A stopped process would keep the signal pending until the kill; as systemd does.
        signals.signal_all(self.scope.cgroup, signal.SIGCONT, rounds=1)

    def _kill(self) -> None:
        cgroup = self.scope.cgroup
        self._timers.clear()
        if self.pidfd < 0 and not cgroup.populated():
            self.take(Event.EMPTY)
            return
        self._bytes_at_kill = self.io.byte_count
        try:
            self._name_strays()
        finally:
            self._arm_kill()
            self.kill_rounds = 1
            cgroup.kill()
            self.signal_main(signal.SIGKILL)  # it may have left the cgroup
            self.ceilings.lift_cpu()

    def _name_strays(self) -> None:
        cgroup = self.scope.cgroup
        signals.freeze(cgroup)
        left = [pid for pid in cgroup.pids() if self.pidfd < 0 or pid != self.pid]
        self.stray_count = len(left)
        if left:
            self.stray_processes = strays.describe(left)

    def _arm_kill(self) -> None:
        self._killed_at = time.monotonic()
        self._timers[Event.STILL_POPULATED] = self._killed_at + KILL_ROUND
        self._timers[Event.GAVE_UP] = self._killed_at + KILL_BOUND
        self._look_at = self._killed_at + _LOOK_FIRST

    def signal_main(self, number: int) -> None:
        """Send a signal to the main process, if it is still there."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.pidfd, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to its process group. Its pid is its group's, and ours to use until it has been reaped."""
        if self.pidfd >= 0 and self.pid is not None and self.policy.new_session:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _kill_each(self) -> None:
        self.kill_rounds += 1
        signals.kill_each(self.scope.cgroup)
        self._timers[Event.STILL_POPULATED] = time.monotonic() + KILL_ROUND * self.kill_rounds

    def _name_stuck(self) -> None:
        stuck = set(self.scope.cgroup.pids())
        if self.pidfd >= 0 and self.pid is not None:
            stuck.add(self.pid)
        self.stuck_pids = sorted(stuck)

    def _drain(self) -> None:
        self._timers.clear()
        self._look_at = INFINITY
        self._poller.drop(self.scope.cgroup.events)
        now = self._end_time = time.monotonic()
        self.emptied = not self.stuck_pids
        if self._killed_at and self.emptied:
            self.kill_to_empty_usec = round((now - self._killed_at) * 1e6)
        if self.io.feed is not None:
            self.io.feed.close()
        self.io.take_all()
        if self.io.drained:
            self.take(Event.DRAINED)
        else:
            self._timers[Event.DRAIN_OVER] = now + DRAIN_BOUND

    def _name_held(self) -> None:
        self.io.take_all()  # the last holder may have gone since we looked
        self.pipe_held = not self.io.drained

    def _close(self) -> None:
        self.io.close()
        self._timers.clear()
        if self._killed_at:
            self.bytes_after_kill = self.io.byte_count - self._bytes_at_kill

    def _measure(self) -> None:
        self.accounts = self.scope.cgroup.read_accounts()
        self.ceilings.reckon(self.accounts, stall=self.life.cause is Event.STALLED)

    def _remove(self) -> None:
        self.removed = self.scope.cgroup.remove_within(REMOVE_BOUND if self.emptied else 0)
        self.release()

    def release(self) -> None:
        """Close what is ours; once more is no harm."""
        self.io.close()
        if hasattr(self, "scope"):
            self._backend.give_back(self.scope, removed=self.removed)
            self.scope.cgroup.close()
        if hasattr(self, "_poller"):
            self._poller.close()
        collect()
        if self.pidfd >= 0:
            pidfd, self.pidfd = self.pidfd, -1
            later(pidfd)
        self.duration = time.monotonic() - self._start_time
        self.ended = True


_DO: Final[dict[Action, Callable[[Supervision], None]]] = {
    Action.SPAWN: Supervision._spawn,
    Action.WATCH_EMPTY: Supervision._watch_empty,
    Action.TERMINATE: Supervision._terminate,
    Action.KILL: Supervision._kill,
    Action.KILL_EACH: Supervision._kill_each,
    Action.NAME_STUCK: Supervision._name_stuck,
    Action.DRAIN: Supervision._drain,
    Action.NAME_HELD: Supervision._name_held,
    Action.CLOSE: Supervision._close,
    Action.MEASURE: Supervision._measure,
    Action.REMOVE: Supervision._remove,
}
