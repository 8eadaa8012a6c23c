"""Capture, Relay and Feed over real pipes: exact to the byte, never blocked, never killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfold.result import Stream
from pinfold.runs.loop import Loop
from pinfold.runs.pipes import CHUNK, Capture, Feed, Relay

TURNS = 10_000  # more than any test here needs: the deadline of every loop


@pytest.fixture
def poller():
    poller = Loop()
    yield poller
    poller.close()


@pytest.fixture
def pipe():
    """Makes pipes as (read, write), read end non-blocking; what a test leaves open is closed."""
    made = []

    def make(blocking=False):
        ends = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(ends[0], blocking)
        made.extend(ends)
        return ends

    make.close = lambda fd: (made.remove(fd), os.close(fd))
    make.hand_over = made.remove  # closed by the object under test
    yield make
    for fd in made:
        os.close(fd)


def turn_until(poller, condition):
    for _ in range(TURNS):
        if condition():
            return
        poller.turn(1)
    pytest.fail("never came")


def kept_of(data, limit):
    """What a capture must keep, said in the plainest way."""
    if limit is None or len(data) <= limit:
        return data
    head, tail = limit - limit // 2, limit // 2
    return data[:head] + data[len(data) - tail :]


def _has_counted(capture, count):
    return capture.count == count


def capture_all(pieces, limit):
    """What a Capture makes of pieces that are written one after the other."""
    poller = Loop()
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
    capture = Capture(read, limit)
    capture.watch(poller)
    written = 0
    try:
        for piece in pieces:
            assert os.write(write, piece) == len(piece)
            written += len(piece)
            turn_until(poller, partial(_has_counted, capture, written))
    finally:
        os.close(write)
    turn_until(poller, lambda: capture.done)
    poller.close()
    return capture


ALL_BYTES = bytes(range(256))
PATTERN = b"".join(i.to_bytes(4, "big") for i in range(100_000))  # no two places of it are alike


@pytest.mark.parametrize("limit", [None, 0, 1, 2, 3, 7, 255, 256, 257, 1 << 20, 2**63])
def test_a_capture_keeps_head_and_tail_of_binary_data(limit):
    capture = capture_all([ALL_BYTES], limit)
    assert capture.data() == kept_of(ALL_BYTES, limit)
    assert capture.stream() == Stream(256, len(kept_of(ALL_BYTES, limit)), limit is not None and limit < 256)


@pytest.mark.parametrize("limit", [0, 1, 5, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, 3 * CHUNK + 7, None])
@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, len(PATTERN)])
def test_a_capture_is_exact_around_the_size_of_its_reads(limit, size):
    data = PATTERN[:size]
    pieces = [data[at : at + (1 << 18)] for at in range(0, size, 1 << 18)]
    capture = capture_all(pieces, limit)
    assert capture.count == size
    assert capture.data() == kept_of(data, limit)


PIECES = st.lists(
    st.binary(min_size=1, max_size=60)
    | st.tuples(st.integers(0, 1000), st.integers(1, 3 * CHUNK)).map(lambda at: PATTERN[at[0] : at[0] + at[1]]),
    max_size=5,
)


@given(PIECES, st.none() | st.integers(0, 300) | st.integers(0, 6 * CHUNK))
def test_a_capture_keeps_exactly_head_and_tail_of_anything(pieces, limit):
    data = b"".join(pieces)
    capture = capture_all(pieces, limit)
    kept = kept_of(data, limit)
    assert capture.data() == kept
    assert capture.stream() == Stream(len(data), len(kept), len(kept) < len(data))
    assert capture.exceeded == (limit is not None and len(data) > limit)


@pytest.mark.parametrize("limit", [None, 0, 4])
def test_a_stream_without_a_byte_is_empty_and_not_truncated(limit):
    capture = capture_all([], limit)
    assert (capture.data(), capture.stream()) == (b"", Stream(0, 0, False))


def test_a_capture_reports_bytes_but_not_the_end(poller, pipe):
    read, write = pipe()
    pipe.hand_over(read)
    capture, seen = Capture(read, 4), []
    capture.on_bytes = lambda: seen.append(capture.count)
    capture.watch(poller)
    os.write(write, b"123456")
    turn_until(poller, lambda: capture.exceeded)
    pipe.close(write)
    turn_until(poller, lambda: capture.done)
    assert seen == sorted(set(seen))
    assert seen[-1] == 6
    assert capture.fd == -1


def test_what_is_in_the_pipe_is_taken_without_waiting_for_its_end(poller, pipe):
    read, write = pipe()
    pipe.hand_over(read)
    capture = Capture(read, None)
    capture.watch(poller)
    os.write(write, b"held open")
    capture.ready_until_blocked()
    assert (capture.data(), capture.done) == (b"held open", False)
    capture.close()
    capture.close()
    assert capture.data() == b"held open"


def test_taking_what_is_there_is_bounded_when_somebody_goes_on_writing(poller, pipe):
    read, write = pipe()
    pipe.hand_over(read)
    os.set_blocking(write, False)
    capture = Capture(read, 10)
    capture.on_bytes = lambda: os.write(write, b"x")
    capture.watch(poller)
    os.write(write, b"x")
    capture.ready_until_blocked()
    assert 1 < capture.count < TURNS
    capture.close()


@pytest.mark.parametrize("kind", ["capture", "relay", "feed"])
def test_an_end_that_was_never_watched_can_be_closed(pipe, kind):
    """A run that is aborted before its command started closes its streams too."""
    (read, write), (_other, out) = pipe(), pipe()
    end = {"capture": Capture, "relay": lambda fd, _: Relay(fd, out, None), "feed": lambda *_: Feed(write, b"x")}
    subject = end[kind](read, None)
    closes = {"capture": {read}, "relay": {read, out}, "feed": {write}}[kind]
    subject.close()
    for fd in closes:
        pipe.hand_over(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


# ---- the loop that drives them ----


def test_a_handler_that_was_dropped_in_the_same_round_is_not_called(poller, pipe):
    ends, called = [pipe(), pipe()], []

    def handler(mine, other):
        called.append(mine)
        poller.drop(other)

    for (read, _write), (other, _) in ((ends[0], ends[1]), (ends[1], ends[0])):
        poller.add(read, select.POLLIN, lambda mine=read, other=other: handler(mine, other))
    for _read, write in ends:
        os.write(write, b"x")
    poller.turn(1)
    assert len(called) == 1


def test_dropping_what_is_not_watched_is_no_error(poller, pipe):
    read, _write = pipe()
    poller.drop(read)
    poller.add(read, select.POLLIN, lambda: None)
    poller.drop(read)
    poller.drop(read)


# ---- Feed ----


@pytest.mark.parametrize("data", [b"", b"x", ALL_BYTES, PATTERN])
def test_a_feed_writes_all_of_its_input_and_then_the_end(poller, pipe, data):
    (read, write), out = pipe(), []
    pipe.hand_over(write)
    pipe.hand_over(read)
    os.set_blocking(write, False)
    feed, capture = Feed(write, data), Capture(read, None)
    feed.watch(poller)
    capture.watch(poller)
    capture.on_bytes = lambda: out.append(feed.fd)
    turn_until(poller, lambda: capture.done)
    assert capture.data() == data
    assert feed.fd == -1


def test_a_feed_does_not_wait_for_a_reader_that_does_not_read(poller, pipe):
    _read, write = pipe()
    pipe.hand_over(write)
    os.set_blocking(write, False)
    feed = Feed(write, PATTERN)
    feed.watch(poller)
    for _ in range(50):
        poller.turn(0)
    assert feed.fd == write
    feed.ready()  # says EAGAIN inside, which is no error
    feed.close()
    assert feed.fd == -1


@pytest.mark.parametrize("after", [0, CHUNK])
def test_a_reader_that_stops_reading_early_is_no_error(poller, pipe, after):
    read, write = pipe()
    pipe.hand_over(write)
    os.set_blocking(write, False)
    feed = Feed(write, PATTERN)
    feed.watch(poller)
    if after:
        poller.turn(1)
        assert os.read(read, after)
    pipe.close(read)
    turn_until(poller, lambda: feed.fd == -1)


CLOSED_READERS = """
import os, signal, sys
from pinfold.runs.loop import Loop
from pinfold.runs.pipes import Feed, Relay
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
poller = Loop()
read, write = os.pipe(); os.set_blocking(write, False); os.close(read)
feed = Feed(write, b"x" * 100)
feed.watch(poller)
source, into = os.pipe(); closed, out = os.pipe(); os.close(closed); os.write(into, b"data")
relay = Relay(source, out, None)
relay.watch(poller)
while feed.fd >= 0 or not relay.done:
    poller.turn(5)
assert signal.SIGPIPE not in signal.sigpending() and signal.SIGPIPE not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
print("alive", flush=True)
if sys.argv[1] == "control":
    read, write = os.pipe(); os.close(read); os.write(write, b"x")
"""


@pytest.mark.parametrize(("mode", "returncode"), [("only ours", 0), ("control", -signal.SIGPIPE)])
def test_a_closed_reader_does_not_kill_a_program_with_the_default_sigpipe(mode, returncode):
    """The control: in that program a plain write to a closed pipe is deadly."""
    done = subprocess.run([sys.executable, "-c", CLOSED_READERS, mode], stdout=subprocess.PIPE, timeout=20, check=False)
    assert (done.stdout, done.returncode) == (b"alive\n", returncode)


# ---- Relay ----


@pytest.fixture
def relayed(poller, pipe):
    """Makes a Relay between two pipes: (relay, end to write into, end to read from)."""

    def make(limit=None):
        (source, into), (result, out) = pipe(), pipe()
        pipe.hand_over(source)
        pipe.hand_over(out)
        relay = Relay(source, out, limit)
        relay.watch(poller)
        made.append(relay)
        return relay, into, result

    made = []
    yield make
    for relay in made:
        relay.close()


@pytest.mark.parametrize(("limit", "passed_on"), [(None, 256), (0, 0), (1, 1), (255, 255), (256, 256), (1000, 256)])
def test_a_relay_passes_on_the_first_bytes_up_to_its_limit(poller, pipe, relayed, limit, passed_on):
    relay, into, result = relayed(limit)
    os.write(into, ALL_BYTES[:100])
    turn_until(poller, lambda: relay.count == 100)
    os.write(into, ALL_BYTES[100:])
    pipe.close(into)
    turn_until(poller, lambda: relay.done)
    assert os.read(result, 1000) == ALL_BYTES[:passed_on] if passed_on else relay.done
    assert relay.stream() == Stream(256, passed_on, passed_on < 256)
    assert relay.exceeded == (passed_on < 256)
    assert relay.data() is None


def test_a_relay_never_waits_for_a_slow_receiver_and_stops_reading_meanwhile(poller, pipe, relayed):
    relay, into, result = relayed()
    os.set_blocking(into, False)
    written = 0
    for _ in range(100):
        with_room = select.select([], [into], [], 0)[1]
        written += os.write(into, PATTERN[written : written + 4096]) if with_room else 0
        poller.turn(0)
    assert relay.busy
    assert relay.count < written  # the rest is still in the command's pipe, which is full
    assert not select.select([], [into], [], 0)[1]
    pipe.close(into)
    received = b""
    for _ in range(TURNS):
        if relay.done:
            break
        received += os.read(result, CHUNK)
        poller.turn(0)
    received += os.read(result, 1 << 20)
    assert received == PATTERN[:written]
    assert relay.stream() == Stream(written, written, False)


def test_what_a_slow_receiver_did_not_take_was_not_kept(poller, relayed):
    relay, into, result = relayed()
    os.set_blocking(into, False)
    fcntl.fcntl(result, fcntl.F_SETPIPE_SZ, 4096)
    os.write(into, PATTERN[: 1 << 14])
    poller.turn(1)
    taken = len(os.read(result, CHUNK))
    assert taken < relay.count == 1 << 14
    assert relay.stream() == Stream(1 << 14, taken, True)


@pytest.mark.parametrize("busy", [False, True])
def test_a_receiver_that_is_gone_ends_the_relay_so_that_the_command_learns_it(poller, pipe, relayed, busy):
    relay, into, result = relayed()
    if busy:
        fcntl.fcntl(result, fcntl.F_SETPIPE_SZ, 4096)
        os.write(into, PATTERN[: 1 << 14])
        turn_until(poller, lambda: relay.busy)
    else:
        os.write(into, b"x")
    pipe.close(result)
    turn_until(poller, lambda: relay.done)
    with pytest.raises(BrokenPipeError):
        os.write(into, b"x")


def test_what_a_receiver_that_is_gone_did_not_take_was_not_kept(poller, pipe, relayed):
    relay, into, result = relayed()
    pipe.close(result)
    os.write(into, b"0123456789")
    turn_until(poller, lambda: relay.done)
    assert relay.stream() == Stream(10, 0, True)


def test_a_relay_takes_what_is_there_without_waiting_for_its_end(poller, relayed):
    relay, into, result = relayed()
    os.write(into, b"held open")
    relay.ready_until_blocked()
    assert (os.read(result, 100), relay.done) == (b"held open", False)


def test_a_receiver_that_fails_does_so_once_so_that_the_run_can_still_be_cleaned_up(poller, pipe):
    """ENOSPC. The first failure may be raised; while the run is aborted the relay must not raise it again."""
    source, into = pipe()
    pipe.hand_over(source)
    os.set_blocking(source, False)
    relay = Relay(source, os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC), None)
    relay.watch(poller)
    try:
        os.write(into, b"first")
        with contextlib.suppress(OSError):
            poller.turn(1)
        with contextlib.suppress(BrokenPipeError):  # it may have let go of the command's pipe
            os.write(into, b"second")
        poller.turn(0)
        relay.ready_until_blocked()
    finally:
        relay.close()
