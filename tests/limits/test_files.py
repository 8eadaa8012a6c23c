"""Limits as the kernel has them: the files of a command's own cgroup, read by the command."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pinfold import CgroupError, Fold, Limits, Unsupported
from pinfold.cgroup import delegation

CLI = Path(sys.executable).with_name("pinfold")
MIB = 1 << 20
NAMES = ("memory.max", "memory.high", "memory.low", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max",
         "cpu.weight", "io.weight", "cpuset.cpus")  # fmt: skip
UNTOUCHED = {
    "memory.max": "max", "memory.high": "max", "memory.low": "0", "memory.oom.group": "0", "pids.max": "max",
    "cpu.max": "max 100000", "cpu.weight": "100",
}  # fmt: skip

# By the limit: what is asked for, and what the files say then.
EACH = {
    "memory_max": ("64M", {"memory.max": str(64 * MIB), "memory.oom.group": "1"}),
    "memory_high": (10_000_000, {"memory.high": "9998336"}),  # whole pages
    "memory_low": ("8M", {"memory.low": str(8 * MIB)}),
    "memory_oom_group": (True, {"memory.oom.group": "1"}),
    "pids_max": (77, {"pids.max": "77"}),
    "cpu_max": (1.5, {"cpu.max": "150000 100000"}),
    "cpu_weight": (250, {"cpu.weight": "250"}),
}


@pytest.mark.parametrize("limit", EACH)
def test_each_limit_is_in_its_file_and_in_no_other(one_fold, files, limit):
    value, expected = EACH[limit]
    result = one_fold.run(files(*UNTOUCHED), limits={limit: value}, capture_output=True)
    assert files.read(result.stdout) == {**UNTOUCHED, **expected}


def test_what_is_said_to_be_applied_is_what_the_files_say(every_fold, files):
    asked = {limit: value for limit, (value, _) in EACH.items()}
    result = every_fold.run(files(*UNTOUCHED), limits=asked, capture_output=True)
    expected = {name: text for _, texts in EACH.values() for name, text in texts.items()}
    assert files.read(result.stdout) == {**UNTOUCHED, **expected}
    assert result.limits["applied"] == {
        "memory_max": 64 * MIB, "memory_high": 9_998_336, "memory_low": 8 * MIB, "memory_oom_group": True,
        "pids_max": 77, "cpu_max": 1.5, "cpu_weight": 250,
    }  # fmt: skip
    assert result.limits["missing"] == {}


def test_a_run_without_limits_after_one_with_them_has_none(every_fold, files):
    every_fold.run(["true"], limits={limit: value for limit, (value, _) in EACH.items()})
    assert files.read(every_fold.run(files(*UNTOUCHED), capture_output=True).stdout) == UNTOUCHED


# The same limits: for Python, as options of the command line, by systemd's names.
SPELLINGS = {
    "whole numbers": (
        {"memory_max": 64 * MIB, "memory_high": 48 * MIB, "memory_low": 8 * MIB, "pids_max": 33, "cpu_max": 1.5,
         "cpu_weight": 250},
        ["--memory=64M", "--memory-high=48M", "--memory-low=8M", "--pids=33", "--cpus=1.5", "--cpu-weight=250"],
        ["MemoryMax=64M", "MemoryHigh=48M", "MemoryLow=8M", "TasksMax=33", "CPUQuota=150%", "CPUWeight=250"],
    ),
    "shares of the machine": (
        {"memory_max": "50%", "memory_high": "33.33%", "pids_max": "10%", "cpu_max": "12.5%"},
        ["--memory=50%", "--memory-high=33.33%", "--pids=10%", "--cpus=12.5%"],
        ["MemoryMax=50%", "MemoryHigh=33.33%", "TasksMax=10%", "CPUQuota=12.5%"],
    ),
    "odd numbers": (
        {"memory_max": 12_345_678, "cpu_max": 0.29, "cpu_period_usec": 10_000, "cpu_weight": 1},
        ["--memory=12345678", "--cpus=2900 10000", "--cpu-weight=1"],
        ["MemoryMax=12345678", "CPUQuota=29%", "CPUQuotaPeriodSec=10ms", "CPUWeight=1"],
    ),
    "no limits": (
        {"memory_max": "max", "memory_high": "max", "pids_max": "max", "cpu_max": "max", "cpu_weight": 10_000},
        ["--memory=max", "--memory-high=max", "--pids=max", "--cpus=max", "--cpu-weight=10000"],
        ["MemoryMax=infinity", "MemoryHigh=infinity", "TasksMax=infinity", "CPUQuota=", "CPUWeight=10000"],
    ),
}  # fmt: skip
SWAP = ({"memory_swap_max": 0}, ["--swap=0"], ["MemorySwapMax=0"])


@pytest.mark.parametrize("case", SPELLINGS)
def test_all_spellings_lead_to_the_files_that_systemd_run_makes(one_fold, files, case, slowness, mount_point):
    limits, options, properties = SPELLINGS[case]
    plain = files.read(one_fold.run(files(*NAMES), capture_output=True).stdout)
    if "memory.swap.max" in plain:
        limits, options, properties = {**limits, **SWAP[0]}, options + SWAP[1], properties + SWAP[2]

    def said(*argv: str) -> dict[str, str]:
        ended = subprocess.run([*argv, *files(*NAMES)], capture_output=True, timeout=15 * slowness, check=False)
        assert ended.returncode == 0, ended.stderr
        return files.read(ended.stdout)

    asked = [f"-p{each}" for each in properties]
    result = one_fold.run(files(*NAMES), limits=limits, capture_output=True)
    from_python = files.read(result.stdout)
    assert from_python != plain
    assert said(CLI, "run", *options, "--") == from_python
    assert said(CLI, "run", *(each for each in asked if each != "-pCPUQuota="), "--") == from_python
    if not delegation.systemd_is_running():
        return
    user = ["--user"] if os.geteuid() else []
    theirs = said("systemd-run", *user, "--scope", "--quiet", *asked, "--")
    # OOMPolicy= of scopes came after 252; ours is the group's by default.
    ours = {**from_python, "memory.oom.group": theirs["memory.oom.group"]}
    if not any(each.startswith("TasksMax") for each in properties):
        theirs["pids.max"] = ours["pids.max"]  # theirs is DefaultTasksMax=
    assert ours == theirs


RLIMITS = {
    "nofile": ("64:128", "Max open files", "64", "128"),
    "nproc": (500, "Max processes", "500", "500"),
    "fsize": ("1M", "Max file size", str(MIB), str(MIB)),
    "core": (0, "Max core file size", "0", "0"),
    "stack": ("1M", "Max stack size", str(MIB), str(MIB)),
    "as": ("512M", "Max address space", str(512 * MIB), str(512 * MIB)),
}


def test_resource_limits_are_the_command_s_as_asked_and_as_said(one_fold):
    limits = Limits.of({name: value for name, (value, *_) in RLIMITS.items()})
    result = one_fold.run(["cat", "/proc/self/limits"], limits=limits, capture_output=True, text=True)
    for _, words, soft, hard in RLIMITS.values():
        line = next(line for line in result.stdout.splitlines() if line.startswith(words))
        assert line.removeprefix(words).split()[:2] == [soft, hard], line
    assert result.limits["applied"] == {
        "nofile": [64, 128], "nproc": 500, "fsize": MIB, "core": 0, "stack": MIB, "as": 512 * MIB,
    }  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run a command as another user")
def test_limits_are_another_user_s_too(every_fold, files):
    argv = files(*UNTOUCHED)
    argv[2] = f"id -u >&2; ulimit -u >&2; {argv[2]}"
    limits = {"memory_max": "64M", "pids_max": 9, "cpu_max": 0.5, "nproc": 50}
    policy = {"user": 65534, "group": 65534}
    result = every_fold.run(argv, limits=limits, capture_output=True, **policy)
    found = files.read(result.stdout)
    assert {name: found[name] for name in ("memory.max", "pids.max", "cpu.max")} == {
        "memory.max": str(64 * MIB), "pids.max": "9", "cpu.max": "50000 100000",
    }  # fmt: skip
    assert result.stderr.split()[0] == b"65534"
    assert result.limits["applied"]["nproc"] == 50


@pytest.fixture
def no_cpuset(controllers):
    if "cpuset" in controllers:
        pytest.skip("needs a host that does not give the controller cpuset")


def test_a_best_effort_runs_without_a_controller_and_says_so(every_fold, no_cpuset):
    limits = {"cpuset_cpus": "0", "pids_max": 50, "requirement": "best_effort"}
    result = every_fold.run(["true"], limits=limits)
    assert result.ok
    assert result.limits["applied"] == {"pids_max": 50}
    assert list(result.limits["missing"]) == ["cpuset_cpus"]
    assert "controller cpuset" in result.limits["missing"]["cpuset_cpus"]


def runs_of(fold: Fold, mount_point: str) -> list[str]:
    base = Path(mount_point + fold.path)
    return [path.name for path in base.rglob("run-*")] if base.is_dir() else []


@pytest.mark.parametrize("kind", ["cgroupfs", "systemd", "scope-per-run"])
def test_what_is_required_and_missing_is_refused_by_name_and_leaves_nothing(kind, opened, no_cpuset, mount_point):
    fold = opened(kind, spare=False)
    with pytest.raises(Unsupported, match="controller cpuset") as caught:
        fold.run(["true"], limits={"cpuset_cpus": "0", "pids_max": 50})
    assert caught.value.feature == "limit cpuset_cpus"
    assert caught.value.fix
    assert runs_of(fold, mount_point) == []
    assert fold.run(["true"]).ok


@pytest.mark.parametrize("kind", ["cgroupfs", "systemd"])
def test_a_refusal_of_the_kernel_is_one_error_and_leaves_nothing(kind, opened, controllers, mount_point):
    if "io" not in controllers:
        pytest.skip("needs the controller io")
    fold = opened(kind, spare=False)
    with pytest.raises(CgroupError, match=r"io\.max=4094:77 rbps=1048576: No such device") as caught:
        fold.run(["true"], limits={"io_max": {"4094:77": {"rbps": "1M"}}, "pids_max": 50})
    assert caught.value.errno == errno.ENODEV
    assert runs_of(fold, mount_point) == []
    assert fold.run(["true"]).ok


def test_the_command_line_says_which_limits_are_in_force(controllers, tmp_path, slowness):
    file = tmp_path / "result.json"
    argv = [CLI, "run", "-v", "--result", file, "--memory=64M", "--pids=9", "--", "true"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=15 * slowness, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "limits in force: memory_max 67108864, memory_oom_group True, pids_max 9" in ended.stderr
    assert json.loads(file.read_text())["limits"]["asked"] == {"memory_max": 64 * MIB, "pids_max": 9}
