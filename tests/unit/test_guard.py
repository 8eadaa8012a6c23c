"""The guard of a scope: a real process, without a scope."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

from pinfold.backend.guard import Guard

IGNORED = ("HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TSTP")
MASK = sum(1 << (signal.Signals[f"SIG{name}"] - 1) for name in IGNORED)


def status(pid, key):
    with open(f"/proc/{pid}/status") as file:
        return next(line.split()[1] for line in file if line.startswith(f"{key}:"))


@pytest.fixture
def guard(wait_until):
    """A guard that has set itself up."""
    guard = Guard()
    try:
        wait_until(lambda: int(status(guard.pid, "SigIgn"), 16) & MASK == MASK, "its traps")
        wait_until(lambda: status(guard.pid, "State") == "S", "its sleep")
        yield guard
    finally:
        guard.end()


def readable(fd, seconds=10):
    return bool(select.select([fd], [], [], seconds)[0])


def exists(pid):
    return os.path.exists(f"/proc/{pid}")


def test_it_lives_until_it_is_let_go_of_and_is_reaped_then(guard):
    assert not guard.ended()
    assert not readable(guard.fd, 0)
    guard.end()
    assert guard.ended()
    assert not exists(guard.pid)
    guard.end()  # twice is no harm


@pytest.mark.parametrize("name", ["TERM", "KILL"])
def test_it_ends_with_its_scope_and_that_can_be_seen(guard, name):
    os.kill(guard.pid, signal.Signals[f"SIG{name}"])
    assert readable(guard.fd)
    assert guard.ended()
    assert exists(guard.pid)  # not reaped yet: its pid is nobody else's
    assert guard.ended()
    guard.end()
    assert not exists(guard.pid)


@pytest.mark.parametrize("name", IGNORED)
def test_signals_that_an_operator_may_send_to_all_of_a_unit_are_not_for_it(guard, name):
    os.kill(guard.pid, signal.Signals[f"SIG{name}"])
    # One that it takes comes after those that it does not: by its status it was the one.
    os.kill(guard.pid, signal.SIGTERM)
    assert readable(guard.fd)
    assert os.waitid(os.P_PIDFD, guard.fd, os.WEXITED | os.WNOWAIT).si_status == signal.SIGTERM


def test_it_ends_when_our_end_of_its_pipe_closes(guard):
    writes, guard._writes = guard._writes, -1
    os.close(writes)
    assert readable(guard.fd)
    assert guard.ended()


def test_it_ends_with_the_process_that_started_it(wait_until):
    script = "from pinfold.backend.guard import Guard; import os; print(Guard().pid, flush=True); os._exit(0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)
    pid = int(done.stdout)
    wait_until(lambda: not exists(pid) or status(pid, "State") == "Z", "its end")


def test_it_is_in_a_session_of_its_own_and_in_nobodys_directory(guard):
    assert os.getsid(guard.pid) == guard.pid
    assert os.readlink(f"/proc/{guard.pid}/cwd") == "/"
    assert int(status(guard.pid, "SigBlk"), 16) == 0


@pytest.fixture
def pipe_for_children():
    """The reading end of a pipe of which the writing end is inherited, and was closed by us."""
    reads, writes = os.pipe()
    os.set_inheritable(writes, True)
    yield reads, writes
    os.close(reads)


def test_it_keeps_no_pipe_of_the_host_program_open(pipe_for_children, guard):
    reads, writes = pipe_for_children
    os.close(writes)
    assert readable(reads, 0)
    assert os.read(reads, 1) == b""


def test_it_has_nothing_of_ours_open_and_nothing_of_our_environment(guard):
    assert set(os.listdir(f"/proc/{guard.pid}/fd")) == {"0", "1", "2"}
    assert [os.readlink(f"/proc/{guard.pid}/fd/{fd}") for fd in (1, 2)] == [os.devnull] * 2
    assert os.readlink(f"/proc/{guard.pid}/fd/0").startswith("pipe:")
    with open(f"/proc/{guard.pid}/environ", "rb") as file:
        assert file.read() == b""


def test_it_costs_less_than_a_megabyte(guard):
    with open(f"/proc/{guard.pid}/smaps_rollup") as file:
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith("kB\n")}
    assert 0 < kilobytes["Private_Dirty"] + kilobytes["Private_Clean"] <= 1024


def test_a_forked_child_lets_go_of_it_without_ending_it(guard):
    child = os.fork()
    if child == 0:
        guard.forget()
        guard.end()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not guard.ended()


def test_it_has_ended_where_the_host_program_has_taken_its_status(guard):
    os.kill(guard.pid, signal.SIGKILL)
    os.waitpid(guard.pid, 0)
    assert guard.ended()
    guard.end()


def test_it_is_not_started_where_there_is_no_shell_and_leaves_nothing(monkeypatch):
    spawn = os.posix_spawn
    monkeypatch.setattr(os, "posix_spawn", lambda _path, *rest, **how: spawn("/no-such-shell", *rest, **how))
    with pytest.raises(FileNotFoundError):
        Guard()


@pytest.mark.parametrize("closed", ["0", "1", "2", "0,1", "0,1,2"])
def test_it_works_in_a_program_whose_stdio_is_closed(tmp_path, closed):
    report = tmp_path / "report"
    script = (
        "import os, select\n"
        "from pinfold.backend.guard import Guard\n"
        f"report = open({str(report)!r}, 'w')\n"
        f"for fd in ({closed},): os.close(fd)\n"
        "guard = Guard()\n"
        "fds = [guard.fd, guard._writes]\n"
        "alive = not select.select([guard.fd], [], [], 0.1)[0]\n"
        "open_ = [fd for fd in range(3) if os.path.lexists(f'/proc/self/fd/{fd}')]\n"
        "guard.end()\n"
        "print(alive, min(fds) > 2, open_, guard.ended(), file=report, flush=True)\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=20, check=True)
    left = sorted({0, 1, 2} - {int(fd) for fd in closed.split(",")})
    assert report.read_text() == f"True True {left} True\n"
