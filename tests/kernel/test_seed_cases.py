"""The cases pinfold grew from, each with the standard library failing beside it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

import pinfold

LINE = "echo start && sleep 10 && echo end."
WRITER = "(while :; do echo tick; sleep 0.01; done) & echo $!"


def grandchildren(process: subprocess.Popen) -> list[psutil.Process]:
    """Who is below a process now."""
    return psutil.Process(process.pid).children(recursive=True)


def test_a_grandchild_that_holds_the_pipe_ends_with_the_timeout(cgroup2, alive, slowness):
    begin = time.monotonic()
    result = pinfold.run(["sh", "-c", LINE], timeout=1, stdout=pinfold.PIPE, stderr=pinfold.STDOUT)
    took = time.monotonic() - begin
    assert (result.outcome, result.stdout, result.returncode) == ("timed_out", b"start\n", -signal.SIGKILL)
    assert 1 <= took < 1 + 2 * slowness
    receipt = result.receipt
    assert (receipt.emptied, receipt.removed, receipt.strays, receipt.pipe_held) == (True, True, 1, False)
    assert [stray.argv for stray in receipt.stray_processes] == [["sleep", "10"]]
    assert not alive(receipt.stray_processes[0].pid)


def test_with_subprocess_the_same_grandchild_survives_and_blocks_the_reader(wait_until, end_of, alive):
    argv = ["sh", "-c", LINE]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        survivors = wait_until(lambda: grandchildren(process), "the sleep below the shell")
        process.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=0.5)
        assert process.poll() == -signal.SIGKILL, "the shell is gone, and still the reader was blocked"
        assert [alive(survivor.pid) for survivor in survivors] == [True]
        end_of(*survivors)


def held(pid: int) -> list[str]:
    """What a process has open."""
    found, fds = [], f"/proc/{pid}/fd"
    for fd in os.listdir(fds):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(f"{fds}/{fd}"))
    return found


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("line", ["sleep 10", LINE], ids=["one command", "a list"])
def test_one_command_and_a_list_end_alike_under_either_shell(cgroup2, shell, line, slowness):
    begin = time.monotonic()
    result = pinfold.run([shell, "-c", line], timeout=0.3, capture_output=True)
    assert time.monotonic() - begin < 3 * slowness
    assert (result.outcome, result.returncode, result.receipt.emptied) == ("timed_out", -signal.SIGKILL, True)


def test_with_subprocess_it_depends_on_the_shell_and_the_line(wait_until, end_of):
    """bash becomes its last command, dash and a list do not; then the kill hits the shell and not the sleep."""
    with subprocess.Popen(["bash", "-c", "sleep 10"], stdout=subprocess.PIPE) as process:
        wait_until(lambda: psutil.Process(process.pid).name() == "sleep", "bash to become its last command")
        process.kill()
        assert process.communicate(timeout=3) == (b"", None)
    for shell in ("dash", "bash"):
        with subprocess.Popen([shell, "-c", LINE], stdout=subprocess.PIPE) as process:
            survivors = wait_until(lambda process=process: grandchildren(process), "the sleep below the shell")
            process.kill()
            with pytest.raises(subprocess.TimeoutExpired):
                process.communicate(timeout=0.5)
            end_of(*survivors)


def first_number(path: Path) -> int:
    """The writer's pid; it may tick before its shell says it."""
    return int(next(word for word in path.read_text().split() if word.isdigit()))


def test_a_file_does_not_grow_after_the_return_as_it_does_with_subprocess(cgroup2, tmp_path, wait_until, end_of, alive):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    result = pinfold.run(["sh", "-c", WRITER], stdout=ours)
    size = ours.stat().st_size
    assert (result.outcome, result.receipt.emptied) == ("exited", True)
    assert not alive(first_number(ours))

    with open(theirs, "wb") as file:
        subprocess.run(["sh", "-c", WRITER], stdout=file, check=True)
    grown = theirs.stat().st_size
    try:
        wait_until(lambda: theirs.stat().st_size > grown + 20, "the control's file to grow after the return")
        assert ours.stat().st_size == size
    finally:
        writer = psutil.Process(first_number(theirs))
        end_of(writer, *writer.children())


@pytest.mark.parametrize("hiding", ["setsid", "double fork"])
def test_leaving_the_session_does_not_hide_from_the_kill(cgroup2, villain, hiding, alive, slowness):
    argv = ["sh", "-c", "setsid sleep 60 & echo $!; wait"] if hiding == "setsid" else villain("double_forker")
    result = pinfold.run(argv, timeout=0.5 * slowness, capture_output=True)
    assert (result.outcome, result.receipt.emptied) == ("timed_out", True)
    assert result.receipt.strays >= 1
    assert not alive(int(result.stdout))


@pytest.mark.parametrize("hiding", ["setsid", "double fork"])
def test_with_killpg_whoever_left_the_session_survives(villain, hiding, end_of, alive):
    argv = ["sh", "-c", "setsid sleep 60 & echo $!; wait"] if hiding == "setsid" else villain("double_forker")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as process:
        stray = psutil.Process(int(process.stdout.readline()))
        deadline = time.monotonic() + 5
        while os.getsid(stray.pid) == process.pid and time.monotonic() < deadline:
            os.sched_yield()
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(5) == -signal.SIGKILL
        assert alive(stray.pid)
        end_of(stray)


def test_signal_and_grace_end_a_program_that_ignores_every_signal(cgroup2, villain, alive, slowness):
    result = pinfold.run(villain("term_ignorer"), timeout=0.3 * slowness, grace=0.3, capture_output=True)
    assert (result.outcome, result.returncode) == ("timed_out", -signal.SIGKILL)
    assert 0.3 * slowness + 0.3 <= result.duration < 3 * slowness
    assert (result.receipt.emptied, result.receipt.strays) == (True, 1)
    assert not alive(int(result.stdout))


def test_with_subprocess_signal_and_patience_free_the_caller_and_leave_the_program(villain, end_of, alive):
    process = subprocess.Popen(villain("term_ignorer"), stdout=subprocess.PIPE)
    survivors = [psutil.Process(int(process.stdout.readline())), psutil.Process(process.pid)]
    process.terminate()  # as Cancel in Go
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)  # as WaitDelay
    process.stdout.close()
    assert [alive(survivor.pid) for survivor in survivors] == [True, True]
    process.kill()
    process.wait(5)
    assert alive(survivors[0].pid)
    end_of(survivors[0])


def test_a_slow_reader_gets_every_byte_of_a_burst_and_then_the_end(cgroup2, villain):
    with pinfold.start(villain("thrower", 1 << 20), stdout=pinfold.PIPE) as run:
        time.sleep(2)  # the slow consumer: this is the case, not a synchronisation
        data = run.stdout.read()
        assert data == bytes(range(256)) * 4096
        assert run.wait(5).outcome == "exited"


def test_a_live_reader_sees_the_end_though_a_stray_holds_the_pipe(cgroup2, slowness):
    with pinfold.start(["sh", "-c", "echo one; setsid sleep 60 & echo two"], stdout=pinfold.PIPE) as run:
        begin = time.monotonic()
        assert run.stdout.read() == b"one\ntwo\n"
        assert time.monotonic() - begin < 3 * slowness
        assert run.wait(5).receipt.strays == 1


def test_with_subprocess_a_live_reader_waits_for_the_stray(end_of):
    argv = ["sh", "-c", "setsid sleep 60 & echo $!"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        stray = psutil.Process(int(process.stdout.readline()))
        assert process.wait(5) == 0
        rest: list[bytes] = []
        reader = threading.Thread(target=lambda: rest.append(process.stdout.read()))
        reader.start()
        reader.join(0.5)
        assert reader.is_alive(), "the read came back though the stray holds the pipe"
        end_of(stray)
        reader.join(5)
        assert rest == [b""]


def test_fifty_parallel_starts_hold_no_pipe_of_each_other(cgroup2, wait_until):
    """The parent's copies of a child's ends are closed at once and reach no other child."""
    results = []
    lock = threading.Lock()

    def echo(number: int) -> None:
        with pinfold.start(["cat"], stdin=pinfold.PIPE, stdout=pinfold.PIPE) as run:
            run.stdin.write(b"%d" % number)
            run.stdin.close()
            got = run.stdout.read()  # ends only if nobody else has the write end, cat's input likewise
            with lock:
                results.append((number, got))

    def start_sleeper() -> pinfold.Run:
        return pinfold.start(["sleep", "60"], stdin=pinfold.DEVNULL, stdout=pinfold.DEVNULL, stderr=pinfold.DEVNULL)

    with contextlib.ExitStack() as stack:
        threads = [threading.Thread(target=echo, args=(n,)) for n in range(50)]
        for at, thread in enumerate(threads):
            thread.start()
            if at % 10 == 0:
                sleeper = stack.enter_context(start_sleeper())
                stack.callback(sleeper.kill)
                # What `sleep` opens itself to begin with (its locale) it closes again; a pipe of another would stay.
                wait_until(lambda pid=sleeper.pid: held(pid) == ["/dev/null"] * 3, "a sleeper with nothing else open")
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads), "an end of file never came"
    assert sorted(results) == [(n, b"%d" % n) for n in range(50)]


def test_a_child_that_inherits_a_write_end_keeps_the_reader_waiting(end_of):
    """Control of the one above: what a single inherited copy does."""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    with subprocess.Popen(["sleep", "60"], close_fds=False) as sleeper, open(read, "rb") as reader:
        os.close(write)
        os.set_blocking(read, False)
        assert reader.read() is None, "end of file came although the sleeper has the write end"
        end_of(psutil.Process(sleeper.pid))
