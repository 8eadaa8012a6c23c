"""The light parser of `pinfold run`: what it answers is what click answers; and the plain path loads little."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinfold.cli import front
from pinfold.cli.options import OPTIONS, name_of
from pinfold.cli.run import run

FLAGS = [flag for option in OPTIONS for flag in option.flags.replace("/", " ").split()]
VALUES = (
    *("5", "kill", "auto", "plain", "64M", "", "-5", "--", "-", "-q", "--quiet", "a=b", "x y", "nonsense", "-t"),
    "é",
)
LETTERS = ["-t", "-k", "-qt", "-vq", "-qv", "-vp", "-qx", "-x"]
WORDS = st.one_of(
    st.sampled_from(FLAGS),
    st.sampled_from(VALUES),
    st.builds("{}={}".format, st.sampled_from(FLAGS), st.sampled_from(VALUES)),
    st.builds("{}{}".format, st.sampled_from(LETTERS), st.sampled_from(VALUES)),
    st.sampled_from(["--help", "-h", "--time", "--timeou", "--no-quiet", "true", "sh", "-c", "---", "--=5"]),
)


def by_click(arguments):
    """The same, from click. Raises click's exceptions."""
    found = run.make_context("run", list(arguments)).params
    return list(found.pop("argv")), found


@settings(max_examples=1000)
@given(st.lists(WORDS, max_size=8))
def test_what_it_answers_is_what_click_answers(arguments):
    found = front.parse(arguments)
    if found is not None:
        assert found == by_click(arguments)


@pytest.mark.parametrize(
    ("arguments", "argv", "options"),
    [
        (["true"], ["true"], {}),
        (["--", "true", "--", "-x"], ["true", "--", "-x"], {}),
        (["-t", "5", "-k1", "--signal=INT", "--", "a"], ["a"], {"timeout": "5", "grace": "1", "signal": "INT"}),
        (["-qvt", "5", "a"], ["a"], {"quiet": True, "verbose": True, "timeout": "5"}),
        (["--no-oom-group", "a", "-q"], ["a", "-q"], {"oom_group": False}),
        (["-E", "A=1", "--env=B", "a"], ["a"], {"env": ("A=1", "B")}),
        (["--strays", "wait", "--timeout=", "-"], ["-"], {"strays": "wait", "timeout": ""}),
        ([], [], {}),
    ],
    ids=str,
)
def test_plain_lines_are_its_own(arguments, argv, options):
    defaults = {name_of(option): () if option.many else option.default for option in OPTIONS}
    assert front.parse(arguments) == (argv, defaults | options)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["-h", "true"], ["--nonsense"], ["-x"], ["--timeout"], ["-qt"], ["--quiet=5"], ["--strays", "x", "a"]],
    ids=str,
)
def test_what_is_not_plain_is_left_to_click(arguments):
    assert front.parse(arguments) is None


# ---- what is loaded ------------------------------------------------------------------------------------------

HEAVY = (
    "re",
    *("typing", "json", "click", "dataclasses", "inspect", "datetime", "difflib", "subprocess", "psutil", "jeepney"),
    *("ctypes", "socket"),
)
NOT_ASKED_FOR = ("pinfold.limits", "pinfold.backend.systemd", "pinfold.cli.main")


def loaded(*arguments):
    """The modules that are there when `pinfold run` of these arguments ends."""
    code = (
        "import atexit, os, sys\n"
        "report = os.dup(1)\n"
        "atexit.register(lambda: os.write(report, '\\n'.join(sys.modules).encode()))\n"
        "sys.argv = ['pinfold', 'run', *sys.argv[1:]]\n"
        "from pinfold.cli import entry\n"
        "entry()\n"
    )
    argv = [sys.executable, "-I", "-c", code, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.split()


def test_a_plain_run_loads_nothing_that_it_does_not_use(monkeypatch):
    monkeypatch.setenv("PINFOLD_BACKEND", "cgroupfs")
    modules = loaded("--timeout", "5", "--label", "a=b", "--", "true")
    assert "pinfold.runs.supervise" in modules, "the control: it was run"
    assert [name for name in (*HEAVY, *NOT_ASKED_FOR) if name in modules] == []


def test_the_control_loads_them(monkeypatch):
    monkeypatch.setenv("PINFOLD_BACKEND", "cgroupfs")
    assert "pinfold.limits" in loaded("--rlimit", "nofile=50", "--", "true")
    assert "click" in loaded("--help")
