"""The life of one run, as a table: (state, event) → (state, actions). No clock, no fd, no I/O.

    new → starting → running → stopping → killing → draining → ended
                        │         ╰ a limit was hit: signal sent, grace running
                        ╰ the main process is alive (or, with strays="wait", any process of the cgroup)

Order is law: kill before closing pipes, empty before usage, usage before rmdir, rmdir before `ended`. It holds in any
order of events since there is one way out: through KILL (which finds nothing to do where nothing is left), EMPTY, the
drain, and the three actions CLOSE, MEASURE, REMOVE. Every state but `ended` has a bound by which its driver must bring
the next event: grace, kill bound, drain bound.
"""

from __future__ import annotations

from enum import StrEnum, auto
from functools import cache
from typing import Final

from pinfold.result import Outcome


class State(StrEnum):  # a str's hash is C and kept, an Enum's is Python: these are looked up in every run
    """Where a run is."""

    NEW = auto()
    STARTING = auto()
    RUNNING = auto()
    STOPPING = auto()
    KILLING = auto()
    DRAINING = auto()
    ENDED = auto()


class Event(StrEnum):
    """What can happen to it."""

    START = auto()
    SPAWNED = auto()
    SPAWN_FAILED = auto()
    EXITED = auto()  # the main process has been reaped
    EMPTY = auto()  # it has been reaped and the cgroup says `populated 0`
    TIMED_OUT = auto()
    IDLE_TIMED_OUT = auto()
    CPU_TIMED_OUT = auto()
    OUTPUT_EXCEEDED = auto()
    STALLED = auto()  # stuck at its memory limit
    REVOKED = auto()  # the manager stops the unit that it is in
    CANCELED = auto()  # asked to stop: signal, grace, kill
    ABORTED = auto()  # asked to stop at once
    GRACE_OVER = auto()
    STILL_POPULATED = auto()  # a while after a kill
    GAVE_UP = auto()  # the kill bound is over
    DRAINED = auto()  # every reader has seen the end of its stream
    DRAIN_OVER = auto()  # somebody outside still holds a pipe end


class Action(StrEnum):
    """What the driver has to do."""

    SPAWN = auto()
    WATCH_EMPTY = auto()  # the main process is gone, descendants may stay: wait for `populated 0`
    TERMINATE = auto()  # the signal to every process, and the grace timer
    KILL = auto()  # name the strays, cgroup.kill, and the timers of the kill loop
    KILL_EACH = auto()  # freeze, SIGKILL each by pidfd, thaw
    NAME_STUCK = auto()
    DRAIN = auto()
    NAME_HELD = auto()
    CLOSE = auto()
    MEASURE = auto()
    REMOVE = auto()


Step = tuple[State, tuple[Action, ...]]

_OUTCOMES: Final[dict[Event, Outcome]] = {
    Event.TIMED_OUT: "timed_out",
    Event.IDLE_TIMED_OUT: "idle_timed_out",
    Event.CPU_TIMED_OUT: "cpu_timed_out",
    Event.OUTPUT_EXCEEDED: "output_exceeded",
    Event.STALLED: "oom_killed",
    Event.REVOKED: "canceled",
    Event.CANCELED: "canceled",
    Event.ABORTED: "canceled",
}
CAUSES: Final = frozenset(_OUTCOMES)
_FINISH: Final = (Action.CLOSE, Action.MEASURE, Action.REMOVE)


@cache
def table(*, grace: bool, wait: bool) -> dict[tuple[State, Event], Step]:
    """The transitions. `grace`: signal before the kill. `wait`: descendants may outlive the main process.

    A pair that is not in the table changes nothing: the event came too late to matter.
    """
    s, e, a = State, Event, Action
    kill: Step = (s.KILLING, (a.KILL,))
    stop: Step = (s.STOPPING, (a.TERMINATE,)) if grace else kill
    drain: Step = (s.DRAINING, (a.DRAIN,))
    out: dict[tuple[State, Event], Step] = {
        (s.NEW, e.START): (s.STARTING, (a.SPAWN,)),
        (s.STARTING, e.SPAWNED): (s.RUNNING, ()),
        (s.STARTING, e.SPAWN_FAILED): kill,
        (s.RUNNING, e.EXITED): (s.RUNNING, (a.WATCH_EMPTY,)) if wait else kill,
        (s.RUNNING, e.EMPTY): kill,
        # Descendants get the rest of the grace when the main process obeys first.
        (s.STOPPING, e.EXITED): (s.STOPPING, (a.WATCH_EMPTY,)),
        (s.STOPPING, e.EMPTY): kill,
        (s.STOPPING, e.GRACE_OVER): kill,
        (s.STOPPING, e.ABORTED): kill,
        (s.STOPPING, e.OUTPUT_EXCEEDED): kill,
        (s.STOPPING, e.STALLED): kill,
        (s.STOPPING, e.REVOKED): kill,
        (s.KILLING, e.STILL_POPULATED): (s.KILLING, (a.KILL_EACH,)),
        (s.KILLING, e.EMPTY): drain,
        (s.KILLING, e.GAVE_UP): (s.DRAINING, (a.NAME_STUCK, a.DRAIN)),
        (s.DRAINING, e.DRAINED): (s.ENDED, _FINISH),
        (s.DRAINING, e.DRAIN_OVER): (s.ENDED, (a.NAME_HELD, *_FINISH)),
    }
    for cause in CAUSES:
        # Whoever is stuck for memory cannot answer a signal; and systemd has sent its own before it revokes.
        out[s.RUNNING, cause] = kill if cause in (e.ABORTED, e.STALLED, e.REVOKED) else stop
        # Before it is running there is nothing to be gentle with.
        out[s.NEW, cause] = out[s.STARTING, cause] = kill
    return out


class Lifecycle:
    """One run's way through the table."""

    __slots__ = ("_table", "cause", "exited", "exited_first", "signaled_first", "state")

    def __init__(self, *, grace: bool = False, wait: bool = False) -> None:
        self._table = table(grace=grace, wait=wait)
        self.state = State.NEW
        self.cause: Event | None = None
        self.exited = self.exited_first = self.signaled_first = False

    def on(self, event: Event) -> tuple[Action, ...]:
        """Take an event; the actions are to be done now, in their order."""
        step = self._table.get((self.state, event))
        if event is Event.EXITED:
            self.exited = True
        if step is None:
            return ()
        if self.cause is None and event in CAUSES:
            self.cause, self.exited_first = event, self.exited
        self.state, actions = step
        if Action.TERMINATE in actions:
            self.signaled_first = True
        return actions

    def cancel(self) -> None:
        """From another thread that kills the run without asking it: for the outcome, if it had none."""
        self.cause = self.cause or Event.ABORTED

    def outcome(self, returncode: int | None, *, own_oom: bool = False) -> Outcome:
        """Why it ended, consistent with the main process' status (negative: a signal; None: nobody knows).

        `own_oom`: the kernel killed processes of it at its own memory limit.

        A limit and the exit can fall on the same moment. The exit wins if its status was there before the kill: with
        no signal sent first, whoever did not die of SIGKILL had ended by itself.
        """
        by_itself: Outcome = "lost" if returncode is None else "exited" if returncode >= 0 else "signaled"
        if self.cause is None:
            return "oom_killed" if own_oom and returncode == -9 else by_itself
        undisputed = self.exited_first or self.signaled_first or self.cause in (Event.OUTPUT_EXCEEDED, Event.REVOKED)
        if undisputed or returncode in (None, -9):
            return _OUTCOMES[self.cause]
        return by_itself
