"""The life of one run, as a table: (state, event) → (state, actions). No fd, no I/O, no clock of its own.

    new → starting → running ──────────────────────┬→ settling → naming → killing ─┬→ draining → removing → ended
                        │        limit hit, request│   main process gone:          │
                        ├→ lingering (strays="wait")   is anybody left?            ╰ the kill bound is over
                        ╰→ stopping: signal sent, grace running

Order is law: kill before closing pipes, empty before usage, usage before rmdir, rmdir before `ended`. It holds in any
order of events, since DRAINING is entered only by EMPTY (the kernel's word) or when the kill bound is over, and the
actions after it stand in one row.

No action waits. What takes time is a state with a deadline: this module owns the deadlines, the driver owns the clock
and passes `now`. A driver queues events and takes them one by one (`on`); it wakes at `deadline` and takes what `due`
says. Every state but `ended` that the command does not end by itself has a bound.
"""

from __future__ import annotations

from pinfold.runs.states import (
    AGAIN,
    ANSWERS,
    CAUSES,
    DEADLINES,
    KEPT,
    KILL_ROUND,
    LOOK_FIRST,
    LOOK_LAST,
    MARKED,
    RECEIVER_BOUND,
    RECORD_AFTER,
    Action,
    Bounds,
    Event,
    State,
    Step,
    table,
)
from pinfold.typed import TYPE_CHECKING
from pinfold.units import INFINITY

if TYPE_CHECKING:
    from pinfold.outcomes import Outcome


class Lifecycle:
    """One run's way through the table, with its deadlines.

    `asking`: the service manager has been asked whether it ended the run, and `ended` waits for the answer.
    """

    __slots__ = ("_armed", "_bounds", "_entered", "_last_output", "_start", "_table", "_timers", "asking", "cause",
                 "exited", "exited_first", "rounds", "signaled_first", "state")  # fmt: skip

    def __init__(self, bounds: Bounds = Bounds(), *, wait: bool = False, unit: bool = False) -> None:  # noqa: B008
        self._table = table(grace=bounds.grace > 0, wait=wait, unit=unit)
        self._bounds = bounds
        self.state = self._armed = State.NEW
        self.cause: Event | None = None
        self.exited = self.exited_first = self.signaled_first = self.asking = False
        self.rounds = 0  # kills so far
        self._timers: dict[Event, float] = {}
        self._start = self._last_output = self._entered = 0.0

    def on(self, event: Event, now: float) -> tuple[Action, ...]:
        """Take an event; the actions are to be done now, in their order, and what they report is taken after them."""
        step = self._table[self.state].get(event)
        if event is Event.EXITED:
            self.exited = True
        elif event in CAUSES and self._is_the_cause(event, step):
            self.cause, self.exited_first = event, self.exited
        if event in ANSWERS:
            self.asking = False
        if step is None:
            return ()
        state, actions = step
        if state is not self.state:
            if state in MARKED:
                state, actions = self._mark(state, actions)
            self.state, self._entered = state, now
        elif event in AGAIN:
            self._again(event, now)
        return actions

    def _mark(self, state: State, actions: tuple[Action, ...]) -> Step:
        """Take note of a state that something follows from, as it is entered."""
        if state is State.STOPPING:
            self.signaled_first = True
        elif state is State.KILLING:
            self.rounds = 1
        elif self.asking:
            return State.ASKING, ()
        return state, actions

    def _is_the_cause(self, event: Event, step: Step | None) -> bool:
        """The first one is. But the manager's answer comes when it comes, and says more than the loss of its unit."""
        if event is Event.REVOKED:
            return self.cause in (None, Event.ABORTED) and self.state is not State.ENDED
        return self.cause is None and step is not None

    # ---- deadlines -------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `due` has something, at the earliest; in seconds of the driver's monotonic clock."""
        return min(self._armed_timers().values(), default=INFINITY)

    def _armed_timers(self) -> dict[Event, float]:
        """Those of the present state. Armed when they are asked for: most states are left at once."""
        state = self.state
        if self._armed is not state:
            self._armed = state
            if state is State.RUNNING:
                self._arm_limits()
            elif state is not State.LINGERING:
                self._arm(state)
        return self._timers

    def _arm_limits(self) -> None:
        bounds, timers = self._bounds, self._timers
        timers[Event.RECORD_DUE] = self._entered + RECORD_AFTER
        if bounds.timeout < INFINITY:
            timers[Event.TIMED_OUT] = self._start + bounds.timeout
        if bounds.idle < INFINITY:
            timers[Event.IDLE_TIMED_OUT] = self._start + bounds.idle
        if bounds.cpu < INFINITY:
            timers[Event.CPU_LOOK] = self._entered + min(LOOK_LAST, bounds.cpu)

    def _arm(self, state: State) -> None:
        keep, now = KEPT.get(state, ()), self._entered
        timers = self._timers = {event: at for event, at in self._timers.items() if event in keep}
        for event, after in DEADLINES.get(state, ()):
            timers[event] = now + after
        if state is State.STOPPING:
            timers[Event.GRACE_OVER] = now + self._bounds.grace
        elif state is State.DRAINING:
            patient = now if self._bounds.timeout == INFINITY else max(self._start + self._bounds.timeout, now)
            timers[Event.RECEIVER_OVER] = patient + RECEIVER_BOUND

    def _again(self, event: Event, now: float) -> None:
        """Arm a look once more; the longer it has taken, the less often."""
        timers = self._armed_timers()
        if event is Event.LOOK:
            pause = min(max((now - self._entered) / 16, LOOK_FIRST), LOOK_LAST)
        elif event is Event.STILL_POPULATED:
            self.rounds += 1
            pause = KILL_ROUND * self.rounds
        else:
            pause = AGAIN[event]
        timers[Event.DRAIN_OVER if event is Event.SLOW else event] = now + pause

    def due(self, now: float) -> Event | None:
        """The timer that went off first, once. None: none has."""
        timers = self._armed_timers()
        while timers:
            event = min(timers, key=timers.__getitem__)
            if timers[event] > now:
                return None
            del timers[event]
            if event is not Event.IDLE_TIMED_OUT or self._last_output + self._bounds.idle <= now:
                return event
            timers[event] = self._last_output + self._bounds.idle
        return None

    def started(self, now: float) -> None:
        """The time from which its limits count."""
        self._start = self._last_output = now

    def wrote(self, now: float) -> None:
        """It has written something."""
        self._last_output = now

    def look_at(self, event: Event, at: float) -> None:
        """Look at something then, or go on with it: EXEC_LOOK, MEMORY_LOOK, CPU_LOOK, REMOVE_AGAIN, WORK_DUE."""
        self._armed_timers()[event] = at

    def look_no_more(self, event: Event) -> None:
        """There is nothing to look at any more."""
        self._armed_timers().pop(event, None)

    def used_cpu(self, seconds: float, cpus: int, now: float) -> bool:
        """Whether the CPU time it has used is up; else the next look is when it can be, at the earliest."""
        left = self._bounds.cpu - seconds
        if left > 0:
            self.look_at(Event.CPU_LOOK, now + max(LOOK_LAST, left / cpus))
        return left <= 0

    # ---- the verdict -----------------------------------------------------------------------------------------

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
            return CAUSES[self.cause].outcome
        return by_itself
