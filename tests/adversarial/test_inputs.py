"""The manifest's wrong inputs, as far as they apply to the command line: one line, one status, no cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pinfold


def refused(ending, code: int) -> str:
    """One line of ours, this status, nothing left; the line."""
    assert ending.code == code, ending
    text = ending.err.decode()
    assert text.startswith("pinfold: ")
    assert text.count("\n") == 1
    assert (ending.out, ending.processes, ending.cgroups, ending.work_dir) == (b"", [], [], [])
    return text


def test_nul_in_argv_is_refused_before_a_cgroup_is_made(cgroup2):
    before = set(os.listdir(cgroup2))
    with pytest.raises(pinfold.UsageError, match=r"argv\[1\]"):
        pinfold.run(["echo", "a\0b"])
    made = set(os.listdir(cgroup2)) - before
    assert all(
        not os.path.isdir(cgroup2 / name) or not any(p.is_dir() for p in Path(cgroup2 / name).iterdir())
        for name in made
    )


def test_empty_argv_of_the_library_is_refused():
    with pytest.raises(pinfold.UsageError, match="empty"):
        pinfold.run([])


@pytest.mark.parametrize("program", ["no-such-program-anywhere", "/nonexistent/no-such-program"])
def test_missing_binary(program, caller):
    ending = caller.run([program])
    refused(ending, 127)
    assert (ending.result["outcome"], ending.result["error"]["errno"]) == ("spawn_failed", "ENOENT")


def test_not_executable(caller, tmp_path):
    program = tmp_path / "within-reach" / "data"
    program.parent.mkdir()
    program.write_text("not a program\n")
    program.chmod(0o644)
    ending = caller.run([program])
    refused(ending, 126)
    assert (ending.result["outcome"], ending.result["error"]["errno"]) == ("spawn_failed", "EACCES")


def test_bad_interpreter(caller, compiled):
    ending = caller.run(compiled("in_bad_interpreter.sh"))
    assert "interpreter" in refused(ending, 126)
    assert (ending.result["outcome"], ending.result["error"]["errno"]) == ("spawn_failed", "ENOENT")
    assert ending.wall < 1


@pytest.mark.parametrize(
    "timeout", ["nan", "NaN", "-1", "-0.0", "0", "1e400", "", "abc", "10" * 15, "5M", "0x10", "1_0"]
)
def test_timeout_that_is_none_is_refused(timeout, caller):
    ending = caller.run(["echo", "ran"], f"--timeout={timeout}")
    assert "--timeout" in refused(ending, 125)
    assert ending.result is None


@pytest.mark.parametrize("timeout", ["inf", "infinity"])
def test_infinite_timeout_is_no_limit(timeout, caller):
    ending = caller.run(["echo", "ran"], "--timeout", timeout)
    assert ending.code == 0
