"""The lifecycle, row by row, and the outcome it gives."""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise, product

import pytest

from pinfold.runs import lifecycle, states
from pinfold.runs.lifecycle import Lifecycle
from pinfold.runs.states import CAUSES, Action, Bounds, Event, State, table

s, e, a = State, Event, Action
GENTLE = {cause for cause, how in CAUSES.items() if how.gentle}
AT_ONCE = set(CAUSES) - GENTLE  # no signal and no grace, whatever the grace is
FINISH = (a.CLOSE, a.MEASURE, a.REMOVE)
KILL = (s.NAMING, (a.NAME,))
STARTED = (e.START, e.SPAWNED)
END = (e.EMPTY, e.DRAINED, e.REMOVED)
NOW = 1000.0


def a_life(*, grace=False, wait=False, unit=False, **bounds):
    life = Lifecycle(Bounds(**{"grace": 5.0 if grace else 0.0, **bounds}), wait=wait, unit=unit)
    life.started(NOW)
    return life


def life_after(*events, now=NOW, **options):
    life = a_life(**options)
    actions = [action for event in events for action in life.on(event, now)]
    return life, actions


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize(("grace", "wait"), list(product([False, True], repeat=2)))
def test_a_cause_stops_gently_or_kills(grace, wait, unit):
    rows = table(grace=grace, wait=wait, unit=unit)
    stop = (s.STOPPING, (a.TERMINATE,)) if grace else KILL
    for state in (s.RUNNING, s.LINGERING):
        assert {cause: rows[state][cause] for cause in CAUSES} == {
            cause: stop if cause in GENTLE else KILL for cause in CAUSES
        }
    for state in (s.NEW, s.STARTING):  # there is nothing to be gentle with
        assert {rows[state][cause] for cause in CAUSES} == {KILL}
    assert {cause for cause in CAUSES if cause in rows[s.STOPPING]} == AT_ONCE | {e.OUTPUT_EXCEEDED}


def test_every_cause_has_an_outcome_and_a_bound_that_is_there():
    assert {how.outcome for how in CAUSES.values()} == {
        "timed_out", "idle_timed_out", "cpu_timed_out", "output_exceeded", "oom_killed", "canceled",
    }  # fmt: skip
    assert {how.bound for how in CAUSES.values()} - {None} <= set(Bounds._fields)


@pytest.mark.parametrize(
    ("events", "options", "actions"),
    [
        ((*STARTED, e.EXITED, *END), {}, (a.SPAWN, a.LOOK, a.DRAIN, *FINISH, a.END)),
        ((*STARTED, e.EXITED, e.POPULATED, e.NAMED, *END), {},
         (a.SPAWN, a.LOOK, a.NAME, a.KILL, a.DRAIN, *FINISH, a.END)),
        ((*STARTED, e.TIMED_OUT, e.NAMED, *END), {}, (a.SPAWN, a.NAME, a.KILL, a.DRAIN, *FINISH, a.END)),
        ((*STARTED, e.TIMED_OUT, e.NAMING_OVER, *END), {}, (a.SPAWN, a.NAME, a.KILL, a.DRAIN, *FINISH, a.END)),
        ((*STARTED, e.TIMED_OUT, e.GRACE_OVER, e.NAMED, *END), {"grace": True},
         (a.SPAWN, a.TERMINATE, a.NAME, a.KILL, a.DRAIN, *FINISH, a.END)),
        ((*STARTED, e.TIMED_OUT, e.EXITED, *END), {"grace": True},
         (a.SPAWN, a.TERMINATE, a.WATCH_EMPTY, a.LOOK, a.DRAIN, *FINISH, a.END)),
        ((*STARTED, e.EXITED, *END), {"wait": True}, (a.SPAWN, a.WATCH_EMPTY, a.LOOK, a.DRAIN, *FINISH, a.END)),
        ((e.START, e.SPAWN_FAILED, *END), {}, (a.SPAWN, a.LOOK, a.DRAIN, *FINISH, a.END)),
        ((*STARTED, e.SPAWN_FAILED, *END), {}, (a.SPAWN, a.LOOK, a.DRAIN, *FINISH, a.END)),
        ((*STARTED, e.ABORTED, e.NAMED, e.STILL_POPULATED, e.GAVE_UP, e.DRAIN_OVER, e.HELD, e.REMOVED), {"grace": True},
         (a.SPAWN, a.NAME, a.KILL, a.KILL_EACH, a.NAME_STUCK, a.DRAIN, a.LOOK_DRAIN, a.NAME_HELD, *FINISH, a.END)),
        ((*STARTED, e.EXITED, e.EMPTY, e.DRAINED, e.REMOVE_AGAIN, e.REMOVE_OVER), {},
         (a.SPAWN, a.LOOK, a.DRAIN, *FINISH, a.REMOVE, a.END)),
        ((*STARTED, e.EXITED, *END, e.RELEASED), {"unit": True},
         (a.SPAWN, a.LOOK, a.DRAIN, *FINISH, a.RELEASE, a.END)),
        *[((*STARTED, e.TIMED_OUT, event, e.NAMED, *END), {"grace": True},
           (a.SPAWN, a.TERMINATE, a.NAME, a.KILL, a.DRAIN, *FINISH, a.END)) for event in (e.STALLED, e.REVOKED)],
    ],
    ids=["exit", "strays", "timeout", "names that do not come", "grace ignored", "grace obeyed", "strays waited for",
         "no process", "no exec", "stuck and held", "removed late", "own unit", "stuck for memory in the grace",
         "revoked in the grace"],
)  # fmt: skip
def test_a_run_takes_this_way(events, options, actions):
    life, done = life_after(*events, **options)
    assert life.state is s.ENDED
    assert tuple(done) == actions


# ---- deadlines -----------------------------------------------------------------------------------------------


def due_after(life, seconds):
    """What is due so long after the start, in order."""
    found = []
    while (event := life.due(NOW + seconds)) is not None:
        found.append(event)
    return found


def test_the_timeout_counts_from_the_start():
    life = a_life(timeout=2.0)
    for event in STARTED:
        life.on(event, NOW + 0.5)  # the start has taken its time
    life.look_no_more(e.RECORD_DUE)
    assert life.deadline == NOW + 2.0
    assert (due_after(life, 1.99), due_after(life, 2.0), due_after(life, 9)) == ([], [e.TIMED_OUT], [])


def test_a_run_without_limits_only_waits_to_be_recorded():
    life, _ = life_after(*STARTED)
    assert due_after(life, 1e6) == [e.RECORD_DUE]
    assert life.deadline == float("inf")


def test_output_puts_off_the_idle_timeout():
    life, _ = life_after(*STARTED, idle=1.0)
    life.look_no_more(e.RECORD_DUE)
    life.wrote(NOW + 0.8)
    assert due_after(life, 1.0) == []
    assert life.deadline == NOW + 1.8
    assert due_after(life, 1.8) == [e.IDLE_TIMED_OUT]


def test_cpu_time_is_looked_at_when_it_can_be_up_at_the_earliest():
    life, _ = life_after(*STARTED, cpu=4.0)
    life.look_no_more(e.RECORD_DUE)
    assert life.on(due_after(life, 0.01)[0], NOW) == (a.LOOK_CPU,)
    assert not life.used_cpu(1.0, 2, NOW + 1)
    assert life.deadline == NOW + 1 + 3.0 / 2  # on two CPUs
    assert not life.used_cpu(3.9999, 2, NOW + 2)
    assert life.deadline == NOW + 2 + states.LOOK_LAST
    assert life.used_cpu(4.0, 2, NOW + 3)


def test_after_a_kill_it_looks_often_at_first():
    life, _ = life_after(*STARTED, e.ABORTED, e.NAMED)
    now, looks = NOW, []
    for _ in range(60):
        now = life.deadline
        event = life.due(now)
        if event is e.LOOK:
            looks.append(now)
        life.on(event, now)
    pauses = [later - sooner for sooner, later in pairwise(looks)]
    assert pauses[0] == pytest.approx(states.LOOK_FIRST)
    assert pauses[-1] == pytest.approx(states.LOOK_LAST)
    assert all(later >= sooner - 1e-9 for sooner, later in pairwise(pauses))


def test_stronger_means_come_in_rounds_that_grow_until_it_gives_up():
    life, _ = life_after(*STARTED, e.ABORTED, e.NAMED)
    rounds, gave_up = [], None
    while gave_up is None:
        now = life.deadline
        event = life.due(now)
        rounds += [now] if event is e.STILL_POPULATED else []
        gave_up = now if event is e.GAVE_UP else None
        life.on(event, now)
    assert gave_up == NOW + states.KILL_BOUND
    gaps = [later - sooner for sooner, later in zip([NOW, *rounds], rounds, strict=False)]
    assert gaps == pytest.approx([states.KILL_ROUND * (n + 1) for n in range(len(gaps))])
    assert life.rounds == 1 + len(rounds)


def test_a_slow_receiver_has_its_time_past_the_timeout():
    life, _ = life_after(*STARTED, e.EXITED, e.EMPTY, timeout=3.0)
    now, seen = NOW, []
    while life.state is s.DRAINING:
        now = life.deadline
        event = life.due(now)
        seen.append(event)
        if a.LOOK_DRAIN in life.on(event, now):
            life.on(e.SLOW, now)
    assert seen[-1] is e.RECEIVER_OVER
    assert now == NOW + 3.0 + states.RECEIVER_BOUND


def test_the_answer_of_the_manager_is_waited_for_and_says_more_than_the_loss_of_its_unit():
    life = a_life()
    for event in (*STARTED, e.ABORTED):
        life.on(event, NOW)
    life.asking = True
    for event in (e.NAMED, e.EXITED, e.EMPTY, e.DRAINED, e.REMOVED):
        life.on(event, NOW)
    assert (life.state, life.deadline) == (s.ASKING, NOW + states.ANSWER_BOUND)
    assert life.on(e.REVOKED, NOW) == (a.END,)
    assert (life.cause, life.outcome(-15)) == (e.REVOKED, "canceled")


def test_without_an_answer_it_ends_all_the_same():
    life = a_life()
    for event in (*STARTED, e.EXITED):
        life.on(event, NOW)
    life.asking = True
    for event in END:
        life.on(event, NOW)
    assert due_after(life, states.ANSWER_BOUND) == [e.ANSWER_OVER]
    assert life.on(e.ANSWER_OVER, NOW) == (a.END,)
    assert life.outcome(-15) == "signaled"


def test_an_answer_that_came_in_time_is_not_waited_for():
    life = a_life()
    for event in (*STARTED, e.EXITED):
        life.on(event, NOW)
    life.asking = True
    life.on(e.NOT_REVOKED, NOW)
    for event in END:
        life.on(event, NOW)
    assert life.state is s.ENDED


# ---- the outcome ---------------------------------------------------------------------------------------------


# (events before the end, options), and the outcome for each returncode
@pytest.mark.parametrize(
    ("events", "options", "outcomes"),
    [
        ((e.EXITED,), {}, {0: "exited", 3: "exited", -9: "signaled", -15: "signaled", None: "lost"}),
        ((e.SPAWN_FAILED,), {}, {None: "lost"}),
        # Without a signal first, whoever did not die of SIGKILL had ended by itself.
        ((e.TIMED_OUT,), {}, {-9: "timed_out", None: "timed_out", 0: "exited", 3: "exited", -11: "signaled"}),
        ((e.CANCELED,), {}, {-9: "canceled", None: "canceled", 0: "exited", -15: "signaled"}),
        ((e.ABORTED,), {"grace": True}, {-9: "canceled", 0: "exited", -15: "signaled"}),
        # With one, every status can be its answer.
        ((e.TIMED_OUT,), {"grace": True}, {0: "timed_out", 143: "timed_out", -15: "timed_out", -9: "timed_out"}),
        ((e.IDLE_TIMED_OUT,), {"grace": True}, {0: "idle_timed_out", -15: "idle_timed_out"}),
        ((e.CPU_TIMED_OUT,), {}, {-9: "cpu_timed_out", 0: "exited"}),
        ((e.OUTPUT_EXCEEDED,), {}, {0: "output_exceeded", -9: "output_exceeded", -13: "output_exceeded"}),
        # Stuck for memory: the kill can have come too late, as with any limit.
        ((e.STALLED,), {}, {-9: "oom_killed", None: "oom_killed", 0: "exited", 3: "exited", -11: "signaled"}),
        ((e.STALLED,), {"grace": True}, {-9: "oom_killed", 0: "exited"}),
        ((e.EXITED, e.STALLED), {"wait": True}, {0: "oom_killed", -9: "oom_killed"}),
        # systemd sends signals before it says that it stops the unit: any status may be its doing.
        ((e.REVOKED,), {}, {0: "canceled", 143: "canceled", -15: "canceled", -9: "canceled", None: "canceled"}),
        # The answer of the manager comes after the exit that it was asked about.
        ((e.EXITED, e.REVOKED), {}, {0: "canceled", -15: "canceled"}),
        # The main process had ended, what was left ran into the limit.
        ((e.EXITED, e.TIMED_OUT), {"wait": True}, {0: "timed_out", 3: "timed_out", -9: "timed_out"}),
        # The first cause is the cause.
        ((e.TIMED_OUT, e.CANCELED), {"grace": True}, {0: "timed_out", -9: "timed_out"}),
        ((e.CANCELED, e.ABORTED), {"grace": True}, {-9: "canceled"}),
        ((e.TIMED_OUT, e.OUTPUT_EXCEEDED), {"grace": True}, {0: "timed_out"}),
        ((e.TIMED_OUT, e.STALLED), {"grace": True}, {-9: "timed_out"}),
        ((e.STALLED, e.REVOKED), {}, {-9: "oom_killed", 0: "exited"}),
        # What comes after the kill of the exit is no cause.
        ((e.EXITED, e.TIMED_OUT), {}, {0: "exited", -9: "signaled"}),
        ((e.EXITED, e.CANCELED), {}, {0: "exited"}),
    ],
    ids=lambda value: " ".join(event.name for event in value) if isinstance(value, tuple) else "",
)
def test_the_outcome_says_why_it_ended(events, options, outcomes):
    start = (e.START,) if e.SPAWN_FAILED in events else STARTED
    life, _actions = life_after(*start, *events, **options)
    assert {returncode: life.outcome(returncode) for returncode in outcomes} == outcomes


@pytest.mark.parametrize(
    ("events", "options", "outcomes"),
    [
        ((), {}, {-9: "oom_killed", 0: "exited", 137: "exited", -15: "signaled", -11: "signaled", None: "lost"}),
        ((e.EXITED,), {}, {-9: "oom_killed", 0: "exited", 3: "exited", None: "lost"}),
        ((e.EXITED, e.EMPTY), {"wait": True}, {-9: "oom_killed", 0: "exited"}),
        ((e.TIMED_OUT,), {"grace": True}, {-9: "timed_out", 0: "timed_out"}),
        ((e.CANCELED,), {}, {-9: "canceled", 0: "exited", -15: "signaled"}),
        ((e.REVOKED,), {}, {-9: "canceled", 0: "canceled"}),
        ((e.STALLED,), {}, {-9: "oom_killed", 0: "exited"}),
    ],
    ids=lambda value: " ".join(event.name for event in value) or "no event" if isinstance(value, tuple) else "",
)
def test_a_kill_at_its_own_memory_limit_is_an_outcome_if_it_was_the_main_process_and_nothing_else_ended_it(
    events, options, outcomes
):
    life, _actions = life_after(*STARTED, *events, **options)
    assert {returncode: life.outcome(returncode, own_oom=True) for returncode in outcomes} == outcomes


def test_the_lifecycle_imports_no_clock_and_no_descriptor():
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(inspect.getsource(lifecycle)))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert imported == {"__future__", "pinfold.outcomes", "pinfold.runs.states", "pinfold.typed", "pinfold.units"}
