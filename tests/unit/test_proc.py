"""What /proc says, and what is done about a process whose command line cannot be read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pinfold import proc

BLOCKED = 2**22 + 1  # a pid that nobody has
PATIENCE = 0.4  # seconds


@pytest.fixture
def blocking(monkeypatch):
    """Let the readers of these pids wait, as for a file system that does not answer; ended by the test."""
    let_go, real, asked = threading.Event(), proc.wait_for_argv, []

    def block(*pids):
        def wait_for_argv(pid):
            asked.append(pid)
            if pid in pids:
                assert let_go.wait(30)
            return real(pid)

        monkeypatch.setattr(proc, "wait_for_argv", wait_for_argv)
        return asked, let_go

    yield block
    let_go.set()
    for thread in threading.enumerate():
        if thread.name == "pinfold-argv":
            thread.join(30)
    assert proc._given_up == set()


def argv_of(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().decode().split("\0")[:-1]


def test_ours():
    pid = os.getpid()
    assert proc.proc_is_ours()
    assert proc.wait_for_argv(pid) == argv_of(pid)
    assert proc.argv_within([pid], 10) == {pid: argv_of(pid)}
    with open("/proc/self/comm") as file:
        assert proc.comm(pid) == file.read().rstrip("\n")


@pytest.mark.parametrize("pid", [BLOCKED, 2**31])
def test_what_is_no_process_says_nothing(pid):
    assert (proc.comm(pid), proc.wait_for_argv(pid), proc.process_of(pid), proc.start_time(pid)) == (
        None,
        None,
        0,
        None,
    )
    assert proc.argv_within([pid], 10) == {pid: None}


def test_a_thread_belongs_to_its_process():
    found = []
    thread = threading.Thread(target=lambda: found.append(proc.process_of(threading.get_native_id())))
    thread.start()
    thread.join()
    assert found == [proc.process_of(os.getpid())] == [os.getpid()]


def test_bytes_that_are_no_utf_8_leave_no_surrogates(wait_until):
    with subprocess.Popen(["/bin/sh", "-c", b"read x; : \xff"], stdin=subprocess.PIPE) as child:
        argv = wait_until(lambda: proc.wait_for_argv(child.pid), "its command line")  # which follows its exec
        assert argv[2] == r"read x; : \xff"


def test_a_file_that_is_not_there(tmp_path):
    assert (proc.read(str(tmp_path / "x")), proc.read_bytes(str(tmp_path / "x"))) == (None, b"")
    with pytest.raises(FileNotFoundError):
        proc.read_text(str(tmp_path / "x"))


def test_one_that_blocks_its_reader_is_left_out_and_the_others_are_read(blocking):
    _asked, _ = blocking(BLOCKED, BLOCKED + 1)
    began = time.monotonic()
    found = proc.argv_within([BLOCKED, os.getpid(), BLOCKED + 1, os.getppid()], PATIENCE)
    assert time.monotonic() - began < 20
    assert found == {os.getpid(): argv_of(os.getpid()), os.getppid(): argv_of(os.getppid())}


def test_it_keeps_one_reader_however_often_it_is_asked_for(blocking):
    asked, let_go = blocking(BLOCKED)
    for _ in range(3):
        assert proc.argv_within([BLOCKED], PATIENCE / 10) == {}
    assert asked == [BLOCKED]
    let_go.set()
    for thread in threading.enumerate():
        if thread.name == "pinfold-argv":
            thread.join(30)
    assert proc.argv_within([BLOCKED], 10) == {BLOCKED: None}


def test_with_too_many_that_block_nobody_is_asked(blocking, monkeypatch):
    asked, _ = blocking(BLOCKED, BLOCKED + 1)
    monkeypatch.setattr(proc, "_GIVEN_UP_AT_MOST", 2)
    assert proc.argv_within([BLOCKED, BLOCKED + 1], PATIENCE / 10) == {}
    assert proc.argv_within([os.getpid()], 10) == {}
    assert sorted(asked) == [BLOCKED, BLOCKED + 1]


def test_where_no_thread_can_be_started_nothing_is_read(monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert proc.argv_within([os.getpid()], 10) == {}


def test_a_forked_child_has_no_readers_to_wait_for(blocking):
    blocking(BLOCKED)
    proc.argv_within([BLOCKED], PATIENCE / 10)
    assert proc._given_up == {BLOCKED}
    child = os.fork()
    if child == 0:
        os._exit(len(proc._given_up))
    assert os.waitpid(child, 0)[1] == 0


def test_a_zombie_has_a_name_and_no_command_line(wait_until):
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert proc.comm(child.pid)
    assert proc.wait_for_argv(child.pid) is None
    child.communicate()
