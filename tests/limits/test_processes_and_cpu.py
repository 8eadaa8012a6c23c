"""Processes and CPU time: what the limits hold back, measured."""

from __future__ import annotations

import os

import psutil

SPAN = 5.0  # seconds to measure a share of a CPU in


def test_a_program_that_forks_for_ever_is_held_at_its_limit(every_fold, worker, slowness):
    result = every_fold.run(
        worker("forks"), limits={"pids_max": 20}, timeout=20 * slowness, capture_output=True, text=True
    )
    assert (result.outcome, result.stdout) == ("exited", "19\n")
    assert result.usage.pids_peak == 20
    assert result.events["pids_max"] >= 1
    assert result.receipt.strays == 19
    assert result.receipt.emptied
    assert result.receipt.removed


def test_a_fork_bomb_is_held_at_its_limit_and_nothing_of_it_is_left(fold, worker):
    result = fold.run(worker("bomb"), limits={"pids_max": 20}, timeout=1)
    assert result.outcome == "timed_out"
    assert result.usage.pids_peak == 20
    assert result.events["pids_max"] >= 1
    assert result.receipt.emptied
    assert result.receipt.strays == 19
    assert not [stray for stray in result.receipt.stray_processes if alive(stray.pid)]


def alive(pid: int) -> bool:
    """Whether a process is there; a zombie is not, it only waits for init."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_fifth_of_a_cpu_is_a_fifth(one_fold, worker, report_figure):
    result = one_fold.run(worker("spin"), limits={"cpu_max": "20%"}, timeout=SPAN)
    share = result.usage.cpu_usage_usec / 1e6 / result.duration
    report_figure("share of a CPU at cpu_max 20%", share)
    assert result.outcome == "timed_out"
    assert 0.18 <= share <= 0.22
    assert result.usage.cpu_throttled_usec > 0
    assert result.usage.cpu_throttled_periods > 0


def test_weights_of_one_to_four_share_a_cpu_so(one_fold, worker, cgroup_of, poll, report_figure):
    cpu = {min(os.sched_getaffinity(0))}
    with (
        one_fold.start(worker("spin"), limits={"cpu_weight": 400}, timeout=60) as heavy,
        one_fold.start(worker("spin"), limits={"cpu_weight": 100}, timeout=60) as light,
    ):
        runs = (heavy, light)
        for run in runs:
            os.sched_setaffinity(run.pid, cpu)
        cgroups = [cgroup_of(run.pid) for run in runs]
        before = [usage_usec(cgroup) for cgroup in cgroups]

        def used() -> list[int]:
            return [usage_usec(cgroup) - was for cgroup, was in zip(cgroups, before, strict=True)]

        poll(lambda: sum(used()) >= SPAN * 1e6, "five seconds of CPU time")
        more, less = used()
        for run in runs:
            run.kill()
    report_figure("CPU time at weight 400 by that at 100", more / less)
    assert 3.5 <= more / less <= 4.5


def usage_usec(cgroup) -> int:
    first, _, _ = (cgroup / "cpu.stat").read_text().partition("\n")
    return int(first.removeprefix("usage_usec "))
