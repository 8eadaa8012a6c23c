"""Folds: who may use one, what closing means, and what an interruption leaves."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import pinfold


def test_two_folds_at_once_do_not_meet(cgroup2):
    with pinfold.Fold() as one, pinfold.Fold() as two:
        first, second = one.start(["sleep", "60"]), two.start(["sleep", "60"])
        with first, second:
            assert {path.name for path in cgroup2.iterdir() if path.is_dir()} == {
                Path(fold._backend.path).name for fold in (one, two)
            }
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
    base = cgroup2 / Path(fold._backend.path).name
    wait_until(lambda: any(path.read_text() for path in base.glob("run-*/cgroup.procs")), "the start of the run")
    fold.close()
    thread.join(15)
    assert isinstance(found[0], pinfold.Result), repr(found)
    assert found[0].outcome == "canceled"
    assert not base.exists()


def test_the_base_cgroup_is_there_while_the_fold_is_and_no_longer(cgroup2):
    with pinfold.Fold() as fold:
        base = cgroup2 / Path(fold._backend.path).name
        fold.run(["true"])
        assert base.is_dir()
    assert not base.exists()


def test_a_forked_child_opens_its_own_and_harms_nobody(host):
    found = host("forks")
    assert found["default"] == "child\n"
    assert found["own"] == "own\n"
    assert "forked" in found["foreign"]
    assert (found["after"], found["receipts"]) == (["parent\n"] * 2, [True, True])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: user=")
def test_a_fork_in_the_middle_of_anothers_start_does_not_hang_the_child(host):
    """A lock that a thread of the parent held is held for ever in the child."""
    assert host("forks_while_starting", 300) == 0


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
