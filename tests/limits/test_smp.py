"""What takes more than one CPU, the controller cpuset, or a kernel that measures pressure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def last_cpu():
    """The last one of ours; there is another."""
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    return max(cpus)


@pytest.fixture
def psi():
    try:
        Path("/proc/pressure/memory").read_text()
    except OSError:
        pytest.skip("needs a kernel that measures pressure (PSI, on older ones psi=1)")


@pytest.fixture
def cpuset(controllers):
    if "cpuset" not in controllers:
        pytest.skip("needs the controller cpuset")


@pytest.mark.parametrize("kind", ["cgroupfs", "systemd", "scope-per-run"])
def test_a_command_sees_the_cpus_of_its_set_alone(opened, files, last_cpu, cpuset, kind):
    argv = files("cpuset.cpus", "cpuset.cpus.effective")
    argv[2] = f"grep Cpus_allowed_list: /proc/self/status; {argv[2]}"
    fold = opened(kind, move_caller=True)
    result = fold.run(argv, limits={"cpuset_cpus": str(last_cpu)}, capture_output=True)
    found = {name: text.strip() for name, text in files.read(result.stdout).items()}
    assert found == dict.fromkeys(
        ("Cpus_allowed_list", "cpuset.cpus", "cpuset.cpus.effective"), str(last_cpu)
    )  # fmt: skip
    assert result.limits["applied"] == {"cpuset_cpus": str(last_cpu)}


def test_cpus_as_numbers_and_memory_nodes_are_in_their_files(one_fold, files, last_cpu, cpuset):
    limits = {"cpuset_cpus": [last_cpu], "cpuset_mems": "0"}
    result = one_fold.run(files("cpuset.cpus", "cpuset.mems"), limits=limits, capture_output=True)
    assert files.read(result.stdout) == {"cpuset.cpus": str(last_cpu), "cpuset.mems": "0"}


def test_waiting_for_a_cpu_is_measured(one_fold, worker, psi):
    result = one_fold.run(worker("burn", 4, 300), limits={"cpu_max": 0.5}, timeout=60)
    assert result.outcome == "exited"
    assert result.usage.pressure.cpu_some_usec > 100_000
    assert result.usage.pressure.memory_full_usec is not None
    assert result.usage.pressure.io_full_usec is not None


def test_what_is_stuck_at_its_memory_limit_is_ended_by_the_stall_guard(fold, worker, psi, slowness, report_figure):
    result = fold.run(worker("hog"), limits={"memory_high": "16M"}, stall_timeout=3, timeout=60 * slowness)
    report_figure("seconds until the stall guard struck", result.duration)
    report_figure(
        "share of that spent waiting for memory", result.usage.pressure.memory_full_usec / 1e6 / result.duration
    )
    assert (result.outcome, result.returncode) == ("oom_killed", -9)
    assert result.events["stall"] is True
    assert result.events["oom_kill"] == 0
    assert 3 <= result.duration < 15 * slowness
    assert result.usage.pressure.memory_full_usec > 2_000_000
    assert result.receipt.emptied


def test_without_pressure_the_stall_guard_does_nothing(one_fold, worker, psi, slowness):
    limits = {"memory_high": "16M", "memory_max": "16M"}
    result = one_fold.run(worker("hold", 12), limits=limits, stall_timeout=0.5, timeout=2 * slowness)
    assert result.outcome == "timed_out"
    assert result.events["stall"] is False


def test_kills_that_race_with_forks_leave_nothing(one_fold, worker, last_cpu, report_figure):
    slowest = 0
    for _ in range(10):
        result = one_fold.run(worker("bomb"), limits={"pids_max": 60}, timeout=0.5)
        assert result.outcome == "timed_out"
        assert result.usage.pids_peak == 60
        assert result.receipt.emptied
        assert result.receipt.removed
        slowest = max(slowest, result.receipt.kill_to_empty_usec)
    report_figure("slowest kill to empty of ten bombs, usec", slowest)
