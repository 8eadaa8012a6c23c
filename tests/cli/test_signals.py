"""Signals sent to pinfold where it is on no terminal: passed on once, the second one kills, ignored ones stay so."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

# Counts what arrives: waits for a first signal, then 0.3 s for a second one; exits 40 + how many there were.
COUNT = """
    import os, signal
    wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    print("ready", flush=True)
    got = [signal.sigwaitinfo(wanted).si_signo]
    while more := signal.sigtimedwait(wanted, 0.3):
        got.append(more.si_signo)
    print(*got, flush=True)
    os._exit(40 + len(got))
"""
DEAF = "trap '' TERM INT HUP; echo ready; while :; do sleep 0.05; done"


def state(pid: int) -> str:
    """The state letter of proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"])
def test_signal_reaches_the_command_once_and_its_status_is_ours(start, python, line_of, name):
    number = signal.Signals["SIG" + name]
    process = start(*python(COUNT))
    assert line_of(process) == b"ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (out, process.returncode, err) == (f"{int(number)}\n".encode(), 41, b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_that_dies_of_it_is_reported_so(start, line_of, number):
    process = start("sh", "-c", "echo ready; exec sleep 30")
    line_of(process)
    process.send_signal(number)
    err = process.communicate(timeout=20)[1]
    assert process.returncode == 128 + number
    assert err.startswith(f"pinfold: killed by {number.name} after ".encode())


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_one_kills_at_once(start, line_of, first, second, wait_until):
    process = start("sh", "-c", DEAF)
    line_of(process)
    process.send_signal(first)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(second)
    begin = time.monotonic()
    err = process.communicate(timeout=20)[1]
    assert time.monotonic() - begin < 2
    assert process.returncode == 128 + second
    assert err.startswith(b"pinfold: canceled after ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_command_that_does_not_obey_is_killed_after_the_grace(start, line_of, number):
    process = start("--grace", "0.4", "sh", "-c", DEAF)
    line_of(process)
    begin = time.monotonic()
    process.send_signal(number)
    err = process.communicate(timeout=20)[1]
    assert 0.4 <= time.monotonic() - begin < 4
    assert process.returncode == 128 + number
    assert err.startswith(b"pinfold: canceled after ")


def test_the_grace_is_five_seconds_where_nothing_is_said(start, line_of):
    process = start("sh", "-c", DEAF)
    line_of(process)
    begin = time.monotonic()
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=20)
    assert 5 <= time.monotonic() - begin < 9
    assert process.returncode == 129


def test_same_request_twice_in_a_moment_is_one(start, python, line_of):
    process = start(*python(COUNT))
    line_of(process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == b"15\n"
    assert process.returncode == 41


def test_signal_before_the_command_is_there_is_not_lost(start):
    for delay in (0.02, 0.05, 0.08, 0.1, 0.12, 0.15):
        process = start("--timeout", "10", "sleep", "30")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(delay)
        process.terminate()
        process.communicate(timeout=5)
        assert process.returncode in (143, -15)


def test_nohup_outlives_a_hangup(start, line_of):
    process = start("sh", "-c", "echo ready; sleep 0.5; exit 7", before=("nohup",))
    line_of(process)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=20)
    assert process.returncode == 7


@pytest.mark.parametrize("name", ["INT", "TERM", "QUIT", "USR1"])
def test_what_was_ignored_stays_ignored(start, line_of, name):
    process = start(
        "sh", "-c", "echo ready; sleep 0.4; exit 7", before=("sh", "-c", f"trap '' {name}; exec \"$@\"", "sh")
    )
    line_of(process)
    process.send_signal(signal.Signals["SIG" + name])
    process.communicate(timeout=20)
    assert process.returncode == 7


def test_background_job_of_a_script_is_not_interrupted(start, line_of):
    # A shell without job control starts `&` with INT and QUIT ignored.
    process = start(
        "sh", "-c", "echo ready; sleep 0.4; exit 7", before=("sh", "-c", '"$@" & wait $!', "sh"), process_group=0
    )
    line_of(process)
    os.killpg(process.pid, signal.SIGQUIT)
    process.communicate(timeout=20)
    assert process.returncode in (7, -signal.SIGQUIT, 128 + signal.SIGQUIT)


def test_under_timeout_of_coreutils(start, wait_until):
    process = start("sleep", "30", before=("timeout", "-k", "10", "0.7"))
    err = process.communicate(timeout=20)[1]
    assert process.returncode == 124
    assert err.startswith(b"pinfold: killed by SIGTERM after ")


def test_under_timeout_the_request_arrives_once(start, python):
    process = start(*python(COUNT), before=("timeout", "--preserve-status", "1.5"))
    assert process.communicate(timeout=20)[0] == b"ready\n15\n"
    assert process.returncode == 41


def test_under_env_nice_and_setsid(start):
    process = start("sh", "-c", "exit 9", before=("env", "nice", "setsid", "--wait"))
    process.communicate(timeout=20)
    assert process.returncode == 9


def test_stop_and_continue_go_for_the_whole_tree(start, line_of, wait_until):
    line = "sleep 30 & while :; do echo tick; sleep 0.02; done"
    process = start("--timeout", "20", "sh", "-c", line)
    line_of(process)
    of_threads = Path(f"/proc/{process.pid}/task").glob("*/children")  # with a memory controller a thread starts it
    children = [pid for file in of_threads for pid in file.read_text().split()]
    cgroups = [Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::")[2].strip() for pid in children]
    cgroup = next(path for path in cgroups if "/run-" in path)  # the other one is the guard
    process.send_signal(signal.SIGTSTP)
    wait_until(lambda: state(process.pid) == "T", "pinfold to stop")
    wait_until(lambda: "frozen 1" in _events(cgroup), "the tree to stop")
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: "frozen 0" in _events(cgroup), "the tree to go on")
    wait_until(lambda: state(process.pid) == "S", "pinfold to go on")
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 143


def _events(cgroup: str) -> str:
    from pinfold.cgroup import places

    own = places.own_place()
    root = own.directory.removesuffix(own.path) if own.path != "/" else own.directory
    return Path(root + cgroup, "cgroup.events").read_text()


def test_stopped_and_terminated_it_ends_once_it_goes_on(start, line_of, wait_until):
    process = start("sh", "-c", "echo ready; sleep 30")
    line_of(process)
    process.send_signal(signal.SIGTSTP)
    wait_until(lambda: state(process.pid) == "T", "pinfold to stop")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=20)
    assert process.returncode == 143


def test_children_that_came_with_us_are_not_ours(start, tmp_path):
    # `job & exec pinfold …`: the job is not killed, and its end is no end of the command.
    line = f'(sleep 0.3; echo alive > {tmp_path}/job) & exec "$@"'
    process = start("sh", "-c", "sleep 0.6; exit 4", before=("sh", "-c", line, "sh"))
    process.communicate(timeout=20)
    assert process.returncode == 4
    assert (tmp_path / "job").read_text() == "alive\n"


@pytest.mark.parametrize(("trap", "ignored"), [("", set()), ("trap '' HUP INT;", {signal.SIGHUP, signal.SIGINT})])
def test_what_was_ignored_stays_so_for_the_command_as_under_env(trap, ignored, start):
    process = start("grep", "SigIgn", "/proc/self/status", before=("sh", "-c", f'{trap} exec "$@"', "sh"))
    out = process.communicate(timeout=20)[0]
    assert int(out.split()[1], 16) == sum(1 << number - 1 for number in ignored)


def unread_pipe():
    """A full pipe that nobody reads: both ends."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(write, bytes(4096)):
            pass
    os.set_blocking(write, True)
    return read, write


@pytest.mark.parametrize("what", ["our line", "the result"])
def test_terminated_while_nobody_reads_its_last_words_it_ends(start, wait_until, cgroup2, slowness, what):
    read, full = unread_pipe()
    options = ("--result-fd", str(full), "-t", "500ms") if what == "the result" else ("-t", "500ms")
    try:
        process = start(
            *options,
            *("--", "sh", "-c", "yes >&2"),
            stdout=subprocess.DEVNULL,
            stderr=full if what == "our line" else subprocess.DEVNULL,
            pass_fds=[full],
        )
        wait_until(lambda: list(cgroup2.glob("pinfold-*/run-*")), "the run")
        wait_until(lambda: not list(cgroup2.glob("pinfold-*")), "its end")

        def terminated() -> bool:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            return process.poll() is not None

        wait_until(terminated, "the end of pinfold", 3 * slowness)
        assert process.returncode == -signal.SIGTERM
    finally:
        os.close(read)
        os.close(full)


@pytest.mark.parametrize("line", ['"$@"; :', '"$@" & wait'])
def test_interrupt_reaches_the_whole_group(start, python, line_of, slowness, line):
    """A shell that waits for a command in the foreground dies only when that has died of the signal too."""
    child = "import signal, time; signal.signal(2, signal.SIG_DFL); print('ready', flush=True); time.sleep(60)"
    process = start("sh", "-c", line, "sh", *python(child))
    line_of(process)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=20)[1]
    assert time.monotonic() - begin < 3 * slowness
    assert process.returncode == 130
    assert err.startswith(b"pinfold: killed by SIGINT after ")


@pytest.mark.parametrize("name", ["TERM", "INT", "USR1"])
def test_signal_reaches_each_process_of_the_group_once(start, python, line_of, name):
    """Three of them, each of which says what came; whoever has another group is not meant."""
    number = signal.Signals["SIG" + name]
    program = f"""
        import os, signal
        number = {int(number)}
        signal.pthread_sigmask(signal.SIG_BLOCK, {{number}})
        read, write = os.pipe()
        who = next((who for who in ("child", "sibling", "elsewhere") if os.fork() == 0), "parent")
        if who == "elsewhere":
            os.setpgid(0, 0)
        os.write(write, b".") if who != "parent" else [os.read(read, 1) for _ in range(3)]
        if who == "parent":
            os.write(1, b"ready\\n")
        came = []
        while more := signal.sigtimedwait({{number}}, 0.5 if came else 2):
            came.append(more.si_signo)
        os.write(1, f"{{who}} {{len(came)}}\\n".encode())
        if who == "parent":
            [os.wait() for _ in range(3)]
    """
    process = start(*python(program))
    assert line_of(process) == b"ready\n"
    process.send_signal(number)
    out = process.communicate(timeout=20)[0]
    assert sorted(out.decode().splitlines()) == ["child 1", "elsewhere 0", "parent 1", "sibling 1"]
    # It has come to its end; but one that was asked for, and so it has not done its work.
    assert process.returncode == (0 if name == "USR1" else 128 + number)
