"""linux.resources of an OCI runtime configuration, to limits and back."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfold.errors import UsageError
from pinfold.limits import Limits

inf = math.inf
THROTTLE = {"major": 8, "minor": 0, "rate": 5}


@pytest.mark.parametrize(
    ("resources", "fields"),
    [
        ({}, {}), ({"memory": None, "devices": [], "network": {}, "rdma": None, "cpu": {"cpus": "", "mems": ""}}, {}),
        ({"memory": {"limit": 1 << 20}}, {"memory_max": 1 << 20}), ({"memory": {"limit": -1}}, {"memory_max": inf}),
        ({"memory": {"reservation": 5}}, {"memory_low": 5}), ({"memory": {"reservation": -1}}, {"memory_low": inf}),
        ({"memory": {"limit": 1 << 20, "swap": 3 << 20}}, {"memory_max": 1 << 20, "memory_swap_max": 2 << 20}),
        ({"memory": {"limit": 1 << 20, "swap": 1 << 20}}, {"memory_max": 1 << 20, "memory_swap_max": 0}),
        ({"memory": {"swap": -1}}, {"memory_swap_max": inf}),
        ({"memory": {"useHierarchy": True, "checkBeforeUpdate": False, "disableOOMKiller": False, "kernel": None}}, {}),
        # 1024 shares are 39, and 2 and 262144 the ends, by the linear formula
        *[({"cpu": {"shares": shares}}, {"cpu_weight": weight}) for shares, weight in
          [(2, 1), (1024, 39), (2000, 77), (262144, 10000), (10**6, 10000)]],
        ({"cpu": {"quota": 50000}}, {"cpu_max": 0.5}), ({"cpu": {"quota": -1}}, {"cpu_max": inf}),
        ({"cpu": {"quota": 50000, "period": 25000}}, {"cpu_max": 2.0, "cpu_period_usec": 25000}),
        ({"cpu": {"period": 25000}}, {"cpu_max": inf, "cpu_period_usec": 25000}),
        ({"cpu": {"cpus": "0-2,1", "mems": "0", "burst": 0, "idle": 0}}, {"cpuset_cpus": "0-2", "cpuset_mems": "0"}),
        ({"pids": {"limit": 5}}, {"pids_max": 5}), ({"pids": {"limit": -1}}, {"pids_max": inf}),
        *[({"blockIO": {"weight": old}}, {"io_weight": new}) for old, new in [(10, 1), (500, 4950), (1000, 10000)]],
        ({"blockIO": {"throttleReadBpsDevice": [THROTTLE], "throttleWriteBpsDevice": [{**THROTTLE, "rate": 6}],
                      "throttleReadIOPSDevice": [{**THROTTLE, "rate": 0}],
                      "throttleWriteIOPSDevice": [{**THROTTLE, "minor": 16}]}},
         {"io_max": {"8:0": {"rbps": 5, "wbps": 6}, "8:16": {"wiops": 5}}}),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}, {"hugetlb": {"2MB": 0}}),
        ({"unified": {"memory.high": "max", "memory.oom.group": "1", "io.weight": "default 7", "pids.max": "9",
                      "io.max": "8:0 rbps=5 wiops=max\n8:16 wbps=1", "hugetlb.2MB.max": "4096"}},
         {"memory_high": inf, "memory_oom_group": True, "io_weight": 7, "pids_max": 9, "hugetlb": {"2MB": 4096},
          "io_max": ["8:0 rbps=5 wiops=max", "8:16 wbps=1"]}),
        ({"unified": {"cpu.max": "20000"}}, {"cpu_max": "20000 100000"}), ({"unified": {"cpu.max": "max"}},
         {"cpu_max": "max 100000"}), ({"unified": {"cpu.max": "20000 50000"}}, {"cpu_max": "20000 50000"}),
        ({"cpu": {"quota": 1000, "period": 5000}, "unified": {"cpu.max": "2000 4000"}}, {"cpu_max": "2000 4000"}),
        ({"memory": {"limit": 1 << 20}, "unified": {"memory.max": "2M"}}, {"memory_max": 2 << 20}),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 1}], "unified": {"hugetlb.1GB.max": "max"}},
         {"hugetlb": {"2MB": 1, "1GB": inf}}),
    ],
    ids=lambda each: repr(each)[:60],
)  # fmt: skip
def test_resources_become_limits(resources, fields):
    assert Limits.from_oci(resources) == Limits(**fields)


@pytest.mark.parametrize(
    ("resources", "named"),
    [
        *[({name: {"x": 1}}, f"{name} is no limit of ours") for name in ("network", "rdma", "bogus")],
        ({"devices": [{"allow": False}]}, "devices is no limit of ours"),
        *[({"memory": {name: 5}}, f"memory.{name} is no limit of ours") for name in
          ("kernel", "kernelTCP", "swappiness", "useHierarchy", "bogus")],
        ({"memory": {"disableOOMKiller": True}}, "memory.disableOOMKiller"),
        *[({"cpu": {name: 5}}, f"cpu.{name} is no limit of ours") for name in
          ("realtimeRuntime", "realtimePeriod", "burst", "idle")],
        ({"cpu": {"idle": False}}, "cpu.idle"), ({"blockIO": {"leafWeight": 5}}, "blockIO.leafWeight"),
        ({"blockIO": {"weightDevice": [1]}}, "blockIO.weightDevice"), ({"memory": 5}, "memory is 5"), (5, "it is 5"),
        *[({"memory": {"limit": value}}, "memory.limit") for value in (-2, "64M", True, 1.5, 2**63)],
        ({"memory": {"limit": 0}}, "memory_max 0"),
        ({"memory": {"swap": 5}}, "needs a memory.limit"), ({"memory": {"swap": 5, "limit": -1}}, "needs a memory"),
        ({"memory": {"swap": 1 << 20, "limit": 2 << 20}}, "less than memory.limit"),
        ({"memory": {"swap": -1, "limit": "x"}}, "memory.limit"), ({"cpu": {"shares": 1}}, "cpu.shares"),
        *[({"cpu": {"quota": value}}, "cpu.quota") for value in (0, 999, -2, "1", True)],
        *[({"cpu": {"period": value}}, "cpu.period") for value in (0, 999, 1000001, -1)],
        ({"cpu": {"cpus": "3-1"}}, "cpu.cpus"), ({"cpu": {"mems": 5}}, "cpu.mems"),
        *[({"pids": {"limit": value}}, "pids.limit") for value in (0, -2, "5", True)],
        *[({"blockIO": {"weight": value}}, "blockIO.weight") for value in (9, 1001, True)],
        *[({"blockIO": {"throttleReadBpsDevice": value}}, "blockIO.throttleReadBpsDevice") for value in
          (5, [5], [{"major": 8}], [{**THROTTLE, "rate": -1}], [{**THROTTLE, "bogus": 1}])],
        ({"hugepageLimits": {"2MB": 1}}, "hugepageLimits"), ({"hugepageLimits": [{"limit": 1}]}, "pageSize"),
        ({"hugepageLimits": [{"pageSize": "2MB"}]}, "hugepageLimits.limit"),
        ({"unified": {"memory.min": "5"}}, "unified memory.min is no limit of ours"),
        ({"unified": {"hugetlb.2.max": "5"}}, "unified hugetlb.2.max"), ({"unified": {"pids.max": 5}}, "pids.max 5"),
        ({"unified": {"memory.max": "50%"}}, "takes no percentage"), ({"unified": {"cpu.max": "1.5"}}, "cpu_max"),
    ],
    ids=lambda each: repr(each)[:60],
)  # fmt: skip
def test_what_is_no_limit_of_ours_is_refused_by_its_key(resources, named):
    with pytest.raises(UsageError, match=named):
        Limits.from_oci(resources)


def test_limits_become_resources():
    limits = Limits(
        memory_max="1M", memory_high="max", memory_low=5, memory_swap_max=7, memory_oom_group=False, pids_max="max",
        cpu_max=1.5, cpu_weight=5, cpuset_cpus="0-3", io_max="8:0 rbps=5 wbps=max", io_weight=6,
        hugetlb=["2MB=5", "1GB=max"], nofile=5,
    )  # fmt: skip
    assert limits.to_oci() == {
        "memory": {"limit": 1 << 20, "reservation": 5, "swap": (1 << 20) + 7}, "pids": {"limit": -1},
        "cpu": {"quota": 150000, "cpus": "0-3"}, "hugepageLimits": [{"pageSize": "2MB", "limit": 5}],
        "blockIO": {"throttleReadBpsDevice": [THROTTLE]},
        "unified": {"memory.high": "max", "memory.oom.group": "0", "cpu.weight": "5", "io.weight": "default 6",
                    "hugetlb.1GB.max": "max"},
    }  # fmt: skip
    assert Limits().to_oci() == Limits(nofile=5).to_oci() == {}
    assert Limits(memory_swap_max=7).to_oci() == {"unified": {"memory.swap.max": "7"}}
    assert Limits(cpu_max=0.005).to_oci() == {"cpu": {"quota": 1000, "period": 200000}}
    assert Limits(cpu_max="max 5000").to_oci() == {"cpu": {"quota": -1, "period": 5000}}


def amount(least=0):
    return st.none() | st.just(inf) | st.integers(least, 2**61)


@given(
    st.builds(
        Limits,
        memory_max=amount(1 << 16),
        memory_high=amount(1 << 16),
        memory_low=amount(),
        memory_swap_max=amount(),
        memory_oom_group=st.none() | st.booleans(),
        pids_max=st.none() | st.just(inf) | st.integers(1, 4194304),
        cpu_max=st.none() | st.just(inf) | st.floats(0.001, 1000) | st.just("2000 3000"),
        cpu_weight=st.none() | st.integers(1, 10000),
        cpuset_cpus=st.none() | st.sets(st.integers(0, 100), min_size=1),
        io_weight=st.none() | st.integers(1, 10000),
        io_max=st.none()
        | st.dictionaries(
            st.sampled_from(["8:0", "254:0"]),
            st.dictionaries(st.sampled_from(["rbps", "wbps", "riops", "wiops"]), st.integers(1, 2**40), min_size=1),
        ),
        hugetlb=st.none() | st.dictionaries(st.sampled_from(["2MB", "1GB"]), st.just(inf) | st.integers(0, 2**61)),
    )
)
def test_limits_come_back_from_their_resources_as_the_same_writes(limits):
    resources = json.loads(json.dumps(limits.to_oci()))
    assert Limits.from_oci(resources).settings() == limits.settings()
