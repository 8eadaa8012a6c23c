"""`pinfold ps`: the facts of runs that other processes have started, and nothing that could write to the terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import pinfold
from pinfold import proc
from pinfold.cgroup import places
from pinfold.lease import find

TREE = ["sh", "-c", "setsid sleep 60 & sleep 60 & echo ready; wait"]
OBEYS = ["sh", "-c", "echo ready; exec sleep 60"]
WORK = "import time\nwhile time.process_time() < 0.2: pass\nprint(1, flush=True)\ntime.sleep(60)"
BUSY = [sys.executable, "-I", "-S", "-c", WORK]
EVIL = "\x1b[2J\x1b]0;owned\x07\r\n\u202e\x9b"
CONTROL = {*map(chr, range(32)), "\x7f", *map(chr, range(0x80, 0xA0)), "\u202e"} - {"\n"}


@pytest.fixture
def signed(wait_until):
    """Wait for the record of a run, which comes a moment after its start; a test may write another then."""

    def wait(run):
        wait_until(lambda: "user.pinfold.run" in os.listxattr(run.directory), "the record of the run")
        return run

    return wait


def folds(ask, *arguments, **options):
    ended = ask("ps", "--json", *arguments, **options)
    assert (ended.returncode, ended.stderr) == (0, "")
    facts = json.loads(ended.stdout)
    assert facts["schema"] == 1
    return facts["folds"]


def test_nothing_is_said_as_such(ask):
    assert ask("ps").stdout == "no pinfold runs\n"
    assert folds(ask) == []


def test_the_facts_of_a_fold_and_its_runs(executor, ask):
    began = time.time()
    other = executor([[TREE, {"step": "cc"}], [BUSY, {}]], labels={"job": "4711"})
    [fold] = folds(ask)
    lived = (time.time() - began) * 1e6
    runs = {run["run_id"]: run for run in fold.pop("runs")}
    age, owner = fold.pop("age_usec"), fold.pop("owner")
    assert 0 < age < lived
    process = psutil.Process(other.process.pid)
    assert owner == {"pid": process.pid, "comm": process.name(), "argv": process.cmdline()}
    assert fold == {
        "cgroup": other.fold, "scope": None, "backend": "cgroupfs", "state": "live", "uid": os.geteuid(),
        "problem": None, "owner_pid": process.pid, "closed": False, "labels": {"job": "4711"}, "spares": 1,
    }  # fmt: skip
    assert set(runs) == set(other.ids)
    first, busy = (runs[run_id] for run_id in other.ids)
    assert first["main"] == {"pid": other.pids[0], "comm": "sh", "argv": TREE}
    assert (first["state"], first["processes"], first["labels"]) == ("running", 3, {"step": "cc"})
    assert first["cgroup"] == f"{other.fold}/run-{other.ids[0]}"
    assert 0 < first["age_usec"] < lived
    assert 150_000 < busy["cpu_usage_usec"] < lived
    assert first["cpu_usage_usec"] < busy["cpu_usage_usec"]
    has_memory = os.path.exists(f"{other.place.directory}/run-{other.ids[0]}/memory.current")
    assert (first["memory_current"] is not None) == has_memory


def test_the_tree_to_read(executor, ask):
    other = executor([[TREE, {"step": "cc"}]], labels={"job": "4711"})
    fold, run, command = ask("ps").stdout.splitlines()
    assert fold.startswith(f"{other.fold}: live, cgroupfs, ")
    assert "1 run, process " in fold
    assert fold.endswith(" job=4711")
    assert run.startswith(f"└── run-{other.ids[0]}: running, ")
    assert "3 processes" in run
    assert run.endswith(" step=cc")
    assert command.split(maxsplit=1) == [str(other.pids[0]), "sh -c setsid sleep 60 & sleep 60 & echo ready; wait"]


def test_labels_choose_runs_and_folds(executor, ask):
    one = executor([[OBEYS, {"step": "cc"}], [OBEYS, {"step": "ld"}]], labels={"job": "1"})
    two = executor([[OBEYS, {}]], labels={"job": "2"})

    def shown(*arguments):
        return sorted(run["run_id"] for fold in folds(ask, *arguments) for run in fold["runs"])

    assert shown() == sorted([*one.ids, *two.ids])
    assert shown("--label", "step=ld") == [one.ids[1]]
    assert shown("--label", "job=2") == two.ids
    assert shown("--label", "job", "--label", "step") == sorted(one.ids)
    assert shown("--label", "job=3") == []


def test_a_frozen_run_and_an_ended_one(executor, ask, wait_until):
    other = executor([[OBEYS, {}]])
    run = find.child(other.place, f"run-{other.ids[0]}")
    Path(run.directory, "cgroup.freeze").write_text("1")
    wait_until(lambda: find.read_events(run).get("frozen"), "the freeze")
    assert [run["state"] for run in folds(ask)[0]["runs"]] == ["frozen"]
    ended = find.child(other.place, "run-0123456789abcdef")
    os.mkdir(ended.directory)
    try:
        for quarantined, state in ((False, "ended"), (True, "quarantined")):
            record = {"schema": 1, "pid": None, "started": 2**62, "quarantined": quarantined}
            os.setxattr(ended.directory, "user.pinfold.run", json.dumps(record).encode())
            [facts] = [run for run in folds(ask)[0]["runs"] if run["cgroup"] == ended.path]
            assert (facts["state"], facts["processes"], facts["main"], facts["age_usec"]) == (state, 0, None, None)
    finally:
        os.rmdir(ended.directory)


def test_what_a_command_calls_itself_cannot_write_to_the_terminal(executor, ask, signed):
    code = f"open('/proc/self/comm', 'w').write({EVIL[:8]!r}); print(1, flush=True); __import__('time').sleep(60)"
    other = executor([[[sys.executable, "-I", "-S", "-c", code, EVIL], {}]])
    run = signed(find.child(other.place, f"run-{other.ids[0]}"))
    # Records are written by whoever may write the cgroup: the command itself, where it is of the same uid.
    record = {"schema": 1, "pid": other.pids[0], "started": 1, "labels": {EVIL: EVIL}}
    os.setxattr(run.directory, "user.pinfold.run", json.dumps(record).encode())
    base = json.loads(os.getxattr(other.place.directory, "user.pinfold.owner"))
    base["labels"] = {EVIL: EVIL}
    os.setxattr(other.place.directory, "user.pinfold.owner", json.dumps(base).encode())
    text = ask("ps").stdout
    assert not CONTROL & set(text)
    assert text.count("\n") == 3
    assert r"\x1b[2J" in text
    [facts] = folds(ask)[0]["runs"]  # the negative control: it is all there
    assert (facts["main"]["argv"][-1], facts["labels"]) == (EVIL, {EVIL: EVIL})


def test_a_record_does_not_pass_another_process_off_as_the_command(executor, ask, signed):
    other = executor([[OBEYS, {}]])
    run = signed(find.child(other.place, f"run-{other.ids[0]}"))
    os.setxattr(run.directory, "user.pinfold.run", b'{"schema":1,"pid":%d,"started":1}' % os.getpid())
    [facts] = folds(ask)[0]["runs"]
    assert (facts["main"], facts["processes"]) == (None, 1)


def test_a_process_that_keeps_its_readers_waiting_is_shown_without_its_command_line(
    executor, ask_here, signed, monkeypatch
):
    other, let_go, real = executor([[TREE, {}], [OBEYS, {}]]), threading.Event(), proc.wait_for_argv
    for run_id in other.ids:
        signed(find.child(other.place, f"run-{run_id}"))

    def wait_for_argv(pid):
        if pid == other.pids[0]:
            assert let_go.wait(30)
        return real(pid)

    monkeypatch.setattr(proc, "wait_for_argv", wait_for_argv)
    try:
        status, out, err = ask_here("ps", "--json")
        text = ask_here("ps")[1]
    finally:
        let_go.set()
    assert (status, err) == (0, "")
    [fold] = json.loads(out)["folds"]
    mains = {run["main"]["pid"]: run["main"] for run in fold["runs"]}
    assert mains[other.pids[0]] == {"pid": other.pids[0], "comm": "sh", "argv": None}
    assert mains[other.pids[1]]["argv"] == ["sleep", "60"]
    assert f"    {other.pids[0]} sh\n" in text


def test_a_dead_fold_is_shown_with_what_to_do(executor, ask):
    other = executor([[OBEYS, {}]])
    other.die()
    [fold] = folds(ask)
    assert (fold["state"], fold["owner"], fold["owner_pid"]) == ("dead", None, other.process.pid)
    text = ask("ps").stdout
    assert f"process {other.process.pid} is gone" in text
    assert text.endswith("run `pinfold gc` to remove dead folds\n")


@pytest.mark.parametrize("record", [None, b"{}", b"\xff\x1b[2J"])
def test_what_is_not_signed_is_foreign(ask, cgroup2, record):
    base = cgroup2 / "pinfold-0123456789ab"
    base.mkdir()
    try:
        if record:
            os.setxattr(base, "user.pinfold.owner", record)
        [fold] = folds(ask)
        text = ask("ps").stdout
    finally:
        base.rmdir()
    assert (fold["state"], fold["owner"], fold["runs"]) == ("foreign", None, [])
    assert fold["problem"]
    assert fold["problem"] in text
    assert "gc" not in text


def test_a_user_sees_those_of_root_and_his_own(delegated, executor, ask):
    of_root, own = executor([[OBEYS, {}]]), executor([[OBEYS, {}]], nobody=delegated)
    seen = {fold["cgroup"]: fold for fold in folds(ask, nobody=delegated)}
    assert {path: (fold["uid"], fold["state"]) for path, fold in seen.items()} == {
        of_root.fold: (0, "live"), own.fold: (65534, "live")
    }  # fmt: skip
    assert seen[of_root.fold]["problem"] == "it belongs to uid 0"
    assert seen[own.fold]["problem"] is None
    assert ", of uid 65534," in ask("ps").stdout


@pytest.fixture
def watch(cgroup2):
    """`pinfold ps --watch` with these arguments; ended by the test."""
    own = places.own_place()
    place = next(p for p in (own, *places.ancestors(own)) if p.directory == str(cgroup2))
    program = Path(__file__).parent / "executors.py"
    started = []

    def start(*arguments, **options):
        argv = [sys.executable, program, "ask", "", place.path, "ps", "--watch", *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        started.append(subprocess.Popen(argv, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def test_watch_says_it_again_and_ends_by_ctrl_c(watch, line_of):
    process = watch("--json")
    assert [json.loads(line_of(process))["folds"] for _ in range(2)] == [[], []]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    assert b"Traceback" not in out


def test_watch_ends_quietly_when_nobody_reads(watch, line_of):
    process = watch()
    assert line_of(process) == b"no pinfold runs\n"
    process.stdout.close()
    assert process.wait(30) == 0
    assert process.stderr.read() == b""
    process.stdout = None


def test_watch_redraws_on_a_terminal(watch):
    master, tty = os.openpty()
    try:
        process, seen = watch(stdout=tty), b""
        while seen.count(b"\x1b[H") < 2:
            seen += os.read(master, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        os.close(master)
        os.close(tty)
    assert seen.startswith(b"\x1b[Hno pinfold runs\x1b[K\r\n\x1b[J")


def test_where_stdout_has_no_lines_to_draw_the_list_has_others(cgroup2):
    argv = [Path(sys.executable).with_name("pinfold"), "ps"]
    with pinfold.start(["sleep", "60"], labels={"who": "caf\u00e9 \u2014"}) as run:
        env = os.environ | {"PYTHONIOENCODING": "latin-1"}
        ended = subprocess.run(argv, env=env, capture_output=True, timeout=60, check=False)
        run.kill()
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert f"`-- run-{run.run_id}".encode() in ended.stdout
    assert b"who=caf\xe9 \\u2014" in ended.stdout
