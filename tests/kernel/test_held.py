"""Processes that cannot be killed: the run ends within its bound, names them and their holder, and gc clears them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pinfold
from pinfold.lease import sweep
from pinfold.runs import states
from pinfold.runs.states import Event, State

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount and to trace")
HOLDERS = Path(__file__).with_name("holders.py")
BOUND = 0.5  # seconds, for this test, instead of KILL_BOUND


@contextlib.contextmanager
def holding(*arguments: object):
    """A holder, which lets go at the end of its stdin, and at the latest with the test."""
    argv = [sys.executable, "-I", "-S", HOLDERS, *map(str, arguments)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "ready\n"
            yield holder
        finally:
            holder.kill()
            holder.wait(10)


@contextlib.contextmanager
def by_fuse(fold, tmp_path):
    with holding("fuse", tmp_path) as holder, fold.start(["cat", f"/proc/{holder.pid}/root{tmp_path}/file"]) as run:
        assert holder.stdout.readline() == "asked\n"
        run.kill()
        yield run, holder


@contextlib.contextmanager
def by_tracer(fold, tmp_path):
    with fold.start(["sleep", "60"]) as run, holding("tracer", run.pid) as holder:
        run.kill()
        yield run, holder


@pytest.fixture(params=[by_fuse, by_tracer])
def held(request, cgroup2, tmp_path, monkeypatch):
    """A fold, its run that cannot end, and who holds it."""
    sooner = tuple((event, BOUND if event is Event.GAVE_UP else at) for event, at in states.DEADLINES[State.KILLING])
    monkeypatch.setitem(states.DEADLINES, State.KILLING, sooner)
    with pinfold.Fold() as fold, request.param(fold, tmp_path) as (run, holder):
        yield fold, run, holder


def state(pid: int) -> str | None:
    """The letter of proc_pid_stat(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


@pytest.fixture
def check_held(slowness):
    def check(run, holder) -> None:
        began = time.monotonic()
        result = run.wait(BOUND + 5 * slowness)
        assert time.monotonic() - began < BOUND + 2 * slowness
        receipt = result.receipt
        assert (result.outcome, receipt.emptied, receipt.removed, receipt.stuck_pids) == (
            "canceled", False, False, [run.pid],
        )  # fmt: skip
        (stuck,) = receipt.stuck_processes
        if stuck.comm == "cat":
            assert (stuck.state, stuck.tracer) == ("D", 0)
            assert stuck.wchan is None or "fuse" in stuck.wchan or "request" in stuck.wchan
        else:
            assert (stuck.comm, stuck.state, stuck.tracer) == ("sleep", "t", holder.pid)
        assert result.to_dict()["receipt"]["stuck_processes"][0]["pid"] == run.pid

    return check


def test_it_is_named_and_a_sweep_clears_it_while_its_fold_lives(held, check_held, cgroup2, place2, wait_until):
    fold, run, holder = held
    check_held(run, holder)
    (swept,) = sweep.sweep(place2, bound=0.1)
    assert (swept.what, swept.action, swept.left) == ("run", "left", [run.pid])
    holder.kill()
    other = fold.start(["sleep", "60"])
    with other:
        wait_until(lambda: state(run.pid) in ("Z", None), "the end of what was held")
        assert [(s.what, s.action) for s in sweep.sweep(place2)] in (
            [("run", "removed")],
            [],
        )  # or its fold was quicker
        assert len(list(cgroup2.glob("pinfold-*/run-*"))) <= 2  # the other run, and the spare
        other.kill()
        assert other.wait(10).receipt.emptied


def test_its_fold_removes_it_later_by_itself(held, check_held, cgroup2, wait_until):
    fold, run, holder = held
    check_held(run, holder)
    (left,) = [path for path in cgroup2.glob("pinfold-*/run-*") if (path / "cgroup.procs").read_text()]
    holder.kill()
    wait_until(lambda: "populated 0" in (left / "cgroup.events").read_text(), "the end of what was held")
    fold.run(["true"])
    assert not left.exists()


def test_a_fold_that_is_closed_meanwhile_is_left_to_its_guard_and_to_the_sweep(
    held, check_held, cgroup2, place2, wait_until
):
    fold, run, holder = held
    check_held(run, holder)
    fold.close()
    (base,) = cgroup2.glob("pinfold-*")
    assert [(s.action, s.left, s.why) for s in sweep.sweep(place2, bound=0.1)] == [
        ("left", [run.pid], "its fold was closed")
    ]
    holder.kill()
    wait_until(lambda: list(sweep.sweep(place2)) == [] and not base.exists(), "the end of what was held")
    assert pinfold.run(["true"]).ok  # with it the status of the one that was held is collected
