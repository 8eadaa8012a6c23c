"""The lifecycle, row by row, and the outcome it gives."""

from __future__ import annotations

import ast
import inspect
from itertools import product

import pytest

from pinfold.runs import lifecycle
from pinfold.runs.lifecycle import CAUSES, Action, Event, Lifecycle, State, table

s, e, a = State, Event, Action
AT_ONCE = {e.ABORTED, e.STALLED, e.REVOKED}  # no signal and no grace, whatever the grace is
GENTLE = CAUSES - AT_ONCE
FINISH = (a.CLOSE, a.MEASURE, a.REMOVE)
KILL = (s.KILLING, (a.KILL,))

# The whole table in words: (state, event) → (state, actions); `stop` and `exit` depend on the two parameters.
ROWS = {
    (s.NEW, e.START): (s.STARTING, (a.SPAWN,)),
    (s.STARTING, e.SPAWNED): (s.RUNNING, ()),
    (s.STARTING, e.SPAWN_FAILED): KILL,
    (s.RUNNING, e.EXITED): "exit",
    (s.RUNNING, e.EMPTY): KILL,
    (s.STOPPING, e.EXITED): (s.STOPPING, (a.WATCH_EMPTY,)),
    (s.STOPPING, e.EMPTY): KILL,
    (s.STOPPING, e.GRACE_OVER): KILL,
    (s.STOPPING, e.OUTPUT_EXCEEDED): KILL,
    (s.KILLING, e.STILL_POPULATED): (s.KILLING, (a.KILL_EACH,)),
    (s.KILLING, e.EMPTY): (s.DRAINING, (a.DRAIN,)),
    (s.KILLING, e.GAVE_UP): (s.DRAINING, (a.NAME_STUCK, a.DRAIN)),
    (s.DRAINING, e.DRAINED): (s.ENDED, FINISH),
    (s.DRAINING, e.DRAIN_OVER): (s.ENDED, (a.NAME_HELD, *FINISH)),
    **{(s.RUNNING, cause): "stop" for cause in GENTLE},
    **{(state, cause): KILL for state in (s.RUNNING, s.STOPPING) for cause in AT_ONCE},
    **{(state, cause): KILL for state in (s.NEW, s.STARTING) for cause in CAUSES},
}  # fmt: skip


@pytest.mark.parametrize(("grace", "wait"), list(product([False, True], repeat=2)))
def test_the_table_is_exactly_these_rows(grace, wait):
    means = {
        "stop": (s.STOPPING, (a.TERMINATE,)) if grace else KILL,
        "exit": (s.RUNNING, (a.WATCH_EMPTY,)) if wait else KILL,
    }
    expected = {pair: means[step] if isinstance(step, str) else step for pair, step in ROWS.items()}
    assert table(grace=grace, wait=wait) == expected


def life_after(*events, grace=False, wait=False):
    life = Lifecycle(grace=grace, wait=wait)
    actions = [action for event in events for action in life.on(event)]
    return life, actions


STARTED = (e.START, e.SPAWNED)
END = (e.EMPTY, e.DRAINED)


@pytest.mark.parametrize(
    ("events", "options", "actions"),
    [
        ((*STARTED, e.EXITED, *END), {}, (a.SPAWN, a.KILL, a.DRAIN, *FINISH)),
        ((*STARTED, e.TIMED_OUT, *END), {}, (a.SPAWN, a.KILL, a.DRAIN, *FINISH)),
        ((*STARTED, e.TIMED_OUT, e.GRACE_OVER, *END), {"grace": True},
         (a.SPAWN, a.TERMINATE, a.KILL, a.DRAIN, *FINISH)),
        ((*STARTED, e.TIMED_OUT, e.EXITED, e.EMPTY, *END), {"grace": True},
         (a.SPAWN, a.TERMINATE, a.WATCH_EMPTY, a.KILL, a.DRAIN, *FINISH)),
        ((*STARTED, e.EXITED, e.EMPTY, *END), {"wait": True}, (a.SPAWN, a.WATCH_EMPTY, a.KILL, a.DRAIN, *FINISH)),
        ((e.START, e.SPAWN_FAILED, *END), {}, (a.SPAWN, a.KILL, a.DRAIN, *FINISH)),
        ((*STARTED, e.ABORTED, e.STILL_POPULATED, e.GAVE_UP, e.DRAIN_OVER), {"grace": True},
         (a.SPAWN, a.KILL, a.KILL_EACH, a.NAME_STUCK, a.DRAIN, a.NAME_HELD, *FINISH)),
        *[((*STARTED, event, *END), {"grace": True}, (a.SPAWN, a.KILL, a.DRAIN, *FINISH))
          for event in (e.STALLED, e.REVOKED)],
        *[((*STARTED, e.TIMED_OUT, event, *END), {"grace": True}, (a.SPAWN, a.TERMINATE, a.KILL, a.DRAIN, *FINISH))
          for event in (e.STALLED, e.REVOKED)],
    ],
    ids=["exit", "timeout", "grace ignored", "grace obeyed", "strays waited for", "spawn failed", "stuck and held",
         "stuck for memory", "revoked", "stuck for memory in the grace", "revoked in the grace"],
)  # fmt: skip
def test_a_run_takes_this_way(events, options, actions):
    life, done = life_after(*events, **options)
    assert life.state is s.ENDED
    assert tuple(done) == actions


@pytest.mark.parametrize(("grace", "wait"), list(product([False, True], repeat=2)))
def test_an_action_that_brings_the_next_event_itself_is_the_last_of_its_row(grace, wait):
    """The driver takes such an event before it comes back to the row."""
    brings_events = {a.SPAWN, a.KILL, a.DRAIN}
    for _state, actions in table(grace=grace, wait=wait).values():
        assert not brings_events & set(actions[:-1])


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
        ((e.EXITED, e.REVOKED), {}, {0: "exited", -15: "signaled"}),
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
    assert imported == {"__future__", "enum", "functools", "typing", "pinfold.result"}
