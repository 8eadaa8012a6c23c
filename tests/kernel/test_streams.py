"""The streams: every byte, in order, to wherever it was asked to go; and nobody waits for an end that never comes."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import socket
import time
from pathlib import Path

import pytest

import pinfold

BOTH = "for n in 1 2 3 4 5; do echo out$n; echo err$n >&2; done"


def interleaved() -> bytes:
    """What BOTH writes to one file."""
    return b"".join(b"out%d\nerr%d\n" % (n, n) for n in range(1, 6))


# ---- a pipe end outside the cgroup ---------------------------------------------------------------------------


def test_a_write_end_that_was_handed_outside_delays_nobody(cgroup2, villain, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        begin = time.monotonic()
        result = pinfold.run(villain("pipe_hander", path), capture_output=True, timeout=10)
        took = time.monotonic() - begin
        connection, _ = listener.accept()
        with connection:
            _data, fds, _flags, _address = socket.recv_fds(connection, 1, 4)
    try:
        assert (result.outcome, result.stdout, took < 3) == ("exited", b"handed over\n", True)
        assert result.receipt.pipe_held is True
        assert result.receipt.emptied is True
        with pytest.raises(BrokenPipeError):
            os.write(fds[0], b"too late")
    finally:
        for fd in fds:
            os.close(fd)


def test_a_live_reader_is_not_kept_waiting_by_an_end_outside_either(cgroup2, villain, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with pinfold.start(villain("pipe_hander", path), stdout=pinfold.PIPE, timeout=10) as run:
            begin = time.monotonic()
            assert run.stdout.read() == b"handed over\n"
            assert time.monotonic() - begin < 3
            run.wait(5)
        connection, _ = listener.accept()
        with connection:
            for fd in socket.recv_fds(connection, 1, 4)[1]:
                os.close(fd)


def test_a_pipe_that_ended_is_not_called_held(cgroup2):
    assert pinfold.run(["echo"], capture_output=True).receipt.pipe_held is False


# ---- flags ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["run", "start"])
def test_a_command_never_gets_a_nonblocking_stream(cgroup2, villain, how):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), pinfold.PIPE)
    if how == "run":
        out = pinfold.run(villain("report"), **pipes).stdout
    else:
        with pinfold.start(villain("report"), **pipes) as run:
            out = run.communicate()[0]
    assert b'"nonblocking": [false, false, false]' in out


@pytest.mark.parametrize("options", [{}, {"idle_timeout": 10}, {"output_limit": 10}], ids=["as is", "idle", "limit"])
def test_what_we_inherit_stays_as_it_was(cgroup2, options):
    read, write = os.pipe()
    try:
        pinfold.run(["sh", "-c", "echo hello"], stdin=read, stdout=write, **options)
        assert (os.get_blocking(read), os.get_blocking(write)) == (True, True)
        assert os.read(read, 100) == b"hello\n"
    finally:
        os.close(read)
        os.close(write)


# ---- input ---------------------------------------------------------------------------------------------------


def test_input_that_is_not_read_is_no_error(cgroup2):
    result = pinfold.run(["head", "-c", "10"], input=b"x" * (4 << 20), capture_output=True, timeout=10)
    assert (result.outcome, result.returncode, result.stdout) == ("exited", 0, b"x" * 10)


def test_input_to_a_command_that_closes_its_stdin_is_no_error(cgroup2):
    result = pinfold.run(["sh", "-c", "exec <&-; sleep 0.1; echo on"], input=b"x" * (4 << 20), capture_output=True)
    assert (result.returncode, result.stdout) == (0, b"on\n")


def test_much_input_and_output_do_not_block_each_other(cgroup2):
    data = os.urandom(4 << 20)
    result = pinfold.run(["cat"], input=data, capture_output=True, timeout=20)
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()
    assert result.stdout_stream.bytes == len(data)


def test_empty_input_is_the_end_at_once(cgroup2):
    assert pinfold.run(["cat"], input=b"", capture_output=True, timeout=10).stdout == b""


# ---- where output goes ---------------------------------------------------------------------------------------


def test_output_goes_to_a_path_a_file_an_fd_and_nowhere(cgroup2, tmp_path):
    pinfold.run(["echo", "path"], stdout=tmp_path / "path")
    with open(tmp_path / "file", "w") as file:
        file.write("before\n")
        pinfold.run(["echo", "file"], stdout=file)
        pinfold.run(["echo", "fd"], stdout=file.fileno())
    result = pinfold.run(["echo", "nowhere"], stdout=pinfold.DEVNULL, stderr=pinfold.DEVNULL)
    assert (tmp_path / "path").read_text() == "path\n"
    assert (tmp_path / "file").read_text() == "before\nfile\nfd\n"
    assert (result.stdout, result.stdout_stream.bytes) == (None, None)


def test_inherited_output_goes_where_ours_goes(cgroup2, capfd):
    pinfold.run(["sh", "-c", "echo out; echo err >&2"])
    pinfold.run(["sh", "-c", "echo out; echo err >&2"], idle_timeout=10)
    assert capfd.readouterr() == ("out\nout\n", "err\nerr\n")


def test_stderr_goes_where_stdout_goes_in_the_order_of_the_writes(cgroup2, tmp_path):
    captured = pinfold.run(["sh", "-c", BOTH], stdout=pinfold.PIPE, stderr=pinfold.STDOUT)
    pinfold.run(["sh", "-c", BOTH], stdout=tmp_path / "file", stderr=pinfold.STDOUT)
    relayed = pinfold.run(["sh", "-c", BOTH], stdout=tmp_path / "relayed", stderr=pinfold.STDOUT, idle_timeout=10)
    assert captured.stdout == interleaved()
    assert captured.stderr is None
    assert (tmp_path / "file").read_bytes() == interleaved()
    assert (tmp_path / "relayed").read_bytes() == interleaved()
    assert relayed.stdout_stream.bytes == len(interleaved())


def test_a_receiver_that_is_gone_ends_the_writer_as_it_would_without_us(cgroup2):
    read, write = os.pipe()
    os.close(read)
    try:
        result = pinfold.run(["sh", "-c", "while :; do echo y; done"], stdout=write, idle_timeout=5, timeout=10)
    finally:
        os.close(write)
    assert (result.outcome, result.returncode) == ("signaled", -13)


def test_a_receiver_that_refuses_is_the_commands_trouble_not_the_callers(cgroup2):
    """A full disk: without a relay the command sees it, and run returns a Result."""
    with open("/dev/full", "wb", buffering=0) as full:
        direct = pinfold.run(["sh", "-c", "echo hello || exit 3"], stdout=full, timeout=10)
        relayed = pinfold.run(["sh", "-c", "echo hello || exit 3"], stdout=full, timeout=10, idle_timeout=5)
    assert direct.returncode == 3
    assert relayed.outcome in ("exited", "signaled")
    assert relayed.receipt.emptied


@pytest.mark.timeout(30)
def test_a_pipe_that_another_writer_has_filled_meanwhile_holds_up_no_timeout(cgroup2, monkeypatch, slowness):
    """Both saw the same room in it; whose write comes second must not block."""
    from pinfold.runs import pipes

    read, write = os.pipe()
    other = os.open(f"/proc/self/fd/{write}", os.O_WRONLY | os.O_NONBLOCK)
    real = pipes._write_quietly

    def late(fd, data):
        with contextlib.suppress(BlockingIOError):
            while os.write(other, bytes(4096)):
                pass
        return real(fd, data)

    monkeypatch.setattr(pipes, "_write_quietly", late)
    try:
        result = pinfold.run(["yes"], stdout=write, idle_timeout=30, timeout=0.5)
        assert os.get_blocking(write)
    finally:
        for fd in (read, write, other):
            os.close(fd)
    assert (result.outcome, result.receipt.removed) == ("timed_out", True)
    assert result.duration < 0.5 + 2 + 2 * slowness


def test_a_receiver_that_stops_reading_is_told_from_a_pipe_that_is_held(cgroup2):
    read, write = os.pipe()
    try:
        result = pinfold.run(["yes"], stdout=write, idle_timeout=30, timeout=0.3)
    finally:
        os.close(read)
        os.close(write)
    receipt = result.receipt
    assert (result.outcome, receipt.receiver_stalled, receipt.pipe_held) == ("timed_out", True, False)
    assert result.stdout_stream.kept < result.stdout_stream.bytes


def test_a_receiver_that_refuses_is_named_in_the_result(cgroup2, tmp_path):
    (tmp_path / "file").touch()
    with open("/dev/full", "wb") as full, open(tmp_path / "file") as read_only:
        disk = pinfold.run(["echo", "x"], stdout=full, idle_timeout=5)
        mode = pinfold.run(["echo", "x"], stdout=read_only, output_limit=100)
    assert [result.error["errno"] for result in (disk, mode)] == ["ENOSPC", "EBADF"]
    assert [result.stdout_stream.kept for result in (disk, mode)] == [0, 0]
    assert "No space left on device" in disk.error["message"]


# ---- limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 2, 9, 10, 1000, 65536, 200_001])
def test_over_its_output_limit_head_and_tail_are_kept_and_all_is_counted(cgroup2, villain, limit):
    total = 1 << 20
    whole = bytes(range(256)) * (total // 256)
    result = pinfold.run(villain("thrower", total), capture_output=True, output_limit=limit)
    head, tail = limit - limit // 2, limit // 2
    assert result.outcome == "exited"
    assert result.stdout == whole[:head] + whole[total - tail :]
    stream = result.stdout_stream
    assert (stream.bytes, stream.kept, stream.truncated) == (total, limit, True)


def test_up_to_its_output_limit_nothing_is_cut(cgroup2, villain):
    result = pinfold.run(villain("thrower", 70_000), capture_output=True, output_limit=70_000)
    assert (len(result.stdout), result.stdout_stream.truncated) == (70_000, False)


def test_a_flood_is_ended_where_the_option_says_kill(cgroup2):
    result = pinfold.run(["yes"], capture_output=True, output_limit="1M", output_exceeded="kill", timeout=20)
    assert (result.outcome, result.returncode, result.limit_hit) == ("output_exceeded", -9, None)
    assert len(result.stdout) == 1 << 20
    assert result.receipt.emptied


# ---- start ---------------------------------------------------------------------------------------------------


def test_communicate_feeds_and_reads_to_both_ends(cgroup2):
    data = os.urandom(1 << 20)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), pinfold.PIPE)
    with pinfold.start(["sh", "-c", "tee /dev/stderr"], timeout=20, **pipes) as run:
        assert run.communicate(data) == (data, data)
    assert run.returncode == 0


def test_communicate_feeds_a_command_whose_output_is_not_piped(cgroup2, tmp_path):
    with pinfold.start(["cat"], stdin=pinfold.PIPE, stdout=tmp_path / "out", timeout=5) as run:
        assert run.communicate(b"fed") == (None, None)
        assert run.wait(1).outcome == "exited"
    assert (tmp_path / "out").read_bytes() == b"fed"


def test_communicate_feeds_a_command_that_closes_its_output_first(cgroup2, tmp_path):
    argv = ["sh", "-c", f"exec >&-; cat > {tmp_path}/out"]
    data = b"x" * (1 << 20)
    with pinfold.start(argv, stdin=pinfold.PIPE, stdout=pinfold.PIPE, timeout=5) as run:
        assert run.communicate(data) == (b"", None)
        assert run.wait(1).outcome == "exited"
    assert (tmp_path / "out").read_bytes() == data


def test_communicate_returns_though_a_write_end_was_handed_outside(cgroup2, villain, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with pinfold.start(villain("pipe_hander", path), stdout=pinfold.PIPE, timeout=10) as run:
            begin = time.monotonic()
            assert run.communicate() == (b"handed over\n", None)
            assert time.monotonic() - begin < 3
        connection, _ = listener.accept()
        with connection:
            for fd in socket.recv_fds(connection, 1, 4)[1]:
                os.close(fd)


def test_communicate_again_gives_the_same_again(cgroup2):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), pinfold.PIPE)
    with pinfold.start(["sh", "-c", "cat; echo err >&2"], timeout=10, **pipes) as run:
        first = run.communicate(b"in")
        assert first == (b"in", b"err\n")
        assert run.communicate() == first
        assert run.communicate(b"more") == first
    assert run.communicate() == first


def test_communicate_reads_nobody_elses_file_after_a_close(cgroup2, tmp_path):
    """The number of a closed stream is soon that of another file."""
    (tmp_path / "foreign").write_text("foreign")
    with pinfold.start(["echo", "ours"], stdout=pinfold.PIPE, stderr=pinfold.PIPE, timeout=10) as run:
        number, raw = run.stdout.fileno(), run.stdout.raw
        run.stdout.close()
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(tmp_path / "foreign")) for _ in range(20)]
            assert number in [file.fileno() for file in files]
            with pytest.raises(ValueError, match="closed"):
                raw.fileno()
            assert run.communicate() == (None, b"")
            assert [file.read() for file in files] == ["foreign"] * 20


def test_input_without_a_pipe_is_refused_and_the_run_goes_on(cgroup2):
    with pinfold.start(["cat"], stdin=pinfold.DEVNULL, stdout=pinfold.PIPE, timeout=10) as run:
        with pytest.raises(pinfold.UsageError, match="stdin"):
            run.communicate(b"x")
        assert run.communicate() == (b"", None)


def test_text_mode_gives_text_streams(cgroup2):
    pipes = {"stdin": pinfold.PIPE, "stdout": pinfold.PIPE}
    with pinfold.start(["cat"], encoding="utf-8", timeout=5, **pipes) as run:
        run.stdin.write("grün\n")
        run.stdin.flush()
        assert run.stdout.readline() == "grün\n"
        run.stdin.close()
        assert run.stdout.read() == ""
    assert pinfold.run(["cat"], input="grün", encoding="utf-8", capture_output=True).stdout == "grün"


def test_an_unknown_encoding_is_refused_before_anything_is_started(cgroup2, tmp_path):
    marker = tmp_path / "marker"
    for verb in (pinfold.run, pinfold.start):
        with pytest.raises((pinfold.UsageError, LookupError)):
            verb(["sh", "-c", f"touch {marker}; sleep 60"], stdout=pinfold.PIPE, encoding="no such", timeout=1)
    assert not marker.exists()


def test_a_closed_descriptor_is_refused_before_anything_is_started(cgroup2):
    with pytest.raises(OSError, match="Bad file descriptor"):
        pinfold.run(["true"], stdout=9999)


def test_a_dropped_run_lets_go_of_its_descriptors_without_the_garbage_collector(cgroup2, wait_until):
    def open_fds() -> list[str]:
        links = [file.readlink() for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
        return sorted(str(link) for link in links if str(link).startswith(("pipe:", "anon_inode:")))

    both = {"stdout": pinfold.PIPE, "stderr": pinfold.PIPE}
    with pinfold.Fold() as fold:
        fold.start(["true"]).wait(10)
        before = open_fds()
        gc.disable()
        try:
            run = fold.start(["sh", "-c", "sleep 0.1; echo out; echo err >&2"], **both)
            assert run.stdout.read() == b"out\n", "it had to wait for that"
            assert run.wait(10).returncode == 0
            assert open_fds() != before, "the control: it has some"
            del run
            wait_until(lambda: open_fds() == before, "the loop's thread to let go of it, too")
        finally:
            gc.enable()
