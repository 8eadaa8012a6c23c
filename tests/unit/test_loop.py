"""The loop: who is told what, in which order, and that no run keeps another waiting."""

from __future__ import annotations

import errno
import os
import select
import threading
import time

import pytest

from pinfold.runs.loop import READABLE, Loop, SharedLoop
from pinfold.units import INFINITY

PATIENCE = 10.0


class FakeRun:
    """A run with one deadline, which says what it was told."""

    def __init__(self, deadline=INFINITY, again=None):
        self.deadline, self.again, self.scheduled = deadline, again, INFINITY
        self.told, self.failed, self.ready = [], [], threading.Event()

    def expire(self, now):
        self.told.append(now)
        self.deadline = INFINITY if self.again is None else now + self.again
        self.ready.set()

    def fail(self, error):
        self.failed.append(error)
        self.ready.set()


@pytest.fixture
def pipe():
    """Two ends, closed afterwards."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture(params=[Loop, SharedLoop], ids=["own", "shared"])
def loop(request, monkeypatch):
    """Both kinds, turned by the test."""
    if request.param is SharedLoop:
        monkeypatch.setattr(SharedLoop, "_turn_on", lambda _self: None)
    made = request.param()
    yield made
    made.close()


def test_whoever_watches_a_descriptor_is_told(loop, pipe):
    told = []
    loop.add(pipe[0], READABLE, lambda: told.append("one"))
    loop.turn(0)
    assert told == []
    os.write(pipe[1], b"x")
    loop.turn(PATIENCE)
    assert told == ["one"]


def test_a_deadline_that_an_exception_has_cut_short_can_be_set_again(loop, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    run = FakeRun(time.monotonic() - 1)
    with monkeypatch.context() as patch:
        patch.setattr("pinfold.runs.loop.insort", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.schedule(run)
    loop.schedule(run)
    loop.turn(0)
    assert len(run.told) == 1


def test_two_may_watch_the_same_and_one_may_stop(loop, pipe):
    """The guard of a scope is that of all runs in it."""
    told, one, two = [], FakeRun(), FakeRun()
    loop.add(pipe[0], READABLE, lambda: told.append("one"), one)
    loop.add(pipe[0], READABLE, lambda: told.append("two"), two)
    os.write(pipe[1], b"x")
    loop.turn(PATIENCE)
    assert told == ["one", "two"]
    loop.drop(pipe[0], one)
    loop.turn(PATIENCE)
    assert told == ["one", "two", "two"]
    loop.drop(pipe[0], two)
    assert not loop.watches(pipe[0])
    loop.turn(0)
    assert told == ["one", "two", "two"]


def test_what_one_handler_drops_is_told_to_nobody_in_the_same_round(loop, pipe):
    others = os.pipe()
    told = []

    def first(fd, other):
        told.append(fd)
        loop.drop(other)

    try:
        loop.add(pipe[0], READABLE, lambda: first(pipe[0], others[0]))
        loop.add(others[0], READABLE, lambda: first(others[0], pipe[0]))
        os.write(pipe[1], b"x")
        os.write(others[1], b"x")
        loop.turn(PATIENCE)
        assert len(told) == 1
    finally:
        for end in others:
            os.close(end)


def test_deadlines_fall_in_their_order_each_when_it_is_due(loop):
    now = time.monotonic()
    order = []
    for name, after in (("third", 0.03), ("first", 0.01), ("second", 0.02)):
        run = FakeRun(now + after)
        run.expire = lambda _now, name=name, run=run: (order.append(name), setattr(run, "deadline", INFINITY))
        loop.schedule(run)
    while len(order) < 3:
        loop.turn(PATIENCE)
    assert order == ["first", "second", "third"]
    assert time.monotonic() >= now + 0.03


def test_a_run_that_is_due_again_at_once_keeps_no_other_waiting(loop):
    now = time.monotonic()
    busy, other = FakeRun(now, again=0.0), FakeRun(now)
    loop.schedule(busy)
    loop.schedule(other)
    loop.turn(0)
    assert (len(busy.told), len(other.told)) == (1, 1)
    loop.turn(0)
    assert len(busy.told) == 2


def test_what_is_ready_wins_over_a_deadline_that_is_due(loop, pipe):
    told = []
    run = FakeRun(time.monotonic() - 1)
    run.expire = lambda _now: told.append("late")

    def ready():
        os.read(pipe[0], 1)
        told.append("ready")
        loop.forget(run)

    loop.add(pipe[0], READABLE, ready)
    loop.schedule(run)
    os.write(pipe[1], b"x")
    loop.turn(PATIENCE)
    assert told == ["ready"]


def test_old_deadlines_of_ended_runs_are_not_kept(loop):
    for _ in range(1000):
        run = FakeRun(time.monotonic() + 3600)
        loop.schedule(run)
        loop.forget(run)
    assert len(loop._due) < 200
    assert loop._runs == {}


def test_other_threads_have_something_done(loop):
    loop.open_wake()
    told = []
    thread = threading.Thread(target=lambda: loop.call(lambda: told.append(threading.get_ident())))
    thread.start()
    end = time.monotonic() + PATIENCE
    while not told and time.monotonic() < end:
        loop.turn(PATIENCE)  # more than one, if it looks between the call and the wake
    thread.join()
    assert told == [threading.get_ident()]


def test_what_takes_time_is_done_aside_and_its_answer_here(loop):
    run, here = FakeRun(), threading.get_ident()
    found = []

    def work():
        there = threading.get_ident()
        return lambda: found.append((there, threading.get_ident()))

    assert loop.aside(work, run)
    while not found:
        loop.turn(PATIENCE)
    ((there, answered),) = found
    assert there != here
    assert answered == here
    for thread in threading.enumerate():
        if thread.name == "pinfold-aside":
            thread.join(PATIENCE)


def test_where_no_thread_is_to_be_had_it_says_so(loop, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert not loop.aside(lambda: lambda: None, FakeRun())


# ---- the shared one, in its thread ---------------------------------------------------------------------------


@pytest.fixture
def shared():
    """One that turns by itself."""
    made = SharedLoop()
    yield made
    made.stop()


def test_a_deadline_that_is_nearer_than_the_wait_wakes_it(shared):
    shared.schedule(far := FakeRun(time.monotonic() + 3600))
    shared.wake_by(far.deadline)
    near = FakeRun(time.monotonic() + 0.01)
    shared.schedule(near)
    shared.wake_by(near.deadline)
    assert near.ready.wait(PATIENCE)
    assert far.told == []


def test_what_one_run_raises_is_its_own_matter(shared, pipe):
    bad, good = FakeRun(), FakeRun(time.monotonic() + 0.01)

    def broken():
        shared.drop(pipe[0])
        raise ValueError("x")

    shared.add(pipe[0], READABLE, broken, bad)
    os.write(pipe[1], b"x")
    assert bad.ready.wait(PATIENCE)
    shared.schedule(good)
    shared.wake_by(good.deadline)
    assert good.ready.wait(PATIENCE)
    assert [str(error) for error in bad.failed] == ["x"]
    assert good.failed == []


def test_a_wait_that_fails_ends_every_run_of_the_loop(pipe, monkeypatch):
    """Nobody would look after them any more: not even their timeouts."""
    allowed = threading.Event()
    wait = SharedLoop._wait

    def refuse(self, seconds):
        found = wait(self, seconds)
        if allowed.is_set():
            raise OSError(errno.EIO, "refused")
        return found

    monkeypatch.setattr(SharedLoop, "_wait", refuse)
    loop = SharedLoop()
    watching, waiting, late = FakeRun(), FakeRun(time.monotonic() + 3600), FakeRun(time.monotonic() + 3600)
    loop.add(pipe[0], READABLE, lambda: None, watching)
    loop.schedule(waiting)
    allowed.set()
    loop.call(lambda: None)
    try:
        assert watching.ready.wait(PATIENCE)
        assert waiting.ready.wait(PATIENCE)
        loop.schedule(late)
        assert [run.failed[0].errno for run in (watching, waiting, late)] == [errno.EIO] * 3
        assert loop.aside(lambda: None, late) is False
    finally:
        loop.stop()


def test_a_run_is_forgotten_with_all_it_watches(shared, pipe):
    run = FakeRun(time.monotonic() + 3600)
    shared.add(pipe[0], READABLE, lambda: None, run)
    shared.schedule(run)
    shared.drop_all(run)
    assert not shared.watches(pipe[0])
    assert run.scheduled == INFINITY


def test_stopped_it_has_neither_thread_nor_descriptors():
    made = SharedLoop()
    thread = made._thread
    made.stop()
    assert not thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        made._poll.poll(0)


def test_a_forked_child_takes_nothing_away_from_it(shared, pipe):
    told = threading.Event()
    shared.add(pipe[0], READABLE, lambda: (shared.drop(pipe[0]), told.set()))
    child = os.fork()
    if child == 0:
        shared.abandon()
        os._exit(0)
    os.waitpid(child, 0)
    os.write(pipe[1], b"x")
    assert told.wait(PATIENCE)
    answered = threading.Event()
    shared.call(answered.set)  # its wake is still watched
    assert answered.wait(PATIENCE)


def test_poll_knows_the_masks_of_epoll():
    assert (select.POLLIN, select.POLLOUT, select.POLLPRI) == (select.EPOLLIN, select.EPOLLOUT, select.EPOLLPRI)
