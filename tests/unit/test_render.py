"""The line and the details of Results that take a kernel's or systemd's doing to come about."""

from __future__ import annotations

import pytest

from pinfold.cli import render
from pinfold.cli.one_run import exit_status
from pinfold.result import Events, Placement, Receipt, Stuck, Usage

CLEAN = Receipt(True, 0, [], 0, None, 0, False, [], True, [], [])
VICTIM = {"pid": 737, "comm": "python3"}


def limits(asked, applied=None, missing=None):
    return {"asked": asked, "applied": asked if applied is None else applied, "missing": missing or {}}


OWN = Events(1, 1, None, "own", "/base/run-abc", VICTIM)
LIMIT = limits({"memory_max": 64 << 20}, {"memory_max": 64 << 20, "memory_oom_group": True})


@pytest.mark.parametrize(
    ("events", "line"),
    [
        (OWN, "killed at its memory limit (64.0 MiB), in python3 (737) after 1.50 s"),
        (OWN._replace(oom_process=None), "killed at its memory limit (64.0 MiB) after 1.50 s"),
        (OWN._replace(oom_process={"pid": 7, "comm": "a\x1b[31m\n"}),
         "killed at its memory limit (64.0 MiB), in a\\x1b[31m\\n (7) after 1.50 s"),
        (Events(0, 0, stall=True), "killed, as it was stuck at its memory limit (64.0 MiB) after 1.50 s"),
    ],
)  # fmt: skip
def test_a_run_that_ended_for_its_memory_is_told_with_limit_and_process(a_result, events, line):
    result = a_result(outcome="oom_killed", returncode=-9, events=events._asdict(), limits=LIMIT)
    assert render.the_line(result) == line
    assert exit_status(result) == 137


@pytest.mark.parametrize(
    ("by", "cgroup", "told"),
    [
        ("own", "/base/run-abc", "at its memory limit (64.0 MiB), in python3 (737)"),
        ("below", None, "at a memory limit that it set itself, in python3 (737)"),
        ("ancestor", "/tenant.slice", "at the memory limit of /tenant.slice, not at one of its own, in python3 (737)"),
        ("host", None, "as the host was out of memory, in python3 (737)"),
        (None, None, "for want of memory, at a limit out of our sight, in python3 (737)"),
    ],
)
@pytest.mark.parametrize(
    ("outcome", "returncode", "begins"),
    [
        ("exited", 3, "exited with status 3 after 1.50 s"),
        ("signaled", -9, "killed by SIGKILL after 1.50 s"),
        ("timed_out", -9, "timed out after 1.50 s"),
    ],
)
def test_a_kill_for_memory_that_was_not_the_end_is_told_with_whose_limit_it_was(
    a_result, outcome, returncode, begins, by, cgroup, told
):
    events = Events(1, 1, None, by, cgroup, VICTIM)
    result = a_result(outcome=outcome, returncode=returncode, events=events._asdict(), limits=LIMIT)
    assert render.the_line(result) == f"{begins}; the kernel killed processes of it {told}"


@pytest.mark.parametrize("events", [Events(), Events(0, 0, 0), Events(oom=3, oom_kill=0), Events(pids_max=7)], ids=str)
def test_without_a_kill_nothing_is_said_of_memory(a_result, events):
    assert render.the_line(a_result(events=events._asdict())) is None


def test_a_limit_that_was_not_applied_is_not_named(a_result):
    result = a_result(outcome="oom_killed", returncode=-9, events=OWN._asdict(), limits=limits({"memory_max": 1}, {}))
    assert render.the_line(result).startswith("killed at its memory limit, in ")


def test_details_list_limits_in_force_and_those_that_are_not(a_result):
    result = a_result(limits=limits(
        {"memory_max": 1 << 20, "pids_max": 5, "io_weight": 7}, {"memory_max": 1 << 20, "pids_max": 5},
        {"io_weight": "no such file"},
    ))  # fmt: skip
    found = render.details(result)
    assert "limits in force: memory_max 1048576, pids_max 5" in found
    assert "limit io_weight NOT in force: no such file" in found


def test_details_say_where_nothing_of_what_was_asked_is_in_force(a_result):
    found = render.details(a_result(limits=limits({"pids_max": 5}, {}, {"pids_max": "why"})))
    assert "limits in force: none" in found
    assert "limit pids_max NOT in force: why" in found


def test_details_of_a_run_without_limits_have_no_word_of_them(a_result):
    assert not [line for line in render.details(a_result()) if "limit" in line]


@pytest.mark.parametrize(
    ("placement", "lines"),
    [
        (Placement("cgroupfs", "/b/run-1"), ["run abc in /b/run-1 (cgroupfs, cooperative)"]),
        (Placement("systemd", "/p/run-1", "x.scope", why="auto: systemd is the manager here"),
         ["run abc in /p/run-1 (systemd, x.scope, cooperative)", "backend systemd: auto: systemd is the manager here"]),
    ],
    ids=["cgroupfs", "systemd"],
)  # fmt: skip
def test_details_say_where_it_ran_and_why_there(a_result, placement, lines):
    found = render.details(a_result(placement=placement))
    assert found[: len(lines)] == lines
    assert found[len(lines)].startswith("receipt: ")


def test_details_tell_what_was_used_and_what_nobody_knows(a_result):
    found = render.details(a_result(usage=Usage(1_500_000, 1_000_000, None, 3 << 20)))
    assert found[-1] == (
        "usage: cpu 1.50 s, user 1.00 s, memory peak 3.0 MiB (not reported by this host: system, pids peak)"
    )


@pytest.mark.parametrize(
    ("stuck", "said"),
    [
        (Stuck(7, "cat", "D", "request_wait_answer", 0), "cat (7), which waits in the kernel in request_wait_answer"),
        (Stuck(7, "cat", "D", None, 0), "cat (7), which waits in the kernel"),
        (Stuck(7, "a\x1b[2J", "t", None, 9), "a\\x1b[2J (7), which process 9 traces"),
        (Stuck(7, "sleep", "S", None, 0), "sleep (7)"),
        (Stuck(7), "? (7)"),
    ],
)
def test_what_could_not_be_killed_is_named_with_its_holder(a_result, stuck, said):
    receipt = CLEAN._replace(emptied=False, removed=False, stuck_pids=[7], stuck_processes=[stuck])
    line = render.the_line(a_result(outcome="canceled", returncode=-9, receipt=receipt))
    assert f"; could not be killed: {said}; its cgroup /base/run-abc could not be removed (" in line
