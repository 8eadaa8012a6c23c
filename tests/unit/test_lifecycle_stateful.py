"""The order that is law, under every order of events; and a table that breaks it, which must be caught."""

from __future__ import annotations

from itertools import product
from types import MappingProxyType

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pinfold.runs import lifecycle
from pinfold.runs.lifecycle import CAUSES, Action, Event, Lifecycle, State, table

TIMERS = (Event.GRACE_OVER, Event.GAVE_UP, Event.DRAIN_OVER)  # the bounds that the driver keeps by itself
ALIVE = (State.NEW, State.STARTING, State.RUNNING)  # how long these last is the caller's business
OPTIONS = [dict(zip(("grace", "wait"), flags, strict=True)) for flags in product([False, True], repeat=2)]
# Left to chance, a run is nearly always canceled before it is running.
BEGINNINGS = [(Event.START, Event.SPAWNED), (Event.START,), ()]
RETURNCODES = st.sampled_from([None, 0, 1, 255, -1, -9, -15])


class LawBroken(AssertionError):
    """An order that must never be."""


def check(trace):
    """Raise LawBroken unless a trace of events and actions, in the order they were, keeps the law."""
    actions = [entry for entry in trace if isinstance(entry, Action)]
    for once in (Action.SPAWN, Action.KILL, Action.TERMINATE, Action.CLOSE, Action.MEASURE, Action.REMOVE):
        if actions.count(once) > 1:
            raise LawBroken(f"{once.name} more than once")
    for first, then in (
        (Action.KILL, Action.CLOSE),
        (Action.KILL, Action.DRAIN),
        (Action.DRAIN, Action.CLOSE),
        (Action.CLOSE, Action.MEASURE),
        (Action.MEASURE, Action.REMOVE),
    ):
        if then in trace and first not in trace[: trace.index(then)]:
            raise LawBroken(f"{then.name} before {first.name}")
    if Action.MEASURE in trace:
        since_kill = trace[trace.index(Action.KILL) : trace.index(Action.MEASURE)]
        if not {Event.EMPTY, Event.GAVE_UP} & set(since_kill):
            raise LawBroken("MEASURE before EMPTY or GAVE_UP")
    after_kill = trace[trace.index(Action.KILL) :] if Action.KILL in trace else []
    if {Action.SPAWN, Action.TERMINATE} & set(after_kill):
        raise LawBroken("something started or was signalled after KILL")


def check_end(life, trace):
    """Raise LawBroken unless an ended run has left nothing to do."""
    if life.state is not State.ENDED:
        raise LawBroken(f"the bounded timers end in {life.state.name}")
    if trace.count(Action.REMOVE) != 1 or trace.count(Action.KILL) != 1:
        raise LawBroken("ended without KILL and REMOVE")


def check_whole(life, trace):
    check(trace)
    check_end(life, trace)


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


def feed(life, events, trace):
    for event in events:
        trace += [event, *life.on(event)]


def bring_to_its_end(life, trace):
    feed(life, [Event.ABORTED] if life.state in ALIVE else [], trace)
    feed(life, TIMERS, trace)


class AnyOrder(RuleBasedStateMachine):
    """Any event at any time. What the driver promises is left out on purpose: the table must hold without."""

    @initialize(options=st.sampled_from(OPTIONS), way=st.sampled_from(BEGINNINGS))
    def begin(self, options, way):
        self.life, self.trace, self.lawful = Lifecycle(**options), [], True
        feed(self.life, way, self.trace)

    @rule(event=st.sampled_from(list(Event)))
    def event(self, event):
        before = self.life.state
        actions = self.life.on(event)
        self.trace += [event, *actions]
        if before is State.ENDED:
            assert actions == ()
            assert self.life.state is State.ENDED
        elif self.life.state is State.ENDED:
            assert before is State.DRAINING

    @invariant()
    def the_order_is_law(self):
        if hasattr(self, "life"):
            self.lawful = False  # until it was checked; the first breach is the one to report
            check(self.trace)
            self.lawful = True

    @rule(returncode=RETURNCODES, own_oom=st.booleans())
    def outcome(self, returncode, own_oom):
        outcome = self.life.outcome(returncode, own_oom=own_oom)
        check_outcome(outcome, returncode)
        check_memory(self.life, outcome, returncode, own_oom=own_oom)

    def teardown(self):
        if getattr(self, "lawful", False):
            bring_to_its_end(self.life, self.trace)
            check_whole(self.life, self.trace)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(settings.get_profile("unit"), max_examples=150, stateful_step_count=25)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_from_every_state_that_can_be_reached_the_bounded_timers_lead_to_the_end(options):
    waiting, seen = [()], set()
    while waiting:
        prefix = waiting.pop()
        life, trace = Lifecycle(**options), []
        feed(life, prefix, trace)
        if life.state in seen:
            continue
        seen.add(life.state)
        waiting += [(*prefix, event) for event in Event]
        bring_to_its_end(life, trace)
        check_whole(life, trace)
    assert seen == set(State) - (set() if options["grace"] else {State.STOPPING})


@given(st.sampled_from(OPTIONS), st.lists(st.sampled_from(list(Event)), max_size=12), RETURNCODES)
def test_once_ended_a_run_changes_no_more(options, events, returncode):
    life, trace = Lifecycle(**options), []
    bring_to_its_end(life, trace)
    before = life.outcome(returncode), life.state, life.cause
    feed(life, events, after := [])
    assert not any(isinstance(entry, Action) for entry in after)
    assert (life.outcome(returncode), life.state, life.cause) == before


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_only_draining_leads_to_the_end_and_nothing_leads_out_of_it(options):
    rows = table(**options)
    assert {state for (state, _event), (after, _actions) in rows.items() if after is State.ENDED} == {State.DRAINING}
    assert not any(state is State.ENDED for state, _event in rows)
    order = list(State)
    assert all(order.index(after) >= order.index(state) for (state, _event), (after, _actions) in rows.items())


# ---- the negative control: what each of these wrong tables does must be caught ----

CLOSE_FIRST = {
    (State.RUNNING, Event.TIMED_OUT): (State.KILLING, (Action.CLOSE, Action.KILL)),
    (State.DRAINING, Event.DRAIN_OVER): (State.ENDED, (Action.MEASURE, Action.REMOVE)),
}
WRONG_TABLES = {
    "CLOSE before KILL": CLOSE_FIRST,
    "MEASURE before EMPTY or GAVE_UP": {
        (State.RUNNING, Event.TIMED_OUT): (
            State.ENDED, (Action.KILL, Action.DRAIN, Action.CLOSE, Action.MEASURE, Action.REMOVE)),
    },
    "REMOVE before MEASURE": {
        (State.DRAINING, Event.DRAIN_OVER): (State.ENDED, (Action.CLOSE, Action.REMOVE, Action.MEASURE)),
    },
    "KILL more than once": {(State.KILLING, Event.GAVE_UP): (State.DRAINING, (Action.KILL, Action.DRAIN))},
    "the bounded timers end in KILLING": {(State.KILLING, Event.GAVE_UP): (State.KILLING, ())},
    "ended without KILL and REMOVE": {
        (State.DRAINING, Event.DRAIN_OVER): (State.ENDED, (Action.CLOSE, Action.MEASURE)),
    },
}  # fmt: skip


@pytest.mark.parametrize("breach", WRONG_TABLES)
def test_a_wrong_table_is_caught(breach):
    life, trace = Lifecycle(), []
    life._table = MappingProxyType({**table(grace=False, wait=False), **WRONG_TABLES[breach]})
    feed(life, (Event.START, Event.SPAWNED, Event.TIMED_OUT, *TIMERS), trace)
    with pytest.raises(LawBroken, match=breach):
        check_whole(life, trace)


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
    row = (State.RUNNING, Event.TIMED_OUT)
    wrong = {**table(grace=False, wait=False), row: CLOSE_FIRST[row]}
    monkeypatch.setattr(lifecycle, "table", lambda **_options: wrong)
    search = settings(TestAnyOrder.settings, max_examples=20_000, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(LawBroken, match="CLOSE before KILL"):
        run_state_machine_as_test(AnyOrder, settings=search)


def test_every_cause_has_its_outcome():
    named = set()
    for cause in CAUSES:
        feed(life := Lifecycle(), (Event.START, Event.SPAWNED, cause), [])
        named.add(life.outcome(-9))
    assert named == {"timed_out", "idle_timed_out", "cpu_timed_out", "output_exceeded", "oom_killed", "canceled"}
