"""Faults of pinfold itself: one line, a status that is not the command's, and nothing left of the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# pinfold with a fault: `… OBJECT NAME ERROR ARGUMENT…`; the method NAME of OBJECT raises ERROR.
FAULTY = """
import sys
from pinfold.cli import doctor, main, terminal
from pinfold.runs import fold, supervise

def fail(*_arguments, **_options):
    raise eval(sys.argv[3])

setattr(eval(sys.argv[1]), sys.argv[2], fail)
main.main(sys.argv[4:])
"""
BEFORE = ("fold.Fold", "carry_out")
DURING = ("terminal.Signals", "_pass_on")  # while signals are passed on
WHEN_IT_ENDS = ("supervise.Supervision", "_look_for_exit")


def faulty(where, error, *arguments, **env):
    argv = [sys.executable, "-c", FAULTY, *where, error, *arguments]
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False, env=os.environ | env
    )


def one_line(ended):
    assert ended.stderr.startswith(b"pinfold: internal error: "), ended.stderr
    assert ended.stderr.count(b"\n") == 1, ended.stderr
    assert b"PINFOLD_DEBUG=1" in ended.stderr
    return ended.stderr.decode().removeprefix("pinfold: internal error: ").split(" (please report")[0]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("TypeError('a and b')", "TypeError: a and b"),
        ("AssertionError", "AssertionError"),
        ("KeyError('x\\n\\x1b[31m')", r"KeyError: 'x\n\x1b[31m'"),
        ("ValueError('two\\nlines')", r"ValueError: two\nlines"),
        ("RecursionError('deep')", "RecursionError: deep"),
    ],
)
def test_unexpected_exception_of_run_is_one_line_and_125(cgroup2, error, said):
    ended = faulty(BEFORE, error, "run", "true")
    assert (ended.returncode, ended.stdout) == (125, b"")
    assert one_line(ended) == said


def test_a_pipe_of_ours_that_is_broken_is_said_and_125(cgroup2):
    ended = faulty(
        BEFORE, "fold.CgroupError('start the guard of', '/x', BrokenPipeError(32, 'Broken pipe'))", "run", "true"
    )
    assert (ended.returncode, ended.stdout) == (125, b"")
    assert ended.stderr == b"pinfold: start the guard of /x: Broken pipe\n"


def test_exception_while_the_command_runs_leaves_nothing_of_it(cgroup2, tmp_path):
    line = "echo $$; setsid sleep 60 & kill -USR1 $PPID; sleep 60"
    ended = faulty(DURING, "TypeError('x')", "run", "sh", "-c", line)
    assert ended.returncode == 125
    assert one_line(ended) == "TypeError: x"
    assert not Path(f"/proc/{int(ended.stdout)}").exists()


def test_exception_at_its_end_is_one_line_too(cgroup2):
    ended = faulty(WHEN_IT_ENDS, "TypeError('x')", "run", "sh", "-c", "sleep 60 & exit 0")
    assert ended.returncode == 125
    assert one_line(ended) == "TypeError: x"


def test_of_another_subcommand_it_is_2(cgroup2):
    ended = faulty(("doctor", "examine"), "TypeError('x')", "doctor")
    assert (ended.returncode, one_line(ended)) == (2, "TypeError: x")


@pytest.mark.parametrize("where", [BEFORE, WHEN_IT_ENDS])
def test_traceback_comes_when_asked_for(cgroup2, where):
    ended = faulty(where, "TypeError('x')", "run", "true", PINFOLD_DEBUG="1")
    assert ended.returncode == 125
    assert ended.stderr.startswith(b"Traceback (most recent call last):\n")
    assert b", in fail\n" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(b"pinfold: internal error: TypeError: x (")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "no-such-command-anywhere"], 127),
        (["run", "--timeout", "100ms", "sleep", "30"], 124),
        (["run", "--timeout", "soon", "true"], 125),
        (["run", "-v", "sh", "-c", "exit 3"], 3),
        (["nonsense"], 2),
        ([], 2),
    ],
)
@pytest.mark.parametrize("broken", ["full", "nobody reads"])
def test_lines_that_cannot_be_written_change_no_status(cgroup2, arguments, code, broken):
    if broken == "full":
        end = os.open("/dev/full", os.O_WRONLY)
    else:
        read, end = os.pipe()
        os.close(read)
    try:
        argv = [Path(sys.executable).with_name("pinfold"), *arguments]
        ended = subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=end, timeout=60, check=False)
    finally:
        os.close(end)
    assert ended.returncode == code
