"""Folds: who may use one, what closing means, and what an interruption leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pinfold


def test_two_folds_at_once_do_not_meet(cgroup2):
    with pinfold.Fold() as one, pinfold.Fold() as two:
        first, second = one.start(["sleep", "60"]), two.start(["sleep", "60"])
        with first, second:
            assert {path.name for path in cgroup2.glob("pinfold-*")} == {Path(fold.path).name for fold in (one, two)}
            one.close()
            assert first.wait(0).outcome == "canceled"
            assert second.poll() is None
            second.kill()


def test_closing_a_fold_kills_what_it_started(cgroup2):
    fold = pinfold.Fold()
    runs = [fold.start(["sh", "-c", "setsid sleep 60 & sleep 60"]) for _ in range(5)]
    fold.close()
    for run in runs:
        with run:
            assert (run.wait(0).outcome, run.wait(0).receipt.emptied) == ("canceled", True)
    fold.close()
    with pytest.raises(pinfold.Error, match="closed"):
        fold.run(["true"])


def test_closing_a_fold_ends_the_runs_of_other_threads_too(cgroup2, wait_until):
    fold = pinfold.Fold()
    found: list[object] = []

    def work() -> None:
        try:
            found.append(fold.run(["sleep", "20"], timeout=8))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    base = cgroup2 / Path(fold.path).name
    wait_until(lambda: any(path.read_text() for path in base.glob("run-*/cgroup.procs")), "the start of the run")
    fold.close()
    thread.join(15)
    assert isinstance(found[0], pinfold.Result), repr(found)
    assert found[0].outcome == "canceled"
    assert not base.exists()


def test_the_base_cgroup_is_there_while_the_fold_is_and_no_longer(cgroup2):
    with pinfold.Fold() as fold:
        base = cgroup2 / Path(fold.path).name
        fold.run(["true"])
        assert base.is_dir()
    assert not base.exists()


def test_a_forked_child_opens_its_own_and_harms_nobody(host):
    found = host("forks")
    assert found["default"] == "child\n"
    assert found["own"] == "own\n"
    assert "opened before fork()" in found["foreign"]
    assert (found["after"], found["receipts"]) == (["parent\n"] * 2, [True, True])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: user=")
def test_a_fork_in_the_middle_of_anothers_start_does_not_hang_the_child(host):
    """A lock that a thread of the parent held is held for ever in the child."""
    assert host("forks_while_starting", 300) == 0


@pytest.mark.parametrize("module", ["pinfold.runs.fold", "pinfold.runs.states", "pinfold.backend.cgroupfs"])
def test_a_fork_does_not_cut_an_import_in_two(host, module):
    assert host("forks_while_importing", module) == 0


@pytest.mark.slow
def test_running_out_of_descriptors_at_any_step_leaves_nothing(host):
    found = host("few_descriptors", 40)
    assert found["leaks"] == []
    assert found["refused"] > 5
    assert found["ran"] > 5


@pytest.mark.slow
def test_an_exception_out_of_a_signal_handler_at_any_moment_leaves_no_process(host):
    found = host("interrupts", 300)
    print(f"\n{found['interrupted']} of 300 runs interrupted")
    assert found["interrupted"] > 100
    assert (found["alive"], found["children"], found["slow"], found["odd"]) == (0, [], [], [])


@pytest.mark.slow
def test_an_exception_out_of_a_signal_handler_while_starting_leaves_nothing(host):
    found = host("interrupts_start", 300)
    print(f"\n{found['interrupted']} of 300 starts interrupted")
    assert found["interrupted"] > 100
    assert (found["stuck"], found["children"]) == (0, [])
    # threading's own locks do not stand it either.
    assert [error for error in found["odd"] if "unlocked lock" not in error] == []
    # Between the call that opens one and the assignment of its number a descriptor is lost, in any Python program; but
    # not a dozen, as with a run that nobody cleans up.
    assert found["grown"] < found["interrupted"] / 2


def test_without_descriptors_at_its_end_a_run_has_its_result(host):
    found = host("no_descriptors_at_the_end")
    assert (found["outcome"], found["kept"]) == ("timed_out", [True, True])
    assert found["strays"] >= 1 or found["unlisted"] >= 1  # never that there were none
    assert set(found["named"]) <= {None}


def test_a_start_without_descriptors_raises_and_registers_nothing(host):
    found = host("few_descriptors_start", 4)
    assert [[how, registered, quick] for how, registered, _, quick in found] == [["EMFILE", 0, True]] * 4
    assert {grown for _, _, grown, _ in found} <= {0, 2}  # two are the loop of the fold, for the next start


def test_a_forked_worker_of_multiprocessing_leaves_no_cgroup(host):
    assert host("worker_of_multiprocessing") == 0


def test_a_fold_that_nobody_closes_is_closed_at_the_end_of_the_program(host, alive):
    assert not alive(host("ends_with_an_open_fold"))


def test_a_forked_child_that_leaves_a_with_block_harms_no_run(host):
    assert host("forks_inside_with") == {"child": 7, "going": True, "said": "on", "outcome": "exited"}


def test_a_close_that_was_cut_short_is_gone_on_with(cgroup2, monkeypatch):
    """By a second Ctrl-C, at each step of it."""
    for step in ("kill", "close"):
        fold = pinfold.Fold(backend="cgroupfs")
        run = fold.start(["sleep", "60"])
        real = getattr(fold._backend, step)

        def interrupted(*args, real=real, step=step, fold=fold, **kwargs):
            monkeypatch.setattr(fold._backend, step, real)
            raise KeyboardInterrupt

        monkeypatch.setattr(fold._backend, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fold.close()
        with pytest.raises(pinfold.Error, match="closed"):
            fold.run(["true"])
        fold.close()
        with run:
            assert run.wait(10).outcome == "canceled"
        assert list(cgroup2.glob("pinfold-*")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else too")
def test_nobody_can_keep_a_fold_from_its_lease(cgroup2):
    """Others may read the cgroup, and so lock it: but not before we have."""
    code = """
import fcntl, os, sys, time
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
held = {}
print("ready", flush=True)
while True:
    for name in os.listdir(sys.argv[1]):
        if name.startswith("pinfold-") and name not in held:
            try:
                held[name] = os.open(f"{sys.argv[1]}/{name}", os.O_RDONLY)
                fcntl.flock(held[name], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                pass
"""
    with subprocess.Popen([sys.executable, "-I", "-c", code, cgroup2], stdout=subprocess.PIPE, cwd="/") as other:
        try:
            assert other.stdout.readline() == b"ready\n"
            for _ in range(30):
                with pinfold.Fold(backend="cgroupfs") as fold:
                    assert fold.has_owner_record
        finally:
            other.kill()


def test_an_exception_before_anything_has_begun_leaves_no_run_behind(cgroup2, monkeypatch):
    """As one of a signal handler that comes when `start` has taken note of the run, and done nothing yet."""
    with pinfold.Fold() as fold:
        register = pinfold.Fold._register

        def interrupted(self, supervision) -> None:
            register(self, supervision)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(pinfold.Fold, "_register", interrupted)
            with pytest.raises(KeyboardInterrupt):
                fold.start(["sleep", "60"])
        assert not fold._running
        assert fold.start(["true"]).wait(10).returncode == 0
