"""The states of a run, what can happen to it, what is done then: the table that the lifecycle walks through."""

from __future__ import annotations

from enum import StrEnum, auto
from functools import cache

from pinfold.typed import TYPE_CHECKING, NamedTuple
from pinfold.units import INFINITY

if TYPE_CHECKING:
    from typing import Final

    from pinfold.outcomes import Outcome


# How long each step of the end may take. Seconds.
NAMING_BOUND: Final = 0.02  # for the names of strays, before the kill
KILL_BOUND: Final = 10.0  # from the kill to `populated 0`; then what is left is named in `stuck_pids`
DRAIN_BOUND: Final = 0.2  # for the end of a stream after `populated 0`
RECEIVER_BOUND: Final = 2.0  # past the timeout, for the receiver of a relayed stream to take the rest
REMOVE_BOUND: Final = 1.0  # rmdir may trail `populated 0` (from Linux 6.19)
ANSWER_BOUND: Final = 2.0  # for the service manager to say whether it has ended the run
RELEASE_BOUND: Final = 5.0  # for a unit of the run's own to be given back
# When to look where nothing tells. cgroup.events notifies at most once per 10 ms.
KILL_ROUND: Final = 0.05  # from the kill to stronger means; each round waits longer
LOOK_FIRST: Final = 0.001
LOOK_LAST: Final = 0.01
LOOK_MEMORY: Final = 0.1
LOOK_EXEC: Final = 0.002
RECORD_AFTER: Final = 0.01  # a run that is over sooner is in no list


class State(StrEnum):  # a str's hash is C and kept, an Enum's is Python: these are looked up in every run
    """Where a run is."""

    NEW = auto()
    STARTING = auto()
    RUNNING = auto()
    LINGERING = auto()  # the main process has ended, its descendants may go on (strays="wait")
    STOPPING = auto()
    SETTLING = auto()  # the main process has ended: is anybody left?
    NAMING = auto()
    KILLING = auto()
    DRAINING = auto()
    REMOVING = auto()
    ASKING = auto()
    RELEASING = auto()
    ENDED = auto()


class Event(StrEnum):
    """What can happen to it."""

    START = auto()
    SPAWNED = auto()
    SPAWN_FAILED = auto()  # no process was made, or a step before its exec has failed and it has been reaped
    EXITED = auto()  # the main process has been reaped
    EMPTY = auto()  # it has been reaped and the cgroup says `populated 0`
    POPULATED = auto()  # it has been reaped and the cgroup says `populated 1`
    TIMED_OUT = auto()
    IDLE_TIMED_OUT = auto()
    CPU_TIMED_OUT = auto()
    OUTPUT_EXCEEDED = auto()
    STALLED = auto()  # stuck at its memory limit
    REVOKED = auto()  # somebody outside has asked for its end, or taken its cgroup away
    NOT_REVOKED = auto()
    CANCELED = auto()  # asked to stop: signal, grace, kill
    ABORTED = auto()  # asked to stop at once
    NAMED = auto()  # the strays have their names, as far as they will
    DRAINED = auto()  # every reader has seen the end of its stream
    HELD = auto()  # somebody outside holds a pipe end
    SLOW = auto()  # the receiver of a relayed stream has not taken all of it
    REMOVED = auto()
    RELEASED = auto()
    # Deadlines, owned by this module.
    GRACE_OVER = auto()
    NAMING_OVER = auto()
    STILL_POPULATED = auto()
    GAVE_UP = auto()
    DRAIN_OVER = auto()
    RECEIVER_OVER = auto()
    REMOVE_OVER = auto()
    ANSWER_OVER = auto()
    RELEASE_OVER = auto()
    # Times to look, owned by this module.
    LOOK = auto()
    CPU_LOOK = auto()
    MEMORY_LOOK = auto()
    EXEC_LOOK = auto()
    REMOVE_AGAIN = auto()
    WORK_DUE = auto()
    RECORD_DUE = auto()


class Action(StrEnum):
    """What the driver has to do. None of them waits."""

    SPAWN = auto()
    LOOK = auto()  # read cgroup.events: EMPTY or POPULATED
    WATCH_EMPTY = auto()  # the same at each change
    LOOK_CPU = auto()
    LOOK_MEMORY = auto()
    LOOK_EXEC = auto()  # has the child let go of what it shares with us?
    RECORD = auto()  # write on the cgroup what it is, for others
    TERMINATE = auto()  # the signal to every process, or to the first of them
    NAME = auto()  # list the strays; NAMED comes once their names are there
    KILL = auto()  # cgroup.kill
    KILL_EACH = auto()  # SIGKILL to each by pidfd, or to the first of them
    WORK = auto()  # go on with what was too much for one turn
    NAME_STUCK = auto()
    DRAIN = auto()  # take what is in the pipes: DRAINED if they have ended
    LOOK_DRAIN = auto()  # DRAINED, SLOW or HELD
    NAME_HELD = auto()
    CLOSE = auto()
    MEASURE = auto()
    REMOVE = auto()  # rmdir, a bounded part of it: REMOVED if it is gone
    RELEASE = auto()  # give back what was made for this run alone: RELEASED
    END = auto()


class Bounds(NamedTuple):
    """The limits on a run's time, in seconds; infinite: none. `signal` is sent when one is hit, if there is a grace.

    `stall`: how long it may be stuck at its memory limit.
    """

    timeout: float = INFINITY
    grace: float = 0.0
    idle: float = INFINITY
    cpu: float = INFINITY
    signal: int = 15  # SIGTERM
    stall: float = INFINITY


class Cause(NamedTuple):
    """Why we end a run. `bound`: the field of Bounds that was hit; `gentle`: the signal and the grace come first."""

    outcome: Outcome
    bound: str | None = None
    gentle: bool = True


CAUSES: Final[dict[Event, Cause]] = {
    Event.TIMED_OUT: Cause("timed_out", "timeout"),
    Event.IDLE_TIMED_OUT: Cause("idle_timed_out", "idle"),
    Event.CPU_TIMED_OUT: Cause("cpu_timed_out", "cpu"),
    Event.OUTPUT_EXCEEDED: Cause("output_exceeded"),
    Event.STALLED: Cause("oom_killed", gentle=False),  # it waits for memory, and cannot answer a signal
    Event.REVOKED: Cause("canceled", gentle=False),  # who revokes has sent a signal first
    Event.CANCELED: Cause("canceled"),
    Event.ABORTED: Cause("canceled", gentle=False),
}

Step = tuple[State, tuple[Action, ...]]


Table = dict[State, dict[Event, Step]]


@cache
def table(*, grace: bool, wait: bool, unit: bool) -> Table:
    """The transitions, by state and then by event.

    `grace`: signal before the kill. `wait`: descendants may outlive the main process. `unit`: something was made for
    this run alone, and has to be given back. An event that a state has no row for changes nothing: it came too late to
    matter.
    """
    s, e, a = State, Event, Action
    kill: Step = (s.NAMING, (a.NAME,))
    stop: Step = (s.STOPPING, (a.TERMINATE,)) if grace else kill
    drain: Step = (s.DRAINING, (a.DRAIN,))
    settle: Step = (s.SETTLING, (a.LOOK,))
    finish: Step = (s.REMOVING, (a.CLOSE, a.MEASURE, a.REMOVE))
    held: Step = (s.REMOVING, (a.NAME_HELD, a.CLOSE, a.MEASURE, a.REMOVE))
    ended: Step = (s.RELEASING, (a.RELEASE,)) if unit else (s.ENDED, (a.END,))
    rows: dict[tuple[State, Event], Step] = {
        (s.NEW, e.START): (s.STARTING, (a.SPAWN,)),
        (s.STARTING, e.SPAWNED): (s.RUNNING, ()),
        (s.STARTING, e.SPAWN_FAILED): settle,
        (s.RUNNING, e.SPAWN_FAILED): settle,
        (s.RUNNING, e.EXITED): (s.LINGERING, (a.WATCH_EMPTY, a.LOOK)) if wait else settle,
        (s.LINGERING, e.EMPTY): drain,
        (s.SETTLING, e.EMPTY): drain,
        (s.SETTLING, e.POPULATED): kill,
        # Descendants get the rest of the grace when the main process obeys first.
        (s.STOPPING, e.EXITED): (s.STOPPING, (a.WATCH_EMPTY, a.LOOK)),
        (s.STOPPING, e.SPAWN_FAILED): settle,
        (s.STOPPING, e.EMPTY): drain,
        (s.STOPPING, e.GRACE_OVER): kill,
        (s.STOPPING, e.OUTPUT_EXCEEDED): kill,
        (s.STOPPING, e.MEMORY_LOOK): (s.STOPPING, (a.LOOK_MEMORY,)),
        (s.NAMING, e.EMPTY): drain,
        (s.NAMING, e.EXITED): (s.NAMING, (a.LOOK,)),
        (s.NAMING, e.SPAWN_FAILED): (s.NAMING, (a.LOOK,)),
        (s.NAMING, e.NAMED): (s.KILLING, (a.KILL,)),
        (s.NAMING, e.NAMING_OVER): (s.KILLING, (a.KILL,)),
        (s.KILLING, e.EXITED): (s.KILLING, (a.LOOK,)),
        (s.KILLING, e.SPAWN_FAILED): (s.KILLING, (a.LOOK,)),
        (s.KILLING, e.LOOK): (s.KILLING, (a.LOOK,)),
        (s.KILLING, e.STILL_POPULATED): (s.KILLING, (a.KILL_EACH,)),
        (s.KILLING, e.EMPTY): drain,
        (s.KILLING, e.GAVE_UP): (s.DRAINING, (a.NAME_STUCK, a.DRAIN)),
        (s.DRAINING, e.DRAINED): finish,
        (s.DRAINING, e.DRAIN_OVER): (s.DRAINING, (a.LOOK_DRAIN,)),
        (s.DRAINING, e.SLOW): (s.DRAINING, ()),
        (s.DRAINING, e.HELD): held,
        (s.DRAINING, e.RECEIVER_OVER): held,
        (s.REMOVING, e.REMOVE_AGAIN): (s.REMOVING, (a.REMOVE,)),
        (s.REMOVING, e.REMOVED): ended,
        (s.REMOVING, e.REMOVE_OVER): ended,
        (s.ASKING, e.REVOKED): ended,
        (s.ASKING, e.NOT_REVOKED): ended,
        (s.ASKING, e.ANSWER_OVER): ended,
        (s.RELEASING, e.RELEASED): (s.ENDED, (a.END,)),
        (s.RELEASING, e.RELEASE_OVER): (s.ENDED, (a.END,)),
    }
    for cause, how in CAUSES.items():
        for state in (s.RUNNING, s.LINGERING):
            rows[state, cause] = stop if how.gentle else kill
        if not how.gentle:
            rows[s.STOPPING, cause] = kill
        # Before it is running there is nothing to be gentle with.
        rows[s.NEW, cause] = rows[s.STARTING, cause] = kill
    for state in (s.RUNNING, s.LINGERING, s.STOPPING, s.NAMING, s.KILLING):
        rows[state, e.EXEC_LOOK] = (state, (a.LOOK_EXEC,))
    for state in (s.STOPPING, s.KILLING):
        rows[state, e.WORK_DUE] = (state, (a.WORK,))
    for state in (s.RUNNING, s.LINGERING):
        rows[state, e.CPU_LOOK] = (state, (a.LOOK_CPU,))
        rows[state, e.MEMORY_LOOK] = (state, (a.LOOK_MEMORY,))
        rows[state, e.RECORD_DUE] = (state, (a.RECORD,))
    return {state: {event: step for (of, event), step in rows.items() if of is state} for state in s}


ANSWERS: Final = frozenset({Event.REVOKED, Event.NOT_REVOKED, Event.ANSWER_OVER})
MARKED: Final = frozenset({State.STOPPING, State.KILLING, State.RELEASING, State.ENDED})
# What is armed when a state is entered; whatever else was armed before is forgotten, but what is kept.
DEADLINES: Final[dict[State, tuple[tuple[Event, float], ...]]] = {
    State.NAMING: ((Event.NAMING_OVER, NAMING_BOUND),),
    State.KILLING: (
        (Event.LOOK, LOOK_FIRST), (Event.STILL_POPULATED, KILL_ROUND), (Event.GAVE_UP, KILL_BOUND),
    ),
    State.DRAINING: ((Event.DRAIN_OVER, DRAIN_BOUND),),
    State.REMOVING: ((Event.REMOVE_AGAIN, LOOK_FIRST), (Event.REMOVE_OVER, REMOVE_BOUND)),
    State.ASKING: ((Event.ANSWER_OVER, ANSWER_BOUND),),
    State.RELEASING: ((Event.RELEASE_OVER, RELEASE_BOUND),),
}  # fmt: skip
KEPT: Final[dict[State, tuple[Event, ...]]] = {
    State.STOPPING: (Event.MEMORY_LOOK, Event.EXEC_LOOK),
    State.NAMING: (Event.EXEC_LOOK,),
    State.KILLING: (Event.EXEC_LOOK,),
}
# What is looked at again after this many seconds, as long as the state stays.
AGAIN: Final[dict[Event, float]] = {
    Event.LOOK: LOOK_FIRST,
    Event.STILL_POPULATED: KILL_ROUND,
    Event.MEMORY_LOOK: LOOK_MEMORY,
    Event.EXEC_LOOK: LOOK_EXEC,
    Event.REMOVE_AGAIN: LOOK_FIRST,
    Event.SLOW: LOOK_LAST,
}
