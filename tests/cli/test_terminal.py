"""On a terminal: the command is a part of our job, as under env(1): keys reach it, it stops and continues with us."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import termios
from pathlib import Path

import pytest

RAW = "import os, termios, tty; tty.setraw(0)"
# Exits with 7 if the signal comes once, 8 if it comes again soon.
ONCE = """
    import os, signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {%d})
    os.write(1, b"ready")
    signal.sigwaitinfo({%d})
    os._exit(7 if signal.sigtimedwait({%d}, 0.3) is None else 8)
"""
# pinfold, that says `now` and starts its command only when a signal has come.
LATE = """
import os, signal, time
from pinfold.cli.main import main
from pinfold.runs.fold import Fold

carry_out = Fold.carry_out

def late(*arguments, **options):
    os.write(1, b"now")
    end = time.monotonic() + 20
    while not signal.sigpending() and time.monotonic() < end:
        os.sched_yield()
    return carry_out(*arguments, **options)

Fold.carry_out = late
import sys
sys.argv = sys.argv[1:]
main()
"""
# Leads a session on the terminal at fd 0, and is then what its arguments say.
LEAD = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
LATE_PINFOLD = (sys.executable, "-c", LATE)
GREEDY = "trap 'echo got' {0}; echo ready; while :; do sleep 0.05; done"


def once(number: int) -> str:
    return ONCE % (number, number, number)


def children(pid: int) -> list[int]:
    of_threads = Path(f"/proc/{pid}/task").glob("*/children")  # with a memory controller a thread starts the command
    return [int(child) for file in of_threads for child in file.read_text().split()]


def ended(pid: int) -> bool:
    """Whether it is gone, or only waits for init to collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_ctrl_c_reaches_the_command_once_and_its_own_end_is_reported(terminal, python):
    terminal.start(*python(once(signal.SIGINT)))
    terminal.until(b"ready")
    terminal.type(b"\x03")
    assert terminal.told() == "ended 7 foreground True"


def test_under_timeout_of_coreutils_the_request_arrives_once(terminal, python):
    # timeout(1) signals its child, and then its process group, which is also the command's.
    terminal.start(*python(once(signal.SIGTERM)), before=("/usr/bin/timeout", "--preserve-status", "1.5"))
    assert terminal.told().startswith("ended 7 ")


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to pinfold", "to the job"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_signal_of_another_process_arrives_once(terminal, python, send, number):
    # `kill PID` reaches only pinfold, `kill %1` of a shell the command too.
    terminal.start(*python(once(number)))
    terminal.until(b"ready")
    send(terminal.job, number)
    assert terminal.told() == "ended 7 foreground True"


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to pinfold", "to the job"])
def test_requests_one_after_the_other_arrive_each(terminal, send):
    terminal.start("sh", "-c", GREEDY.format("USR1"))
    terminal.until(b"ready")
    for _ in range(3):
        send(terminal.job, signal.SIGUSR1)
        terminal.until(b"got")
        select.select([], [], [], 0.15)  # two in a tenth of a second are one request
    terminal.type(b"\x03")
    assert terminal.told().startswith("ended 130")


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to pinfold", "to the job"])
def test_second_request_to_end_kills(terminal, send):
    terminal.start("sh", "-c", GREEDY.format("TERM"))
    terminal.until(b"ready")
    send(terminal.job, signal.SIGTERM)
    terminal.until(b"got")
    select.select([], [], [], 0.15)  # two in a tenth of a second are one request
    send(terminal.job, signal.SIGTERM)
    assert terminal.told() == "ended 143 foreground True"


def test_without_cat_keys_arrive_once_and_a_kill_is_passed_on(terminal, python, tmp_path):
    # Who was meant cannot be told then; what a key does must not suffer.
    program = """
        import os, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {2, 15})
        os.write(1, b"ready")
        signal.sigwaitinfo({2})
        os.write(1, b"interrupted")
        signal.sigwaitinfo({15})
        os._exit(7 if signal.sigtimedwait({2, 15}, 0.3) is None else 8)
    """
    terminal.start("-E", f"PATH={os.environ['PATH']}", *python(program), before=("/usr/bin/env", f"PATH={tmp_path}"))
    terminal.until(b"ready")
    terminal.type(b"\x03")
    terminal.until(b"interrupted")
    os.kill(terminal.job, signal.SIGTERM)
    assert terminal.told() == "ended 7 foreground True"


@pytest.mark.parametrize(("key", "code"), [(b"\x03", 130), (b"\x1c", 131)], ids=["ctrl-c", "ctrl-backslash"])
def test_key_while_the_command_is_being_started_is_not_lost(terminal, key, code):
    terminal.start("--timeout", "10", "sleep", "30", before=LATE_PINFOLD)
    terminal.until(b"now")
    terminal.type(key)
    assert terminal.told() == f"ended {code} foreground True"


@pytest.mark.parametrize("after", [0.0, 0.04, 0.08, 0.12, 0.16, 0.2])
def test_ctrl_c_is_lost_at_no_moment_of_the_start(terminal, wait_until, after):
    terminal.start("--timeout", "3", "sleep", "30")
    wait_until(terminal.started, "the job in the foreground")
    select.select([], [], [], after)  # no synchronisation: a moment like any other
    terminal.type(b"\x03")
    assert not terminal.told().startswith("ended 124")


def test_ctrl_c_of_a_command_that_dies_of_it(terminal):
    terminal.start("sh", "-c", "echo ready; exec sleep 30")
    terminal.until(b"ready")
    terminal.type(b"\x03")
    assert terminal.told() == "ended 130 foreground True"
    terminal.until(b"pinfold: killed by SIGINT after ")


def test_ctrl_c_twice_at_a_command_that_asks_whether_it_should_end(terminal, python):
    program = """
        import os, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        for _ in range(3):
            os.write(1, b"really?")
            signal.sigwaitinfo({signal.SIGINT})
        os._exit(9)
    """
    terminal.start(*python(program))
    for _ in range(3):
        terminal.until(b"really?")
        terminal.type(b"\x03")
    assert terminal.told() == "ended 9 foreground True"


def test_ctrl_backslash_reaches_it_too(terminal):
    terminal.start("sh", "-c", "trap 'exit 6' QUIT; echo ready; while :; do sleep 0.05; done")
    terminal.until(b"ready")
    terminal.type(b"\x1c")
    assert terminal.told() == "ended 6 foreground True"


def test_ctrl_z_stops_both_and_fg_continues(terminal):
    terminal.start("sh", "-c", "echo ready; read line; echo got $line; exit 5")
    terminal.until(b"ready")
    terminal.type(b"\x1a")
    assert terminal.told() == f"stopped {int(signal.SIGTSTP)}"
    terminal.go_on()
    terminal.type(b"hello\n")
    terminal.until(b"got hello")
    assert terminal.told() == "ended 5 foreground True"


def test_ctrl_z_twice(terminal):
    terminal.start("sh", "-c", "echo ready; read line; exit 5")
    terminal.until(b"ready")
    for _ in range(2):
        terminal.type(b"\x1a")
        assert terminal.told() == f"stopped {int(signal.SIGTSTP)}"
        terminal.go_on()
    terminal.type(b"\n")
    assert terminal.told() == "ended 5 foreground True"


def test_command_is_in_the_foreground_process_group(terminal, python):
    program = "import os; print('same' if os.tcgetpgrp(0) == os.getpgrp() else 'other', os.isatty(0), os.isatty(1))"
    terminal.start(*python(program))
    terminal.until(b"same True True")
    assert terminal.told() == "ended 0 foreground True"


def test_modes_are_restored_after_a_raw_command_was_killed(terminal, python):
    before = terminal.modes()
    terminal.start("--timeout", "1", *python(RAW + "; os.write(1, b'raw'); import time; time.sleep(30)"))
    terminal.until(b"raw")
    assert not terminal.modes()[3] & termios.ICANON
    assert terminal.told() == "ended 124 foreground True"
    assert terminal.modes() == before


def test_modes_that_a_command_left_behind_are_restored(terminal, python):
    before = terminal.modes()
    terminal.start(*python(RAW))
    assert terminal.told() == "ended 0 foreground True"
    assert terminal.modes() == before


def test_command_that_took_the_foreground_and_was_killed_gives_it_back(terminal, python):
    program = """
        import os, signal, time
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpgrp())
        os.write(1, b"mine")
        time.sleep(30)
    """
    terminal.start("--timeout", "1", *python(program))
    terminal.until(b"mine")
    assert terminal.told() == "ended 124 foreground True"


def test_interactive_shell_has_job_control(terminal):
    terminal.start("-E", "PS1=ask:", "-E", "ENV=", "--", "sh", "-i")
    shown = terminal.until(b"ask:")
    terminal.type(b"echo hi-$((1+1)); sleep 30 & jobs\n")
    shown += terminal.until(b"hi-2\r\n") + terminal.until(b"ask:")
    assert b"job control" not in shown
    assert b"tty" not in shown
    terminal.type(b"exit 3\n")
    assert terminal.told() == "ended 3 foreground True"


def test_ctrl_c_in_an_interactive_shell_interrupts_only_its_job(terminal):
    terminal.start("-E", "PS1=ask:", "-E", "ENV=", "--", "sh", "-i")
    terminal.until(b"ask:")
    terminal.type(b"{ echo job-$((1+1)); exec sleep 30; } | cat; echo after-$((1+1))\n")
    terminal.until(b"job-2")  # by then it is in the foreground
    terminal.type(b"\x03")
    terminal.until(b"ask:")
    terminal.type(b"exit 4\n")
    assert terminal.told() == "ended 4 foreground True"


def test_full_screen_program_reads_single_keys(terminal, python):
    program = (
        RAW
        + """
os.write(1, b"\\x1b[2J\\x1b[Hkeys:")
while (key := os.read(0, 1)) != b"q":
    os.write(1, b"<%d>" % key[0])
os._exit(11)
"""
    )
    terminal.start(*python(program))
    terminal.until(b"keys:")
    for key, shown in ((b"a", b"<97>"), (b"\x03", b"<3>"), (b"\x1a", b"<26>"), (b"\r", b"<13>")):
        terminal.type(key)
        terminal.until(shown)
    terminal.type(b"q")
    assert terminal.told() == "ended 11 foreground True"


def test_size_of_the_terminal_is_seen_and_its_changes_too(terminal, python):
    program = """
        import os, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
        os.write(1, b"size %d;" % os.get_terminal_size(0).lines)
        signal.sigwaitinfo({signal.SIGWINCH})
        os.write(1, b"size %d;" % os.get_terminal_size(0).lines)
    """
    termios.tcsetwinsize(terminal.tty, (30, 80))
    terminal.start(*python(program))
    terminal.until(b"size 30;")
    termios.tcsetwinsize(terminal.tty, (40, 80))
    terminal.until(b"size 40;")
    assert terminal.told() == "ended 0 foreground True"


@pytest.mark.parametrize("when", ["while it runs", "while it is being started"])
def test_hangup_ends_it(terminal, wait_until, cgroup2, when):
    late = when != "while it runs"
    terminal.start("sh", "-c", "echo ready; exec sleep 300", before=LATE_PINFOLD if late else ())
    terminal.until(b"now" if late else b"ready")
    terminal.hang_up()
    wait_until(lambda: not Path(f"/proc/{terminal.job}").exists(), "the end of pinfold")
    assert not [d for d, _, _ in os.walk(cgroup2) if Path(d).name.startswith("run-")]


def test_window_is_closed_over_pinfold_as_its_first_program(start, python, line_of):
    # As under `xterm -e pinfold …`: the hangup is for the session's leader, and that is pinfold alone.
    master, tty = os.openpty()
    process = start("sh", "-c", GREEDY.format("USR1"), before=python(LEAD), stdin=tty)
    os.close(tty)
    assert line_of(process) == b"ready\n"
    process.send_signal(signal.SIGUSR1)
    assert line_of(process) == b"got\n"  # so the start is over
    os.close(master)
    assert process.wait(20) == 129


def test_witness_is_no_stray_and_ends_with_pinfold(terminal, tmp_path, wait_until):
    terminal.start("--result", tmp_path / "result", "sh", "-c", "echo ready; read line")
    terminal.until(b"ready")
    assert len(children(terminal.job)) == 3  # the command, the witness, the guard
    terminal.type(b"\n")
    assert terminal.told() == "ended 0 foreground True"
    receipt = json.loads((tmp_path / "result").read_text())["receipt"]
    assert (receipt["strays"], receipt["escaped_processes"]) == (0, [])


def test_all_of_it_ends_with_a_pinfold_that_is_killed(terminal, wait_until, cgroup2):
    terminal.start("sh", "-c", "setsid sleep 60 & echo ready; read line")
    terminal.until(b"ready")
    started = children(terminal.job)
    assert sorted(Path(f"/proc/{pid}/comm").read_text().strip() for pid in started) == ["cat", "sh", "sh"]
    os.kill(terminal.job, signal.SIGKILL)
    for pid in started:
        wait_until(lambda pid=pid: ended(pid), f"the end of process {pid}")
    wait_until(lambda: not any(path.name.startswith("pinfold-") for path in cgroup2.iterdir()), "the cgroup to go")


def test_strays_on_a_terminal_are_killed_and_named(terminal):
    terminal.start("sh", "-c", "setsid sleep 31 & sleep 0.2")
    terminal.until(b"killed 1 stray: sleep (")
    assert terminal.told() == "ended 0 foreground True"


def test_nothing_raw_reaches_the_terminal_from_our_lines(terminal):
    terminal.start("--result", "/no\x1b[31m/such", "true")
    shown = terminal.until(b"such")
    assert terminal.told().startswith("ended 125")
    assert b"\x1b" not in shown
