"""The guard of a fold: a real process, and a directory where its fold would be."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

import pytest

from pinfold.backend import guard as guard_module
from pinfold.backend.guard import Guard

IGNORED = ("HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TSTP")
MASK = sum(1 << (signal.Signals[f"SIG{name}"] - 1) for name in IGNORED)
PR_SET_CHILD_SUBREAPER = 36
libc = ctypes.CDLL(None, use_errno=True)


def status(pid, key):
    with open(f"/proc/{pid}/status") as file:
        return next(line.split()[1] for line in file if line.startswith(f"{key}:"))


def readable(fd, seconds=10):
    return bool(select.select([fd], [], [], seconds)[0])


def exists(pid):
    return os.path.exists(f"/proc/{pid}")


def has_ended(pid):
    """It is gone, or waits for init to see that."""
    try:
        return status(pid, "State") == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def start(wait_until):
    """`start(obeys_term)`: a guard that has set itself up."""
    started = []

    def start(*, obeys_term=False):
        guard = Guard(obeys_term=obeys_term)
        started.append(guard)
        wait_until(lambda: int(status(guard.pid, "SigIgn"), 16) & MASK == MASK, "its traps")
        wait_until(lambda: status(guard.pid, "State") == "S", "its sleep")
        return guard

    yield start
    for guard in started:
        guard.end()


@pytest.fixture
def guard(start):
    """One that is deaf to TERM."""
    return start()


@pytest.fixture
def subreaper():
    """Orphans become children of this process: it can see how a guard ended."""
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


def ending(guard):
    """How a guard ended that is a child of ours; it is not reaped by that."""
    assert readable(guard.fd)
    info = os.waitid(os.P_PIDFD, guard.fd, os.WEXITED | os.WNOWAIT)
    return info.si_code, info.si_status


def close_lease(guard):
    lease, guard._lease = guard._lease, -1
    os.close(lease)


def test_a_signal_to_our_group_while_it_is_being_started_is_not_for_it():
    """A host program that takes TERM, in a group that is sent it without end; the shell has set up no traps then."""
    code = """
import os, signal, threading
from pinfold.backend.guard import Guard
signal.signal(signal.SIGTERM, lambda *_: None)
done = threading.Event()

def send():
    while not done.is_set():
        os.killpg(0, signal.SIGTERM)

sender = threading.Thread(target=send)
sender.start()
guards = []
try:
    for _ in range(100):
        guards.append(Guard(obeys_term=True))
    print(sum(guard.ended(0) for guard in guards))
finally:
    done.set()
    sender.join()
    for guard in guards:
        guard.end()
"""
    argv = [sys.executable, "-c", code]
    ended = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=60, check=True, process_group=0)
    assert ended.stdout == "0\n"


def test_it_lives_until_it_is_ended(guard):
    assert not guard.ended()
    assert not readable(guard.fd, 0)
    guard.end()
    assert guard.ended()
    assert has_ended(guard.pid)
    guard.end()  # twice is no harm


def test_it_is_no_child_of_ours(guard):
    """A host program may wait for any child, or until there is none."""
    assert int(status(guard.pid, "PPid")) != os.getpid()
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_PID, guard.pid, os.WEXITED | os.WNOHANG)


def test_starting_it_sends_the_host_program_no_signal():
    """Nor does the process between us and it."""
    seen = []
    before = signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
    try:
        guard = Guard(obeys_term=False)
        guard.end()
        assert seen == []
        subprocess.run(["true"], check=True, timeout=20)
        assert seen  # the handler works
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_subreaper_has_it_for_a_child_and_reaps_it(subreaper, start):
    guard = start()
    assert int(status(guard.pid, "PPid")) == os.getpid()
    guard.end()
    assert guard.ended()
    assert not exists(guard.pid)


@pytest.mark.parametrize(("name", "obeys_term"), [("TERM", True), ("KILL", True), ("KILL", False)])
def test_it_ends_with_its_scope_and_that_can_be_seen(subreaper, start, name, obeys_term):
    guard = start(obeys_term=obeys_term)
    os.kill(guard.pid, signal.Signals[f"SIG{name}"])
    assert ending(guard) == (os.CLD_KILLED, signal.Signals[f"SIG{name}"])
    assert guard.ended()
    assert exists(guard.pid)  # not reaped yet: its pid is nobody else's
    assert guard.ended()
    guard.end()
    assert not exists(guard.pid)


@pytest.mark.parametrize("name", IGNORED)
def test_signals_that_an_operator_may_send_to_all_of_a_unit_are_not_for_it(subreaper, start, name):
    guard = start(obeys_term=True)
    os.kill(guard.pid, signal.Signals[f"SIG{name}"])
    # One that it takes comes after those that it does not: by its status it was the one.
    os.kill(guard.pid, signal.SIGTERM)
    assert ending(guard) == (os.CLD_KILLED, signal.SIGTERM)


@pytest.mark.parametrize("name", [*IGNORED, "TERM"])
def test_one_that_is_not_to_obey_term_is_deaf_to_that_too(subreaper, start, name):
    guard = start()
    os.kill(guard.pid, signal.Signals[f"SIG{name}"])
    close_lease(guard)
    assert ending(guard)[0] == os.CLD_EXITED  # by itself, at the end of its lease


def test_a_stop_does_not_take_its_lease_from_it(subreaper, start, wait_until):
    guard = start()
    os.kill(guard.pid, signal.SIGSTOP)
    wait_until(lambda: status(guard.pid, "State") == "T", "its stop")
    assert not guard.ended()
    os.kill(guard.pid, signal.SIGCONT)
    wait_until(lambda: status(guard.pid, "State") == "S", "its sleep")
    close_lease(guard)
    assert ending(guard)[0] == os.CLD_EXITED


def test_it_ends_when_our_end_of_its_pipe_closes(guard):
    close_lease(guard)
    assert readable(guard.fd)
    assert guard.ended()


def test_it_ends_with_the_process_that_started_it(wait_until):
    script = (
        "from pinfold.backend.guard import Guard; import os\n"
        "print((guard := Guard(obeys_term=False)).pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)
    pid = int(done.stdout)
    wait_until(lambda: has_ended(pid), "its end")


def test_it_is_in_a_session_of_its_own_and_in_nobodys_directory(guard):
    assert os.getsid(guard.pid) not in (0, os.getsid(0))
    assert os.getpgid(guard.pid) not in (0, os.getpgrp())
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
        assert file.read() == b"PATH=" + os.defpath.encode() + b"\0"


def test_it_costs_less_than_a_megabyte(guard):
    with open(f"/proc/{guard.pid}/smaps_rollup") as file:
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith("kB\n")}
    assert 0 < kilobytes["Private_Dirty"] + kilobytes["Private_Clean"] <= 1024


@pytest.mark.parametrize("how", ["forget", "end"])
def test_a_forked_child_lets_go_of_it_without_ending_it(guard, how):
    child = os.fork()
    if child == 0:
        getattr(guard, how)()
        guard.end()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not guard.ended()


def test_a_forked_child_that_lives_on_does_not_keep_it_from_its_work(guard):
    """Without a word of the child's: the lease is closed in it as soon as it is there."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writes)
        os.read(reads, 1)
        os._exit(0)
    try:
        close_lease(guard)
        assert readable(guard.fd)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it was there all the time
    finally:
        os.close(writes)
        os.waitpid(child, 0)
        os.close(reads)


def test_it_has_ended_where_the_host_program_has_taken_its_status(subreaper, start):
    guard = start()
    os.kill(guard.pid, signal.SIGKILL)
    os.waitpid(guard.pid, 0)
    assert guard.ended()
    guard.end()


def test_it_is_not_started_where_there_is_no_shell_and_leaves_nothing(monkeypatch):
    start = guard_module.start_orphan
    monkeypatch.setattr(guard_module, "start_orphan", lambda argv, *rest: start([b"/no-such-shell", *argv[1:]], *rest))
    with pytest.raises(FileNotFoundError):
        Guard(obeys_term=False)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize(
    "name", ["plain", " two  spaces ", "back\\slash\\n", "$HOME`id`'\"", "a*?[b]", "-rf", "two\nlines", "\nx"]
)
def test_it_takes_any_name_for_what_it_is(subreaper, start, tmp_path, name):
    """What it writes first is the kill; a fold that is a plain directory shows where it went."""
    (fold := tmp_path / name).mkdir()
    (decoy := tmp_path / (name.split() or ["decoy"])[0].partition("\\")[0].partition("*")[0]).mkdir(exist_ok=True)
    guard = start()
    guard.watch(str(fold))
    assert not (fold / "cgroup.kill").exists()
    close_lease(guard)
    assert readable(guard.fd)
    assert (fold / "cgroup.kill").read_text() == "1\n"
    assert decoy == fold or os.listdir(decoy) == []


def test_a_guard_that_is_gone_cannot_be_told_anything(subreaper, start, tmp_path):
    guard = start()
    os.kill(guard.pid, signal.SIGKILL)
    assert ending(guard) == (os.CLD_KILLED, signal.SIGKILL)
    with pytest.raises(BrokenPipeError):
        guard.watch(str(tmp_path))


@pytest.mark.parametrize("closed", ["0", "1", "2", "0,1", "0,1,2"])
def test_it_works_in_a_program_whose_stdio_is_closed(tmp_path, closed):
    report = tmp_path / "report"
    script = (
        "import os, select\n"
        "from pinfold.backend.guard import Guard\n"
        f"report = open({str(report)!r}, 'w')\n"
        f"for fd in ({closed},): os.close(fd)\n"
        "guard = Guard(obeys_term=False)\n"
        "fds = [guard.fd, guard._lease]\n"
        "alive = not select.select([guard.fd], [], [], 0.1)[0]\n"
        "open_ = [fd for fd in range(3) if os.path.lexists(f'/proc/self/fd/{fd}')]\n"
        "guard.end()\n"
        "print(alive, min(fds) > 2, open_, guard.ended(), file=report, flush=True)\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=20, check=True)
    left = sorted({0, 1, 2} - {int(fd) for fd in closed.split(",")})
    assert report.read_text() == f"True True {left} True\n"
