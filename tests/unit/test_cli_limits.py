"""Limits on the command line: an option of its own and systemd's property are the library's Limits."""

from __future__ import annotations

import pytest

from pinfold.cli.one_run import _arguments
from pinfold.cli.run import run
from pinfold.errors import UsageError
from pinfold.limits import Limits


def asked(*options):
    """The Limits of a command line."""
    return _arguments(run.make_context("run", [*options, "true"]).params)["limits"]


@pytest.mark.parametrize(
    ("options", "properties", "limits"),
    [
        (["--memory", "64M"], ["MemoryMax=64M"], {"memory_max": "64M"}),
        (["--memory=50%"], ["MemoryMax=50%"], {"memory_max": "50%"}),
        (["--memory-high", "1G"], ["MemoryHigh=1G"], {"memory_high": 1 << 30}),
        (["--memory-low", "0"], ["MemoryLow=0"], {"memory_low": 0}),
        (["--swap", "0"], ["MemorySwapMax=0"], {"memory_swap_max": 0}),
        (["--oom-group"], ["OOMPolicy=kill"], {"memory_oom_group": True}),
        (["--no-oom-group"], ["OOMPolicy=continue"], {"memory_oom_group": False}),
        (["--pids", "5"], ["TasksMax=5"], {"pids_max": 5}),
        (["--cpus", "150%"], ["CPUQuota=150%"], {"cpu_max": 1.5}),
        (["--cpus", "0.2"], ["CPUQuota=20%"], {"cpu_max": "20%"}),
        (["--cpus", "20000 50000"], ["CPUQuota=40%", "CPUQuotaPeriodSec=50ms"], {"cpu_max": "20000 50000"}),
        (["--cpu-weight", "7"], ["CPUWeight=7"], {"cpu_weight": 7}),
        (["--cpuset-cpus", "0-3,8"], ["AllowedCPUs=0-3 8"], {"cpuset_cpus": [0, 1, 2, 3, 8]}),
        (["--cpuset-mems", "0"], ["AllowedMemoryNodes=0"], {"cpuset_mems": "0"}),
        (["--io-weight", "7"], ["IOWeight=7"], {"io_weight": 7}),
        (["--io-max", "8:0 rbps=1000 wiops=5", "--io-max", "8:16 wbps=3"],
         ["IOReadBandwidthMax=/dev/block/8:0 1K", "IOWriteIOPSMax=/dev/block/8:0 5",
          "IOWriteBandwidthMax=/dev/block/8:16 3"],
         {"io_max": {"8:0": {"rbps": 1000, "wiops": 5}, "8:16": {"wbps": 3}}}),
        *[(["--rlimit", f"{name}=50:60"], [f"Limit{name.upper()}=50:60"], {name: (50, 60)})
          for name in ("nofile", "nproc", "fsize", "core", "stack", "as")],
        (["--memory", "64M", "--pids", "5", "--cpus", "150%", "--rlimit", "nofile=50", "--rlimit", "core=0"],
         ["MemoryMax=64M", "TasksMax=5", "CPUQuota=150%", "LimitNOFILE=50", "LimitCORE=0"],
         {"memory_max": "64M", "pids_max": 5, "cpu_max": 1.5, "nofile": 50, "core": 0}),
    ],
    ids=str,
)  # fmt: skip
def test_all_spellings_are_the_same_limits(options, properties, limits):
    expected = Limits.of(limits)
    assert asked(*options) == expected
    assert asked(*[word for each in properties for word in ("-p", each)]) == expected


def test_huge_pages_have_an_option_and_no_property():
    assert asked("--hugetlb", "2MB=64M", "--hugetlb", "1GB=0") == Limits(hugetlb={"2MB": "64M", "1GB": 0})


def test_options_and_properties_of_different_limits_are_added():
    assert asked("--memory", "64M", "-p", "TasksMax=5", "--property=CPUWeight=7") == Limits(
        memory_max="64M", pids_max=5, cpu_weight=7
    )


@pytest.mark.parametrize("options", [[], ["--best-effort"], ["-p", "MemoryMax="]], ids=str)
def test_without_a_limit_none_is_asked_for(options):
    assert asked(*options) is None


def test_best_effort_is_for_all_of_them():
    assert asked("--pids", "5", "--best-effort") == Limits(pids_max=5, requirement="best_effort")
    assert asked("--pids", "5").requirement == "required"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--memory", "64M", "-p", "MemoryMax=64M"], "memory_max"),
        (["--pids", "5", "-p", "TasksMax=6"], "pids_max"),
        (["--cpus", "1", "-p", "CPUQuota=50%"], "cpu_max"),
        (["--no-oom-group", "-p", "OOMPolicy=kill"], "memory_oom_group"),
        (["--rlimit", "nofile=5", "-p", "LimitNOFILE=6"], "nofile"),
        (["--io-max", "8:0 rbps=1", "-p", "IOWriteBandwidthMax=/dev/block/8:0 1"], "io_max"),
    ],
    ids=str,
)
def test_a_limit_by_an_option_and_a_property_is_refused(options, field):
    with pytest.raises(UsageError, match=f"^{field} is asked for twice"):
        asked(*options)


def test_a_property_that_unsets_itself_is_no_second_one():
    assert asked("--memory", "64M", "-p", "MemoryMax=1M", "-p", "MemoryMax=") == Limits(memory_max="64M")


def test_a_resource_limit_that_is_given_twice_is_the_last_one_as_with_any_option():
    assert asked("--rlimit", "nofile=5", "--rlimit", "nofile=6") == Limits(nofile=6)
