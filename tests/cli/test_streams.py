"""stdin, stdout and stderr: the command has the caller's own, or every byte is passed on."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

ALL_BYTES = bytes(range(256)) * 4096
RELAYED = [pytest.param((), id="straight"), pytest.param(("--idle-timeout", "20"), id="relayed")]


@pytest.mark.parametrize("options", RELAYED)
def test_every_byte_passes_in_both_directions(pinfold, python, options):
    copy = "import sys; data = sys.stdin.buffer.read(); [f.buffer.write(data) for f in (sys.stdout, sys.stderr)]"
    ended = pinfold(*options, *python(copy), stdin=ALL_BYTES)
    assert ended.code == 0
    assert ended.out == ALL_BYTES
    assert ended.err.encode(errors="surrogateescape") == ALL_BYTES


def test_command_has_the_very_files_of_the_caller(pinfold):
    read, write = os.pipe()
    try:
        shown = pinfold("readlink", "/proc/self/fd/7", "/proc/self/fd/1", pass_fds=(write,)).out.split()
        assert shown[-1].startswith(b"pipe:")
        assert len(shown) == 1  # and nothing else that we have open
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("options", RELAYED)
def test_order_between_commands_of_one_pipe_is_kept(pinfold, options):
    ended = pinfold(*options, "sh", "-c", "for i in 1 2 3; do echo $i; done; sh -c 'echo 4'; echo 5")
    assert ended.out == b"1\n2\n3\n4\n5\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_no_trouble(start, tmp_path, closed):
    result, marker = tmp_path / "result", tmp_path / "marker"
    line = f'exec "$@" {closed}'
    command = f"echo out; echo err >&2; readlink /proc/self/fd/* > {marker}; true"
    process = start("--result", result, "sh", "-c", command, before=("sh", "-c", line, "sh"))
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert result.read_text().startswith('{"schema": 1')
    assert result.read_text().count("\n") == 1
    assert b"Traceback" not in err
    assert str(result) not in marker.read_text()
    assert (out == b"out\n") == (">&-" not in closed.replace("2>&-", ""))


def test_stdin_that_nobody_writes_does_not_hold_it_up(start):
    read, write = os.pipe()
    try:
        process = start("echo", "done", stdin=read)
        assert process.communicate(timeout=20)[0] == b"done\n"
    finally:
        os.close(read)
        os.close(write)


def test_receiver_that_is_full_is_our_failure(start, tmp_path):
    with open("/dev/full", "wb") as full:
        process = start("--idle-timeout", "5", "--result", tmp_path / "result", "--", "echo", "x", stdout=full)
        err = process.communicate(timeout=20)[1]
    assert process.returncode == 125
    assert err.count(b"\n") == 1
    assert b"No space left on device" in err
    result = json.loads((tmp_path / "result").read_text())
    assert (result["outcome"], result["returncode"], result["error"]["errno"]) == ("exited", 0, "ENOSPC")


def test_output_that_is_larger_than_any_buffer(start):
    process = start("--idle-timeout", "20", "head", "-c", "100000000", "/dev/zero")
    total = 0
    while chunk := os.read(process.stdout.fileno(), 1 << 20):
        total += len(chunk)
    assert (process.wait(20), total) == (0, 100_000_000)


@pytest.mark.parametrize("options", [(), ("--output-limit", "1G"), ("--idle-timeout", "20")])
def test_pipeline_ends_when_its_reader_has_enough(start, options, cgroup2):
    process = start(*options, "--", "yes", before=("bash", "-c", '"$@" | head -n 1; echo "${PIPESTATUS[0]}"', "bash"))
    out, err = process.communicate(timeout=20)
    assert out == b"y\n141\n"
    assert b"Traceback" not in err


def test_pipefail_sees_the_status_of_the_command(start):
    process = start("--", "sh", "-c", "echo x; exit 3", before=("bash", "-c", 'set -o pipefail; "$@" | cat', "bash"))
    assert process.communicate(timeout=20)[0] == b"x\n"
    assert process.returncode == 3


def test_head_c_closes_the_pipe_of_a_limited_run(start):
    process = start(
        "--output-limit", "100M", "cat", "/dev/zero", before=("bash", "-c", '"$@" | head -c 10 | wc -c', "bash")
    )
    assert process.communicate(timeout=20)[0].strip() == b"10"


class TestSlowReader:
    """Output that is counted passes through us: a reader that is slow must not cost the limit or the bytes."""

    PRINT = "import os, time; os.write(1, b'x' * 150000); os.write(2, b'written'); time.sleep(30)"

    def test_timeout_is_kept_and_then_the_bytes_arrive(self, start, python, wait_until, cgroup2):
        process = start("--timeout", "1", "--output-limit", "1G", *python(self.PRINT))

        def runs() -> list[str]:
            return [d for d, _, _ in os.walk(cgroup2) if Path(d).name.startswith("run-") and _populated(d)]

        wait_until(runs, "the command")
        wait_until(lambda: not runs(), "its end, with nobody reading", 2.5)
        assert len(process.communicate(timeout=20)[0]) == 150000
        assert process.returncode == 124

    def test_reader_that_never_reads_is_not_waited_for_for_ever(self, start, python):
        process = start("--timeout", "500ms", "--output-limit", "1G", *python(self.PRINT), stderr=subprocess.DEVNULL)
        assert process.wait(8) == 124

    def test_terminal_that_is_not_read_is_not_waited_for_for_ever(self, start, slowness):
        """A cooked terminal takes less than it polls for: a write of what it does not take would block."""
        options = ("-t", "1", "--idle-timeout", "30")
        commands = [["dd", "if=/dev/zero", "bs=777"], ["yes"], ["sh", "-c", "while :; do echo hello; done"]]
        ptys = [os.openpty() for _ in commands]
        try:
            runs = [
                start(*options, "--", *command, stdout=slave, stderr=subprocess.DEVNULL)
                for command, (_master, slave) in zip(commands, ptys, strict=True)
            ]
            assert [run.wait(5 + slowness) for run in runs] == [124] * len(runs)
        finally:
            for fd in (fd for pty in ptys for fd in pty):
                os.close(fd)

    def test_reader_that_reads_after_two_seconds_misses_nothing(self, start, python):
        process = start("--output-limit", "1G", *python("import os; os.write(1, b'x' * 5_000_000)"))
        late: list[bytes] = []
        timer = threading.Timer(2, lambda: late.append(process.stdout.read()))
        timer.start()
        timer.join(20)
        assert (process.wait(20), len(late[0])) == (0, 5_000_000)


def _populated(directory: str) -> bool:
    try:
        with open(directory + "/cgroup.events") as file:
            return "populated 1" in file.read()
    except OSError:
        return False


class TestOutputLimit:
    @pytest.mark.parametrize("stream", [1, 2])
    def test_exactly_the_limit_is_allowed_and_one_more_is_not(self, pinfold, stream):
        write = f"head -c $0 /dev/zero >&{stream}; exit 5"
        at, over = (pinfold("--output-limit", "4K", "sh", "-c", write, n) for n in ("4096", "4097"))
        assert (at.code, at.result["outcome"]) == (5, "exited")
        assert (over.code, over.result["outcome"]) == (137, "output_exceeded")
        assert (at.out if stream == 1 else at.err.encode()) == bytes(4096)
        assert over.result[f"std{'out' if stream == 1 else 'err'}"]["truncated"] is True

    def test_the_first_bytes_are_those_that_pass(self, pinfold):
        assert pinfold("--output-limit", "4", "printf", "abcdefgh").out == b"abcd"

    def test_limit_of_nothing(self, pinfold):
        assert pinfold("--output-limit", "0", "true").code == 0
        assert pinfold("--output-limit", "0", "echo").code == 137
