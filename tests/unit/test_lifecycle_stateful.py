"""The order that is law, whatever is queued, in whatever order, whatever the actions report; and tables that break it.

The model drives the lifecycle as `Supervision.take` does: events wait in a queue, actions report others, and the clock
goes on only between two pumps. The world behind the actions (processes, pipes, rmdir, the service manager) is chance.
"""

from __future__ import annotations

from collections import deque
from itertools import product
from types import MappingProxyType

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pinfold.runs import lifecycle
from pinfold.runs.lifecycle import Lifecycle
from pinfold.runs.states import (
    ANSWER_BOUND,
    CAUSES,
    DRAIN_BOUND,
    KILL_BOUND,
    NAMING_BOUND,
    RECEIVER_BOUND,
    RELEASE_BOUND,
    REMOVE_BOUND,
    Action,
    Bounds,
    Event,
    State,
    table,
)

OPTIONS = [
    {"grace": grace, "wait": wait, "unit": unit} for grace, wait, unit in product([False, True], repeat=3)
]  # fmt: skip
RETURNCODES = st.sampled_from([None, 0, 1, 255, -1, -9, -15])
RESTING = (State.STARTING, State.SETTLING)  # left by the report of their own action, in the same pump
BOUNDED = (State.STOPPING, State.NAMING, State.KILLING, State.DRAINING, State.REMOVING, State.ASKING, State.RELEASING)
GRACE = 3.0
# Looks at what the model has not come only from the lifecycle's own timers.
FROM_OUTSIDE = [e for e in Event if e not in (Event.START, Event.EXEC_LOOK, Event.MEMORY_LOOK)]
LONGEST_END = (
    GRACE + NAMING_BOUND + KILL_BOUND + DRAIN_BOUND + RECEIVER_BOUND + REMOVE_BOUND + ANSWER_BOUND + RELEASE_BOUND + 1
)


class LawBroken(AssertionError):
    """An order that must never be."""


def check(trace):
    """Raise LawBroken unless a trace of events and actions, in the order they were, keeps the law."""
    actions = [entry for entry in trace if isinstance(entry, Action)]
    for once in (Action.SPAWN, Action.NAME, Action.KILL, Action.TERMINATE, Action.DRAIN, Action.CLOSE, Action.MEASURE,
                 Action.END):  # fmt: skip
        if actions.count(once) > 1:
            raise LawBroken(f"{once.name} more than once")
    for first, then in (
        (Action.DRAIN, Action.CLOSE),
        (Action.CLOSE, Action.MEASURE),
        (Action.MEASURE, Action.REMOVE),
        (Action.REMOVE, Action.END),
    ):
        if then in trace and first not in trace[: trace.index(then)]:
            raise LawBroken(f"{then.name} before {first.name}")
    for then in (Action.DRAIN, Action.CLOSE, Action.MEASURE):
        if then in trace:
            before = trace[: trace.index(then)]
            if Event.EMPTY not in before and not (Action.KILL in before and Event.GAVE_UP in before):
                raise LawBroken(f"{then.name} before it was empty or given up")
    if Action.END in trace and not {Event.REMOVED, Event.REMOVE_OVER} & set(trace[: trace.index(Action.END)]):
        raise LawBroken("END before it was removed, or that was given up")
    after = trace[trace.index(Action.NAME) :] if Action.NAME in trace else []
    if {Action.SPAWN, Action.TERMINATE} & set(after):
        raise LawBroken("something started or was signalled on the way to the kill")


def check_deadline(life):
    """Raise LawBroken where nothing would wake the driver up."""
    if life.state in BOUNDED and life.deadline == float("inf"):
        raise LawBroken(f"{life.state.name} has no deadline")


def check_outcome(outcome, returncode):
    """Raise LawBroken where an outcome and a returncode contradict each other."""
    possible = {
        "exited": returncode is not None and returncode >= 0,
        "signaled": returncode is not None and returncode < 0,
        "lost": returncode is None,
    }
    if not possible.get(outcome, True):
        raise LawBroken(f"{outcome} with returncode {returncode}")


def check_memory(life, outcome, returncode, *, own_oom):
    """Raise LawBroken where memory is blamed, or is not, against the facts."""
    if outcome == "oom_killed" and life.cause is not Event.STALLED and not (own_oom and returncode == -9):
        raise LawBroken(f"oom_killed with returncode {returncode}, own_oom {own_oom}")
    if life.cause is None and own_oom and returncode == -9 and outcome != "oom_killed":
        raise LawBroken(f"{outcome}, and it was killed at its memory limit")


class World:
    """What the actions meet. `answers` is asked for each chance; without it everything goes wrong that can."""

    def __init__(self, answers=None):
        self.answers = answers or (lambda: False)
        self.reaped = self.empty = False

    def spawn(self):
        if self.answers():
            return Event.SPAWNED
        self.reaped = self.empty = True
        return Event.SPAWN_FAILED

    def look(self):
        return (Event.EMPTY if self.empty else Event.POPULATED) if self.reaped else None

    def name(self):
        if self.reaped and self.empty:
            return Event.EMPTY
        return Event.NAMED if self.answers() else None

    def release(self):
        return Event.RELEASED if self.answers() else None

    def drain(self):
        return Event.DRAINED if self.answers() else None

    def look_drain(self):
        return Event.DRAINED if self.answers() else Event.SLOW if self.answers() else Event.HELD

    def remove(self):
        return Event.REMOVED if self.answers() else None


class Driver:
    """A queue of events, worked off flat; a clock that stands still meanwhile."""

    def __init__(self, options, world):
        bounds = Bounds(timeout=60.0, idle=20.0, grace=GRACE if options["grace"] else 0.0)
        self.life, self.world = Lifecycle(bounds, wait=options["wait"], unit=options["unit"]), world
        self.now, self.queue, self.trace = 100.0, deque(), []
        self.life.started(self.now)

    def pump(self):
        while self.queue:
            event = self.queue.popleft()
            self.trace.append(event)
            if event in (Event.EXITED, Event.SPAWN_FAILED):  # the driver says so of a process that it has reaped
                self.world.reaped = True
            for action in self.life.on(event, self.now):
                self.trace.append(action)
                if (found := self._do(action)) is not None:
                    self.queue.append(found)

    def _do(self, action):
        report = getattr(self.world, str(action), None)
        return None if report is None else report()

    def advance(self):
        """To the next deadline, and take what is due then. Whether there was one."""
        if self.life.deadline == float("inf"):
            return False
        self.now = max(self.now, self.life.deadline)
        event = self.life.due(self.now)
        if event is not None:
            self.queue.append(event)
            self.pump()
        return True

    def bring_to_its_end(self):
        """Ask for the end, and let time pass in a world where nothing helps."""
        if self.life.state in (State.NEW, State.STARTING, State.RUNNING, State.LINGERING):
            self.queue.append(Event.ABORTED)
        began = self.now
        self.pump()
        for _ in range(5000):
            if self.life.state is State.ENDED:
                return
            if not self.advance():
                break
            if self.now - began > LONGEST_END:
                break
        raise LawBroken(f"the bounded timers end in {self.life.state.name}")


class AnyOrder(RuleBasedStateMachine):
    """Any event at any time, several at once. What the driver promises is left out on purpose."""

    @initialize(options=st.sampled_from(OPTIONS), luck=st.lists(st.booleans(), min_size=40, max_size=40))
    def begin(self, options, luck):
        chance = iter(luck)
        self.driver = Driver(options, World(lambda: next(chance, True)))
        self.lawful = True
        self.driver.queue.append(Event.START)

    @rule(events=st.lists(st.sampled_from(FROM_OUTSIDE), max_size=3))
    def queue(self, events):
        """Several things happen before the driver comes to look."""
        self.driver.queue.extend(events)

    @rule(empty=st.booleans())
    def main_exits(self, empty):
        world = self.driver.world
        if not world.reaped and Action.SPAWN in self.driver.trace:
            world.reaped, world.empty = True, empty
            self.driver.queue.append(Event.EXITED)

    @rule()
    def all_are_gone(self):
        world = self.driver.world
        if world.reaped:
            world.empty = True
            if Action.WATCH_EMPTY in self.driver.trace or Action.KILL in self.driver.trace:
                self.driver.queue.append(Event.EMPTY)

    @rule()
    def ask(self):
        self.driver.life.asking = True

    @rule()
    def pump(self):
        before = self.driver.life.state
        length = len(self.driver.trace)
        self.driver.pump()
        if before is State.ENDED:
            assert not [entry for entry in self.driver.trace[length:] if isinstance(entry, Action)]
            assert self.driver.life.state is State.ENDED

    @rule()
    def time_passes(self):
        self.driver.pump()
        self.driver.advance()

    @invariant()
    def the_order_is_law(self):
        if hasattr(self, "driver"):
            self.lawful = False  # until it was checked; the first breach is the one to report
            check(self.driver.trace)
            check_deadline(self.driver.life)
            self.lawful = True

    @rule(returncode=RETURNCODES, own_oom=st.booleans())
    def outcome(self, returncode, own_oom):
        life = self.driver.life
        outcome = life.outcome(returncode, own_oom=own_oom)
        check_outcome(outcome, returncode)
        check_memory(life, outcome, returncode, own_oom=own_oom)

    def teardown(self):
        if getattr(self, "lawful", False):
            self.driver.pump()
            if self.driver.life.state not in RESTING:  # a report that never comes is a fault of the driver's
                self.driver.world.answers = lambda: False
                self.driver.bring_to_its_end()
                check(self.driver.trace)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(settings.get_profile("unit"), max_examples=150, stateful_step_count=25)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_from_every_state_that_can_be_reached_the_bounded_timers_lead_to_the_end(options):
    waiting, seen = [()], set()
    while waiting:
        prefix = waiting.pop(0)
        driver = Driver(options, World(lambda: True))
        driver.queue.append(Event.START)
        if prefix:
            driver.pump()
        driver.world.answers = lambda: False
        if not prefix:
            driver.queue.clear()
        for event in prefix:
            driver.queue.append(event)
            driver.pump()
        if driver.life.state in seen:
            continue
        seen.add(driver.life.state)
        waiting += [(*prefix, event) for event in FROM_OUTSIDE]
        driver.bring_to_its_end()
        check(driver.trace)
    never = {State.STARTING, State.ASKING}  # left in the same pump; entered where the manager was asked
    never |= {State.SETTLING}  # left in the same pump
    never |= set() if options["grace"] else {State.STOPPING}
    never |= set() if options["wait"] else {State.LINGERING}
    never |= set() if options["unit"] else {State.RELEASING}
    assert set(State) - never - seen == set()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cause", [cause for cause, how in CAUSES.items() if not how.gentle])
def test_a_hard_cause_is_followed_by_the_kill_within_the_bound_for_names(options, cause):
    driver = Driver(options, World(lambda: True))
    driver.queue.append(Event.START)
    driver.pump()
    driver.world.answers = lambda: False  # no name comes
    driver.queue.append(cause)
    driver.pump()
    began = driver.now
    while Action.KILL not in driver.trace:
        assert driver.advance()
    assert driver.now - began <= NAMING_BOUND


@given(
    st.sampled_from(OPTIONS),
    st.lists(st.sampled_from(FROM_OUTSIDE), max_size=12),
    RETURNCODES,
)
def test_once_ended_a_run_changes_no_more(options, events, returncode):
    driver = Driver(options, World())
    driver.bring_to_its_end()
    life = driver.life
    before, length = (life.outcome(returncode), life.state, life.cause), len(driver.trace)
    driver.queue.extend(events)
    driver.pump()
    assert not any(isinstance(entry, Action) for entry in driver.trace[length:])
    assert (life.outcome(returncode), life.state, life.cause) == before
    assert life.deadline == float("inf")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nothing_leads_back_and_nothing_out_of_the_end(options):
    rows = table(**options)
    order = list(State)
    assert rows[State.ENDED] == {}
    for state, row in rows.items():
        assert all(order.index(after) >= order.index(state) for after, _actions in row.values())
        if state not in (State.SETTLING, State.LINGERING, State.STOPPING, State.NAMING, State.KILLING):
            assert State.DRAINING not in {after for after, _ in row.values()} - {state}


# ---- the negative control: what each of these wrong tables does must be caught ----

FINISH = (Action.CLOSE, Action.MEASURE, Action.REMOVE)
WRONG_ROWS = {
    "CLOSE before DRAIN": {
        (State.RUNNING, Event.TIMED_OUT): (State.NAMING, (Action.CLOSE, Action.NAME)),
        (State.DRAINING, Event.HELD): (State.REMOVING, (Action.MEASURE, Action.REMOVE)),
    },
    "DRAIN before it was empty or given up": {
        (State.RUNNING, Event.TIMED_OUT): (State.DRAINING, (Action.DRAIN,)),
    },
    "REMOVE before MEASURE": {
        (State.DRAINING, Event.HELD): (State.REMOVING, (Action.CLOSE, Action.REMOVE, Action.MEASURE)),
    },
    "KILL more than once": {(State.KILLING, Event.GAVE_UP): (State.DRAINING, (Action.KILL, Action.DRAIN))},
    "the bounded timers end in KILLING": {(State.KILLING, Event.GAVE_UP): (State.KILLING, ())},
    "END before REMOVE": {
        (State.DRAINING, Event.HELD): (State.ENDED, (Action.CLOSE, Action.MEASURE, Action.END)),
    },
    "something started or was signalled": {
        (State.KILLING, Event.GAVE_UP): (State.DRAINING, (Action.TERMINATE, Action.NAME_STUCK, Action.DRAIN)),
    },
}


def bring_to_its_end_and_check(driver):
    driver.bring_to_its_end()
    check(driver.trace)


def wrong_table(rows, **options):
    wrong = {state: dict(row) for state, row in table(**options).items()}
    for (state, event), step in rows.items():
        wrong[state][event] = step
    return MappingProxyType(wrong)


@pytest.mark.parametrize("breach", WRONG_ROWS)
def test_a_wrong_table_is_caught(breach):
    options = OPTIONS[0]
    driver = Driver(options, World(lambda: True))
    driver.life._table = wrong_table(WRONG_ROWS[breach], **options)
    driver.queue.append(Event.START)
    driver.pump()
    driver.world.answers = lambda: False
    driver.queue.append(Event.TIMED_OUT)
    with pytest.raises(LawBroken, match=breach):
        bring_to_its_end_and_check(driver)


def test_a_state_without_a_deadline_is_caught(monkeypatch):
    monkeypatch.setattr(lifecycle, "DEADLINES", {})
    driver = Driver(OPTIONS[0], World(lambda: True))
    driver.queue.append(Event.START)
    driver.pump()
    driver.world.answers = lambda: False
    driver.queue.append(Event.ABORTED)
    driver.pump()
    with pytest.raises(LawBroken, match="NAMING has no deadline"):
        check_deadline(driver.life)


@pytest.mark.parametrize(
    ("outcome", "returncode"), [("exited", -9), ("exited", None), ("signaled", 0), ("signaled", None), ("lost", 0)]
)
def test_an_outcome_that_contradicts_its_returncode_is_caught(outcome, returncode):
    with pytest.raises(LawBroken, match=outcome):
        check_outcome(outcome, returncode)


@pytest.mark.parametrize(
    ("outcome", "returncode", "own_oom"),
    [("oom_killed", -9, False), ("oom_killed", 0, True), ("oom_killed", None, True), ("signaled", -9, True)],
)
def test_memory_that_is_blamed_wrongly_is_caught(outcome, returncode, own_oom):
    with pytest.raises(LawBroken, match=r"oom_killed|memory limit"):
        check_memory(Lifecycle(), outcome, returncode, own_oom=own_oom)


def test_the_random_machine_finds_a_wrong_table_by_itself(monkeypatch):
    rows = WRONG_ROWS["DRAIN before it was empty or given up"]
    real = lifecycle.table

    def wrong(**options):
        return {
            state: {**row, **{event: step for (of, event), step in rows.items() if of is state}}
            for state, row in real(**options).items()
        }

    monkeypatch.setattr(lifecycle, "table", wrong)
    search = settings(TestAnyOrder.settings, max_examples=20_000, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(LawBroken, match="before it was empty"):
        run_state_machine_as_test(AnyOrder, settings=search)
