"""What we say on stderr: nothing for a plain exit, one line where there is something to say, never anything raw."""

from __future__ import annotations

import re

import pytest


def test_plain_exit_says_nothing(pinfold):
    assert pinfold("sh", "-c", "exit 4").err == ""


def test_timeout_is_one_line_with_limit_and_time(pinfold):
    ended = pinfold("--timeout", "300ms", "sleep", "30")
    assert re.fullmatch(r"pinfold: timed out \(300\.0 ms\) after [34]\d\d\.\d ms\n", ended.err), ended.err


def test_signal_is_one_line(pinfold):
    ended = pinfold("sh", "-c", "kill -SEGV $$")
    assert re.fullmatch(r"pinfold: killed by SIGSEGV after \S+ m?s\n", ended.err), ended.err


def test_strays_are_named_with_their_pids(pinfold):
    ended = pinfold("sh", "-c", "setsid sleep 31 & sleep 32 & sleep 0.2")
    pids = [stray["pid"] for stray in ended.result["receipt"]["stray_processes"]]
    named = ", ".join(f"sleep ({pid})" for pid in pids)
    assert re.fullmatch(rf"exited with status 0 after \S+ m?s; killed 2 strays: {re.escape(named)}", *ended.lines)


def test_many_strays_are_counted_and_a_few_named(pinfold):
    ended = pinfold("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 30 & done; sleep 0.2")
    assert len(ended.lines) == 1
    assert "killed 12 strays: " in ended.lines[0]
    assert ended.lines[0].endswith("and 4 more")


def test_output_limit_is_one_line(pinfold):
    assert pinfold("--output-limit", "10", "yes").lines[0].startswith("wrote more than its output limit after ")


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_says_nothing(pinfold, option):
    ended = pinfold(option, "--timeout", "200ms", "sh", "-c", "echo theirs >&2; sleep 30")
    assert (ended.code, ended.err) == (124, "theirs\n")


@pytest.mark.parametrize(
    "line", ["exit 3", "kill -SEGV $$", "setsid sleep 31 & sleep 0.2"], ids=["exited", "signaled", "with a stray"]
)
@pytest.mark.parametrize("options", [["-q"], ["-q", "-v"], ["-v", "-q"]], ids=" ".join)
def test_quiet_is_quiet_about_every_end(pinfold, options, line):
    assert pinfold(*options, "sh", "-c", line).err == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["no-such-command-anywhere"], 127), (["/"], 126), (["--timeout", "soon", "true"], 125)],
)
def test_quiet_does_not_hide_why_nothing_was_run(pinfold, arguments, code):
    ended = pinfold("-q", *arguments)
    assert (ended.code, len(ended.lines), len(ended.err.splitlines())) == (code, 1, 1)


def test_verbose_tells_run_receipt_and_usage(pinfold):
    ended = pinfold("-v", "sh", "-c", "setsid sleep 31 & sleep 0.2")
    assert len(ended.err.splitlines()) == len(ended.lines)
    text = "\n".join(ended.lines)
    for expected in (
        ended.result["run_id"],
        "cooperative",
        "emptied, removed",
        "sleep 31",
        "usage: cpu ",
        "memory peak",
    ):
        assert expected in text


@pytest.mark.parametrize("name", [b"\x1b[31mred", b"a\nb", b"a\rb", b"x) R 1 (", b"\xff\xfe", b"\xc2\x9b31m"])
def test_names_of_processes_are_made_harmless(pinfold, python, name):
    rename = f"import ctypes, time, os; ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0)"
    ended = pinfold("-v", *python(f"{rename}\nif os.fork(): time.sleep(0.2)\nelse: time.sleep(30)"))
    assert ended.code == 0
    assert len(ended.lines) == len(ended.err.splitlines())
    assert ended.err.replace("\n", "").isprintable(), ended.err
    assert ended.result["receipt"]["strays"] == 1


def test_name_of_a_command_that_is_not_there_is_made_harmless(pinfold):
    ended = pinfold(b"no\x1b[31m\n\xff")
    assert ended.code == 127
    assert len(ended.err.splitlines()) == 1
    assert ended.err.removesuffix("\n").isprintable()


@pytest.mark.parametrize("option", ["--timeout", "--user", "-p", "--signal", "--result", "--nonsense"])
def test_values_of_options_are_made_harmless(pinfold, option):
    ended = pinfold(f"{option}=/\x1b[31m\n/x\xff" if option != "-p" else "-p\x1b[31m\nx", "true", result=False)
    assert ended.code == 125
    assert len(ended.err.splitlines()) == 1
    assert ended.err.removesuffix("\n").isprintable(), ended.err
