"""Accounting: the figures of a Result, against what programs are known to have used."""

from __future__ import annotations

import pytest

MIB = 1 << 20


def test_the_peak_of_a_tree_is_what_its_processes_held_together(fold, worker, slowness, report_figure):
    result = fold.run(worker("tree", 5, 20), timeout=20 * slowness)
    report_figure("memory peak by what was touched", result.usage.memory_peak / (100 * MIB))
    assert result.ok
    assert result.usage.memory_peak == pytest.approx(100 * MIB, rel=0.05)
    assert result.usage.pids_peak == 6


def test_cpu_time_is_the_sum_of_its_processes(one_fold, worker, slowness, report_figure):
    result = one_fold.run(worker("burn", 4, 1300), timeout=30 * slowness, capture_output=True)
    told = int(result.stdout)
    report_figure("CPU time by the sum of rusage", result.usage.cpu_usage_usec / told)
    assert told >= 5_000_000
    assert result.usage.cpu_usage_usec == pytest.approx(told, rel=0.02)
    parts = result.usage.cpu_user_usec + result.usage.cpu_system_usec
    assert parts == pytest.approx(result.usage.cpu_usage_usec, abs=2)


def test_a_run_of_a_moment_has_its_figures(every_fold):
    usage = every_fold.run(["true"]).usage
    assert usage.memory_peak > 0
    assert usage.pids_peak >= 1
    assert usage.cpu_usage_usec is not None
    assert usage.cpu_user_usec is not None
    assert usage.cpu_system_usec is not None
    assert usage.cpu_throttled_usec == 0


def test_the_parts_of_its_memory_are_what_it_held(fold, worker, slowness, report_figure):
    result = fold.run(worker("hold", 20), timeout=0.6 * slowness, capture_output=True)
    report_figure("anon by what was held", result.usage.memory_anon / (20 * MIB))
    assert result.stdout == b"held\n"
    assert result.usage.memory_anon == pytest.approx(20 * MIB, rel=0.05)
    assert 0 <= result.usage.memory_file < MIB
    assert result.usage.memory_shmem == 0
    assert 0 < result.usage.memory_kernel < 2 * MIB


def test_one_run_s_figures_are_not_the_next_one_s(fold, worker, slowness):
    first = fold.run(worker("tree", 5, 10), timeout=20 * slowness).usage
    second = fold.run(["true"]).usage
    assert second.memory_peak < first.memory_peak / 5
    assert second.pids_peak == 1
