"""`pinfold.ps` and `pinfold.kill`, with real runs: of this process and of another one."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest

import pinfold
from pinfold import proc
from pinfold.errors import Error, UsageError
from pinfold.lease import find
from pinfold.others import kill, ps
from pinfold.runs import main_process

HANGS = 30.0
TREE = ["sh", "-c", "trap '' TERM; setsid sleep 60 & sleep 60 & echo ready; wait; sleep 60"]
OBEYS = ["sh", "-c", "echo ready; exec sleep 60"]
EXECUTOR = """
import json, sys
import pinfold

with pinfold.Fold(backend="cgroupfs", labels={"of": "another"}) as fold:
    run = fold.start(json.loads(sys.argv[1]), stdout=pinfold.PIPE, stdin=pinfold.DEVNULL)
    run.stdout.readline()
    print(run.run_id, flush=True)
    sys.stdin.read()
    result = run.wait(20)
    print(json.dumps([result.outcome, result.receipt.emptied, result.receipt.removed]), flush=True)
    run.stdout.close()
"""


@pytest.fixture(autouse=True)
def _in_our_part(place2, monkeypatch):
    """To these tests their own cgroup is all there is."""
    monkeypatch.setattr(find, "top", lambda: place2)


@pytest.fixture
def fold():
    with pinfold.Fold(backend="cgroupfs", labels={"job": "4711"}) as fold:
        yield fold


@pytest.fixture
def start(fold, wait_until):
    """`start(ARGV, **labels)`: a run that is ready, and on record."""
    started = []

    def start(argv, **labels):
        run = fold.start(argv, labels=labels, stdout=pinfold.PIPE, stdin=pinfold.DEVNULL)
        started.append(run)
        assert run.stdout.readline() == b"ready\n"
        wait_until(lambda: all(each.labels is not None for one in ps() for each in one.runs), "the record")
        return run

    yield start
    for run in started:
        run.kill()
        with run:
            run.wait(HANGS)


@pytest.fixture
def another(place2):
    """`another(ARGV)`: a run of another process: its id, and a function that waits for its end."""
    started = []

    def line(process):
        assert select.select([process.stdout], [], [], HANGS)[0], "no line came"
        return process.stdout.readline().decode().strip()

    def start(argv):
        command = [sys.executable, "-c", EXECUTOR, json.dumps(argv)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        run_id = line(process)

        def end():
            process.stdin.close()
            return json.loads(line(process))

        return run_id, end

    yield start
    for process in started:
        process.stdin.close()
        try:
            process.wait(HANGS)
        finally:
            process.kill()
            process.wait(HANGS)
            process.stdout.close()


def ended(run):
    result = run.wait(HANGS)
    return result.outcome, result.receipt.emptied, result.receipt.removed


CANCELED = ("canceled", True, True)


def test_where_nothing_runs_there_is_nothing():
    assert ps() == []
    assert kill(all=True) == []
    assert kill(labels={"nobody/has": "this"}) == []


def test_the_facts_of_a_run(fold, start):
    began = time.time()
    run = start(TREE, step="cc")
    [found] = ps()
    assert (found.cgroup, found.state, found.backend, found.scope) == (fold.path, "live", "cgroupfs", None)
    assert (found.uid, found.problem, found.closed, found.labels) == (os.geteuid(), None, False, {"job": "4711"})
    assert (found.owner_pid, found.owner.pid, found.owner.argv) == (
        os.getpid(),
        os.getpid(),
        proc.wait_for_argv(os.getpid()),
    )
    [facts] = found.runs
    assert (facts.run_id, facts.cgroup) == (run.run_id, f"{fold.path}/run-{run.run_id}")
    assert (facts.state, facts.processes, facts.labels) == ("running", 3, {"step": "cc"})
    assert facts.main == (run.pid, "sh", TREE)
    assert 0 < facts.age_usec < (time.time() - began) * 1e6 + 1e6
    assert facts.cpu_usage_usec > 0
    assert json.loads(json.dumps(found.to_dict()))["runs"][0]["main"]["argv"] == TREE


def test_labels_choose(start):
    one, two = start(OBEYS, step="cc"), start(OBEYS, step="ld")

    def shown(**labels):
        return {run.run_id for fold in ps(labels=labels) for run in fold.runs}

    assert shown() == shown(job="4711") == shown(job=None, step=None) == {one.run_id, two.run_id}
    assert shown(step="ld") == {two.run_id}
    assert shown(step="as") == set()
    [killed] = kill(labels={"job": "4711", "step": "cc"})
    assert (killed.run_id, killed.action, killed.pids, killed.left) == (one.run_id, "killed", [one.pid], [])
    assert ended(one) == CANCELED
    assert shown() == {two.run_id}  # the negative control: what nobody named


@pytest.mark.parametrize("how", ["{id}", "run-{id}", "{prefix}", "{fold}/run-{id}"])
def test_a_run_by_its_name_and_the_one_beside_it_goes_on(fold, start, how):
    one, two = start(TREE), start(OBEYS)
    [killed] = kill(how.format(id=one.run_id, prefix=one.run_id[:8], fold=fold.path))
    assert (killed.run_id, killed.cgroup, killed.action, len(killed.pids)) == (
        one.run_id,
        f"{fold.path}/run-{one.run_id}",
        "killed",
        3,
    )
    assert ended(one) == CANCELED
    assert two.poll() is None


def test_a_fold_by_its_name_and_all(fold, start):
    runs = [start(OBEYS), start(OBEYS)]
    assert {killed.run_id for killed in kill(os.path.basename(fold.path))} == {run.run_id for run in runs}
    assert [ended(run) for run in runs] == [CANCELED] * 2
    runs = [start(OBEYS), start(OBEYS)]
    assert len(kill(all=True)) == 2
    assert [ended(run) for run in runs] == [CANCELED] * 2


def test_the_run_of_another_process(another):
    run_id, end = another(TREE)
    [facts] = ps(labels={"of": "another"})
    assert [run.run_id for run in facts.runs] == [run_id]
    assert facts.owner_pid != os.getpid()
    assert [killed.action for killed in kill(run_id)] == ["killed"]
    assert end() == list(CANCELED)


@pytest.mark.parametrize("grace", [20, 20.0, "20s", timedelta(seconds=20)])
def test_with_grace_the_signal_can_be_enough(start, wait_until, grace):
    run = start(OBEYS)
    wait_until(
        lambda: ps()[0].runs[0].age_usec > 2e6 * main_process.RECORD_AFTER, "the age at which it is asked who it was"
    )
    assert [killed.action for killed in kill(run.run_id, signal="INT", grace=grace)] == ["ended"]
    assert ended(run) == CANCELED


def test_so_it_can_for_a_run_that_has_just_been_started(start, monkeypatch):
    monkeypatch.setattr(main_process, "RECORD_AFTER", 60.0)
    run = start(OBEYS)
    assert [killed.action for killed in kill(run.run_id, signal="INT", grace=20)] == ["ended"]
    assert ended(run) == CANCELED


def test_what_ignores_it_is_killed(start):
    run = start(TREE)
    assert [killed.action for killed in kill(run.run_id, grace=0.05)] == ["killed"]
    assert ended(run) == CANCELED


@pytest.mark.parametrize(
    ("names", "options", "why"),
    [
        ((), {}, "no run given"),
        ((), {"labels": {}}, "no run given"),
        (("0123",), {"all": True}, "names, or all=True"),
        ((["0123"],), {}, "must be a str"),
        (("012",), {}, "at least 4 digits"),
        (("0123",), {"labels": ["a"]}, "must be a mapping"),
        (("0123",), {"labels": {"a b": "1"}}, "a name has"),
        (("0123",), {"labels": {"a": 1}}, "a value is"),
        (("0123",), {"signal": "TERM"}, "signal needs grace"),
        (("0123",), {"signal": "NOPE", "grace": 1}, "no such signal"),
        (("0123",), {"grace": "5M"}, "two readings"),
    ],
)  # fmt: skip
def test_wrong_arguments_touch_nothing(start, names, options, why):
    run = start(OBEYS)
    with pytest.raises(UsageError, match=why):
        kill(*names, **options)
    assert run.poll() is None


@pytest.mark.parametrize("name", ["0123456789abcdef", "hello", "/pinfold-0123456789ab", "../run-0123"])
def test_a_name_that_is_no_runs_is_an_error_and_spares_the_others_that_were_named(start, name):
    run = start(OBEYS)
    with pytest.raises(Error, match="there is no such run"):
        kill(run.run_id, name)
    assert run.poll() is None


def test_a_process_that_keeps_its_readers_waiting_has_no_argv_and_is_killed_all_the_same(start, monkeypatch):
    run, let_go, real = start(TREE), threading.Event(), proc.wait_for_argv

    def wait_for_argv(pid):
        if pid == run.pid:
            assert let_go.wait(HANGS)
        return real(pid)

    with monkeypatch.context() as patched:
        patched.setattr(proc, "wait_for_argv", wait_for_argv)
        began = time.monotonic()
        [found] = ps()
        assert time.monotonic() - began < HANGS / 2
        assert found.runs[0].main == (run.pid, "sh", None)
        assert found.owner.argv == real(os.getpid())
        [killed] = kill(run.run_id)
    let_go.set()
    assert killed.action == "killed"
    assert ended(run) == CANCELED


def test_for_a_kill_no_command_line_is_read(another, monkeypatch):
    """By us: whoever has started the run names its strays."""
    (run_id, end), read = another(TREE), []
    reader = proc.read_bytes
    monkeypatch.setattr(proc, "read_bytes", lambda path: (read.append(path), reader(path))[1])
    assert [killed.action for killed in kill(run_id)] == ["killed"]
    assert not [path for path in read if path.endswith("/cmdline")]
    ps()
    assert [path for path in read if path.endswith("/cmdline")]  # the negative control: of its owner
    assert end() == list(CANCELED)
