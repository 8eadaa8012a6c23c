"""Ends under limits: what can hardly move is killed as soon as anything else."""

from __future__ import annotations

import time

import pytest

from pinfold import SpawnError

KILL_BOUND = 0.1  # seconds; usual is a hundredth of that


@pytest.mark.parametrize(
    ("word", "limits"),
    [
        ("spin", {"cpu_max": 0.01}),
        ("bomb", {"cpu_max": 0.01, "pids_max": 20}),
        ("hog", {"memory_high": "1M"}),
    ],
    ids=["throttled", "a throttled bomb", "held at memory_high"],
)
def test_what_is_throttled_is_killed_in_time(every_fold, worker, slowness, report_figure, word, limits):
    start = time.monotonic()
    result = every_fold.run(worker(word), limits=limits, timeout=1)
    wall = time.monotonic() - start
    report_figure(f"kill to empty, usec ({limits})", result.receipt.kill_to_empty_usec)
    report_figure("wall time of a timeout of 1 s", wall)
    assert result.outcome == "timed_out"
    assert result.receipt.emptied
    assert result.receipt.removed
    assert result.receipt.kill_to_empty_usec < KILL_BOUND * slowness * 1e6
    assert wall < 1 + 0.5 * slowness


@pytest.mark.parametrize("cpus", [0.01, 0.001])
def test_a_time_limit_holds_for_what_can_hardly_start(every_fold, slowness, cpus):
    start = time.monotonic()
    result = every_fold.run(["sleep", "60"], limits={"cpu_max": cpus}, timeout=1)
    assert result.outcome == "timed_out"
    assert result.limits["applied"] == {"cpu_max": cpus}
    assert result.receipt.emptied
    assert time.monotonic() - start < 1 + 0.5 * slowness


def test_a_cpu_limit_that_was_lifted_for_the_start_is_in_force_after_it(every_fold, worker, cgroup_of):
    with every_fold.start(worker("spin"), limits={"cpu_max": 0.01}, timeout=60) as run:
        cgroup = cgroup_of(run.pid)
        found = [(each / "cpu.max").read_text().strip() for each in (cgroup, cgroup.parent, cgroup.parent.parent)]
        run.kill()
    unit = run.wait().placement.unit or ""
    of_its_own = unit.startswith("pinfold-run-")
    assert found == ["1000 100000", "max 100000", "1000 100000" if of_its_own else "max 100000"]


# Between these two the memory ends within execve(2), which kernel 6.1 does not survive everywhere (user-mode Linux).
def test_without_the_memory_to_start_in_it_is_not_started_and_that_is_said(every_fold):
    with pytest.raises(SpawnError, match="its memory limit of 4096 bytes may be too small to start in") as caught:
        every_fold.run(["true"], limits={"memory_max": 4096})
    receipt = caught.value.result.receipt
    assert caught.value.step == "exec"
    assert receipt.emptied
    assert receipt.removed
    assert every_fold.run(["true"]).ok


def test_with_hardly_the_memory_to_start_in_it_dies_of_its_limit(every_fold, worker, slowness):
    result = every_fold.run(worker("hold", 1), limits={"memory_max": 256 << 10}, timeout=20 * slowness)
    assert (result.outcome, result.returncode) == ("oom_killed", -9)
    assert result.events["oom_by"] == "own"
    assert result.receipt.emptied
    assert result.receipt.removed
    assert every_fold.run(["true"]).ok


def test_one_process_is_enough_for_a_command_that_makes_none(every_fold, slowness):
    result = every_fold.run(["true"], limits={"pids_max": 1}, timeout=20 * slowness)
    assert result.ok
    assert result.usage.pids_peak == 1


def test_one_process_is_not_enough_for_a_second(every_fold, slowness):
    argv = ["sh", "-c", "/bin/true; echo no"]
    result = every_fold.run(argv, limits={"pids_max": 1}, timeout=20 * slowness, capture_output=True)
    assert result.outcome == "exited"
    assert result.returncode != 0
    assert result.stdout == b""
    assert result.events["pids_max"] >= 1
