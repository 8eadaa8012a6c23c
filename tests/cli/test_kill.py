"""`pinfold kill`: what was named, all of it, nothing else; and its owner knows that it was canceled."""

from __future__ import annotations

import json
import os
import sys

import pytest

from pinfold.lease import find

TREE = ["sh", "-c", "trap '' TERM; setsid sleep 60 & sleep 60 & echo ready; wait; sleep 60"]
OBEYS = ["sh", "-c", "echo ready; exec sleep 60"]
NUMBERS = ("pid", "start_time", "pid_ns", "time_ns", "uid", "opened")
WHEN_ASKED = "import signal, sys\nsignal.signal(10, lambda *_: sys.exit(0))\nprint(1, flush=True)\nsignal.pause()"
POLITE = [sys.executable, "-I", "-S", "-c", WHEN_ASKED]
CANCELED = ["canceled", True, True]


def going(executor):
    """The runs that still have processes, by their ids."""
    return [run.run_id for run in find.members(find.fold_at(executor.place)) if find.processes(run.place)]


@pytest.mark.parametrize("how", ["{id}", "run-{id}", "{prefix}", "run-{prefix}", "{fold}/run-{id}"])
def test_a_run_is_killed_by_its_name_and_the_one_beside_it_goes_on(executor, ask, how):
    other = executor([[TREE, {}], [TREE, {}]])
    name = how.format(id=other.ids[0], prefix=other.ids[0][:6], fold=other.fold)
    ended = ask("kill", name)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"killed run-{other.ids[0]} (3 processes)\n"
    assert other.outcome(0) == CANCELED
    assert going(other) == [other.ids[1]]  # the negative control: what nobody named


@pytest.mark.parametrize("label", ["job", "job=4711"])
def test_by_the_label_of_a_run(executor, ask, label):
    other = executor([[OBEYS, {"job": "4711"}], [OBEYS, {"jobs": "4711"}]])
    ended = ask("kill", "--label", label, "--json")
    facts = json.loads(ended.stdout)
    assert (ended.returncode, facts["schema"]) == (0, 1)
    assert facts["runs"] == [
        {"run_id": other.ids[0], "cgroup": f"{other.fold}/run-{other.ids[0]}", "action": "killed",
         "pids": [other.pids[0]], "left": [], "why": None}
    ]  # fmt: skip
    assert other.outcome(0) == CANCELED
    assert going(other) == [other.ids[1]]


def test_by_the_label_of_a_fold_and_of_a_run_together(executor, ask):
    one = executor([[OBEYS, {"step": "cc"}], [OBEYS, {"step": "ld"}]], labels={"job": "1"})
    two = executor([[OBEYS, {"step": "cc"}]], labels={"job": "2"})
    assert ask("kill", "--label", "job=1", "--label", "step=cc").returncode == 0
    assert one.outcome(0) == CANCELED
    assert (going(one), going(two)) == ([one.ids[1]], two.ids)


def test_a_fold_means_all_of_its_runs_and_takes_others(executor, ask):
    one, two = executor([[TREE, {}], [OBEYS, {}]]), executor([[OBEYS, {}]])
    ended = ask("kill", one.name)
    assert (ended.returncode, len(ended.stdout.splitlines())) == (0, 2)
    assert [one.outcome(0), one.outcome(1)] == [CANCELED, CANCELED]
    assert os.path.isdir(one.place.directory)  # its owner's to remove
    assert going(two) == two.ids


def test_all(executor, ask):
    one, two = executor([[TREE, {}]]), executor([[OBEYS, {}]])
    assert ask("kill", "--all").returncode == 0
    assert [one.outcome(), two.outcome()] == [CANCELED, CANCELED]


@pytest.mark.parametrize(
    ("argv", "signal"),
    [(OBEYS, "TERM"), (OBEYS, "INT"), (POLITE, "USR1")],
)
def test_with_grace_a_signal_can_be_enough(executor, ask, argv, signal):
    """However the command itself ends by it."""
    other = executor([[argv, {}]])
    ended = ask("kill", "--grace", "20", "--signal", signal, other.ids[0])
    assert (ended.returncode, ended.stdout) == (0, f"ended run-{other.ids[0]} (1 process)\n")
    assert other.outcome() == CANCELED


def test_what_ignores_the_signal_is_killed_after_the_grace(executor, ask):
    other = executor([[TREE, {}]])
    ended = ask("kill", "-k", "50ms", "-s", "TERM", other.ids[0])
    assert (ended.returncode, ended.stdout) == (0, f"killed run-{other.ids[0]} (3 processes)\n")
    assert other.outcome() == CANCELED


def test_a_frozen_run_is_killed(executor, ask, wait_until):
    other = executor([[TREE, {}]])
    place = find.child(other.place, f"run-{other.ids[0]}")
    with open(f"{place.directory}/cgroup.freeze", "w") as file:
        file.write("1")
    wait_until(lambda: find.read_events(place).get("frozen"), "the freeze")
    assert ask("kill", other.ids[0]).returncode == 0
    assert other.outcome() == CANCELED


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["0123456789abcdef"], 1, "there is no such run"),
        (["--label", "nobody/has-this"], 1, "there is no such run"),
        (["--all"], 1, "there is no such run"),
        (["012"], 2, "at least 4 digits"),
        (["hello"], 1, "no such run or fold"),
        (["../run-0123"], 1, "no such run or fold"),
        (["--label", "a b"], 2, "label"),
        (["--grace", "5M", "0123"], 2, "two readings"),
        (["--grace", "1", "--signal", "NOPE", "0123"], 2, "no such signal"),
        (["--signal", "TERM", "0123"], 2, "--grace"),
        (["--all", "0123"], 2, "--all"),
        ([], 2, "no run given"),
    ],
)  # fmt: skip
def test_what_names_nothing_is_one_clear_line(ask_here, arguments, code, said):
    status, out, err = ask_here("kill", *arguments)
    assert (status, out, err.count("\n")) == (code, "", 1)
    assert said in err


def test_a_prefix_of_two_runs_kills_neither(executor, ask, cgroup2):
    other = executor([[OBEYS, {}]])
    twin = find.child(other.place, f"run-{other.ids[0][:8]}00000000")
    os.mkdir(twin.directory)
    try:
        os.setxattr(twin.directory, "user.pinfold.run", b'{"schema":1,"pid":1,"started":1}')
        ended = ask("kill", other.ids[0][:8])
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
        assert f"run-{other.ids[0]}" in ended.stderr
        assert twin.path in ended.stderr
        assert going(other) == other.ids
        assert ask("kill", other.ids[0]).returncode == 0
    finally:
        os.rmdir(twin.directory)
    assert other.outcome() == CANCELED


def test_a_user_kills_his_own(delegated, executor, ask):
    other = executor([[TREE, {}]], nobody=delegated)
    assert ask("kill", other.ids[0], nobody=delegated).stdout == f"killed run-{other.ids[0]} (3 processes)\n"
    assert other.outcome() == CANCELED


@pytest.mark.parametrize("name", ["id", "fold"])
def test_a_user_does_not_kill_those_of_root(delegated, executor, ask, name):
    other = executor([[OBEYS, {"job": "1"}]])
    ended = ask("kill", other.ids[0] if name == "id" else other.name, nobody=delegated)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "is not ours to kill" in ended.stderr
    assert "uid 0" in ended.stderr
    for arguments in (["--all"], ["--label", "job"]):
        assert ask("kill", *arguments, nobody=delegated).returncode == 1
    assert going(other) == other.ids


def test_root_kills_those_of_a_user(delegated, executor, ask):
    other = executor([[OBEYS, {}]], nobody=delegated)
    assert ask("kill", "--all").returncode == 0
    assert other.outcome() == CANCELED


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("somebody-elses", json.dumps({"schema": 1, "boot_id": ""} | dict.fromkeys(NUMBERS, 1)).encode()),
        ("pinfold-0123456789ab", None),
        ("pinfold-0123456789ab", b"{}"),
    ],
    ids=["not named like ours", "not signed", "malformed"],
)  # fmt: skip
def test_what_is_not_named_and_signed_like_ours_is_not_killed(ask_here, cgroup2, name, record):
    """A record may be anybody's, and name any process."""
    base = cgroup2 / name
    run = base / "run-0123456789abcdef"
    run.mkdir(parents=True)
    try:
        if record:
            os.setxattr(base, "user.pinfold.owner", record)
        os.setxattr(run, "user.pinfold.run", b'{"schema":1,"pid":%d,"started":1}' % os.getpid())
        for arguments in (["0123456789abcdef"], ["--all"], [name] if name.startswith("p") else ["--label", "x"]):
            assert ask_here("kill", *arguments)[0] == 1
        assert "user.pinfold.canceled" not in os.listxattr(run)
    finally:
        run.rmdir()
        base.rmdir()


@pytest.mark.parametrize("bad", ["x", "=x", "a b=x", "a=\x1b[2J", "a=" + "x" * 300])
def test_run_refuses_a_label_that_is_none(pinfold, bad):
    ended = pinfold("--label", bad, "true", result=False)
    assert (ended.code, ended.out, len(ended.lines)) == (125, b"", 1)
    assert "label" in ended.lines[0]


def test_run_takes_labels(start, line_of, ask):
    process = start("--label", "job=4711", "--label", "a/b=c d", *OBEYS)
    assert line_of(process) == b"ready\n"
    [fold] = json.loads(ask("ps", "--json", "--label", "job=4711").stdout)["folds"]
    assert [run["labels"] for run in fold["runs"]] == [{"job": "4711", "a/b": "c d"}]
    assert ask("kill", "--label", "job=4711").returncode == 0
    assert process.wait(20) == 137
    assert b"canceled after" in process.stderr.read()


def test_all_is_done_though_nobody_can_read_of_it(executor, ask):
    other = executor([[OBEYS, {}], [OBEYS, {}], [OBEYS, {}]])
    with open("/dev/full", "w") as full:
        ended = ask("kill", "--all", stdout=full)
    assert ended.returncode not in (0, 1)
    assert [other.outcome(at) for at in range(3)] == [CANCELED] * 3
