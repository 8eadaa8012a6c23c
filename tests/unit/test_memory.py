"""The stall guard with a clock of the test's, and the looks at a run's memory."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfold.runs.memory import MemoryWatch, Stall

MB = 1 << 20
LIMIT = 64 * MB
STUCK = (LIMIT, 1.0)  # bytes, and the part of the time in which all waited
FREE = (LIMIT, 0.1)
BELOW = (32 * MB, 1.0)


class Clock:
    """Looks at a cgroup every so often, of which each says how full it is and how much of the time it has waited."""

    def __init__(self, timeout, ceiling=LIMIT, start=1000.0, waited=5_000_000):
        self.stall, self.ceiling, self.now, self.full = Stall(timeout), ceiling, start, waited
        assert not self.stall.look(self.now, LIMIT, ceiling, waited)

    def look(self, current, share, step=0.1):
        self.now += step
        self.full += round(share * step * 1e6)
        return self.stall.look(self.now, current, self.ceiling, self.full)

    def looks(self, *kinds):
        return [self.look(*kind) for kind in kinds]


def test_a_run_that_is_stuck_for_the_whole_time_is_ended():
    assert Clock(1.05).looks(*[STUCK] * 11) == [False] * 10 + [True]


@pytest.mark.parametrize("progress", [FREE, BELOW, (LIMIT, 0.0), (0, 0.0)], ids=str)
def test_progress_begins_the_time_again(progress):
    clock = Clock(1.05)
    assert not any(clock.looks(*[STUCK] * 10, progress))
    assert clock.looks(*[STUCK] * 11) == [False] * 10 + [True]


@pytest.mark.parametrize(("current", "ceiling"), [(32 * MB, LIMIT), (LIMIT * 94 // 100, LIMIT), (1 << 50, math.inf)])
def test_a_run_that_is_not_at_its_limit_is_never_stuck_whatever_it_waits_for(current, ceiling):
    assert not any(Clock(0.5, ceiling).looks(*[(current, 1.0)] * 100))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.79])
def test_a_run_without_pressure_is_never_stuck_however_full_it_is(share):
    assert not any(Clock(0.5).looks(*[(LIMIT, share)] * 100))


@pytest.mark.parametrize(("current", "share"), [(LIMIT * 95 // 100 + 1, 1.0), (LIMIT, 0.81), (2 * LIMIT, 1.0)])
def test_nearly_full_and_nearly_always_waiting_is_stuck(current, share):
    assert Clock(0.45).looks(*[(current, share)] * 5) == [False] * 4 + [True]


def test_what_was_waited_before_the_first_look_does_not_count():
    stall = Stall(0.0)
    assert not stall.look(0.0, LIMIT, LIMIT, 10**12)


def test_no_patience_is_the_first_look_that_is_stuck_and_none_that_is_not():
    assert Clock(0.0).looks(FREE, BELOW, STUCK, FREE, STUCK) == [False, False, True, False, True]


@given(
    st.floats(0, 3),
    st.lists(
        st.tuples(
            st.sampled_from([LIMIT, LIMIT * 96 // 100, LIMIT * 94 // 100, 0]),
            st.sampled_from([0.0, 0.5, 0.79, 0.81, 1.0]),
            st.floats(0.01, 2),
        ),
        max_size=60,
    ),
)
def test_nothing_is_stuck_before_the_whole_time_has_passed_since_the_last_look_that_was_not(timeout, looks):
    clock = Clock(timeout)
    free = clock.now
    for current, share, step in looks:
        found = clock.look(current, share, step)
        if current < 0.95 * LIMIT or share < 0.8:
            free = clock.now
            assert not found
        else:
            assert found == (clock.now - free >= timeout)


class FakeCgroup:
    """Files of a cgroup; a missing one is None, as `Cgroup.read` says it."""

    def __init__(self, **files):
        self.files = files

    def read(self, name):
        return self.files.get(name.replace(".", "_"))


def pressure(full):
    return f"some avg10=0.00 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total={full}\n"


def stuck(**changes):
    return FakeCgroup(**{
        "memory_current": f"{LIMIT}\n", "memory_max": f"{LIMIT}\n", "memory_high": "max\n", "memory_stat": "anon 5\n",
        "memory_pressure": pressure(0), **changes,
    })  # fmt: skip


def looks(cgroup, timeout=0.45, waits=100_000):
    watch, found = MemoryWatch(cgroup, timeout, 1000.0), []
    for n in range(1, 11):
        if waits and cgroup.files["memory_pressure"]:
            cgroup.files["memory_pressure"] = pressure(n * waits)
        found.append(watch.look(1000.0 + n / 10))
    return found


@pytest.mark.parametrize("limit", [{}, {"memory_max": "max\n", "memory_high": f"{LIMIT}\n"}], ids=["max", "high"])
def test_a_cgroup_that_waits_at_either_limit_is_stuck(limit):
    assert looks(stuck(**limit)) == [False] * 4 + [True] * 6


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_max": "max\n"}, {"memory_max": None, "memory_high": None}, {"memory_pressure": None},
        {"memory_current": None}, {"memory_current": "5\n"},
        {"memory_pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"},
    ],
    ids=str,
)  # fmt: skip
def test_a_cgroup_that_does_not_tell_or_is_not_full_is_not_stuck(changes):
    waits = 0 if "memory_pressure" in changes else 100_000
    assert not any(looks(stuck(**changes), waits=waits))


def test_without_a_stall_guard_nothing_is_stuck():
    assert not any(looks(stuck(), timeout=math.inf))


def test_the_parts_of_its_memory_are_those_of_the_fullest_look():
    cgroup = FakeCgroup(memory_current="10\n", memory_stat="anon 6\nfile 4\n")
    watch = MemoryWatch(cgroup, math.inf, 0.0)
    assert watch.parts == {}
    for current, stat in (("10\n", "anon 6\nfile 4\n"), ("90\n", "anon 80\nfile 10\n"), ("40\n", "anon 40\nfile 0\n")):
        cgroup.files |= {"memory_current": current, "memory_stat": stat}
        watch.look(1.0)
    assert watch.parts == {"anon": 80, "file": 10}


def test_a_cgroup_that_is_gone_changes_no_part():
    cgroup = FakeCgroup(memory_current="10\n", memory_stat="anon 6\n")
    watch = MemoryWatch(cgroup, math.inf, 0.0)
    watch.look(1.0)
    cgroup.files = {}
    assert not watch.look(2.0)
    assert watch.parts == {"anon": 6}
