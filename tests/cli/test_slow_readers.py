"""Who does not read what pinfold itself has to say does not hold it up."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

PINFOLD = [str(Path(sys.executable).with_name("pinfold")), "run"]
F_SETPIPE_SZ = 1031


@pytest.fixture
def full_pipe():
    """The ends of a small pipe that is full."""
    read, write = os.pipe()
    fcntl.fcntl(write, F_SETPIPE_SZ, 4096)
    os.write(write, b"x" * 4096)
    yield read, write
    os.close(read)
    os.close(write)


def test_a_line_that_nobody_reads_is_dropped(cgroup2, full_pipe, slowness):
    began = time.monotonic()
    argv = [*PINFOLD, "-t", "0.2", "--", "sleep", "60"]
    done = subprocess.run(argv, stderr=full_pipe[1], timeout=30, check=False)
    assert done.returncode == 124
    assert time.monotonic() - began < 2.0 + 3 * slowness


@pytest.mark.parametrize("blocking", [True, False])
def test_a_result_waits_for_room_and_is_whole(cgroup2, full_pipe, blocking):
    read, write = full_pipe
    os.set_blocking(write, blocking)
    argv = [*PINFOLD, "-q", "--result-fd", str(write), "--", "sh", "-c", "exit 3"]
    with subprocess.Popen(argv, pass_fds=[write], stderr=subprocess.PIPE) as process:
        assert os.read(read, 4096) == b"x" * 4096
        data = b""
        while not data.endswith(b"}\n"):
            data += os.read(read, 65536)
        assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 3
    assert json.loads(data)["returncode"] == 3
    assert os.get_blocking(write) is blocking, "it is the caller's, too"


def test_a_result_goes_into_a_socket(cgroup2):
    here, there = socket.socketpair()
    with here, there:
        argv = [*PINFOLD, "--result-fd", str(there.fileno()), "--", "true"]
        assert subprocess.run(argv, pass_fds=[there.fileno()], timeout=30, check=False).returncode == 0
        there.close()
        assert json.loads(here.makefile().read())["outcome"] == "exited"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_result_that_nobody_reads_is_an_error_in_the_end(cgroup2, full_pipe, kind, slowness):
    here, there = socket.socketpair()
    with here, there:
        there.setblocking(False)
        try:
            while True:
                there.send(b"x" * 4096)
        except BlockingIOError:
            there.setblocking(True)
        fd = there.fileno() if kind == "socket" else full_pipe[1]
        began = time.monotonic()
        argv = [*PINFOLD, "--result-fd", str(fd), "--", "true"]
        done = subprocess.run(argv, pass_fds=[fd], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == f"pinfold: the result could not be written to {fd}: nobody has read it for 10 s\n"
    assert time.monotonic() - began < 10 + 5 * slowness
