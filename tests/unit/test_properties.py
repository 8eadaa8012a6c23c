"""systemd's names for limits, read and given to its bus. What systemd 252 made of a text was read from its scopes."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfold.errors import UsageError
from pinfold.limits import Limits
from pinfold.limits.properties import from_properties, to_properties

inf = math.inf

# Texts for `systemd-run --scope -p`, and what 252 on a kernel 6.1 had in the file then.
SEEN = [
    (["MemoryMax=64M"], "memory.max", "67108864"), (["MemoryMax=1.5G"], "memory.max", "1610612736"),
    (["MemoryMax=infinity"], "memory.max", "max"), (["MemoryMax=1 G"], "memory.max", "1073741824"),
    (["MemoryLow=10M"], "memory.low", "10485760"), (["MemoryLow=infinity"], "memory.low", "max"),
    (["MemoryLow=0"], "memory.low", "0"), (["MemorySwapMax=0"], "memory.swap.max", "0"),
    (["MemorySwapMax=10M"], "memory.swap.max", "10485760"), (["TasksMax=5"], "pids.max", "5"),
    (["TasksMax=4194304"], "pids.max", "4194304"), (["TasksMax=infinity"], "pids.max", "max"),
    (["CPUQuota=150%"], "cpu.max", "150000 100000"), (["CPUQuota=0.5%"], "cpu.max", "1000 200000"),
    (["CPUQuota=33.33%"], "cpu.max", "33330 100000"), (["CPUQuota=100000%"], "cpu.max", "100000000 100000"),
    (["CPUQuota=20%", "CPUQuotaPeriodSec=10ms"], "cpu.max", "2000 10000"),
    (["CPUQuota=20%", "CPUQuotaPeriodSec=1ms"], "cpu.max", "1000 5000"),
    (["CPUQuota=20%", "CPUQuotaPeriodSec=1s"], "cpu.max", "200000 1000000"),
    (["CPUQuota=20%", "CPUQuotaPeriodSec="], "cpu.max", "20000 100000"),
    (["CPUQuota=33.33%", "CPUQuotaPeriodSec=3333us"], "cpu.max", "1110 3333"),
    (["CPUWeight=1"], "cpu.weight", "1"), (["CPUWeight=10000"], "cpu.weight", "10000"),
    (["OOMPolicy=kill"], "memory.oom.group", "1"), (["OOMPolicy=continue"], "memory.oom.group", "0"),
]  # fmt: skip


@pytest.mark.parametrize(("texts", "file", "text"), SEEN, ids=repr)
def test_a_property_becomes_the_write_that_systemd_252_did(texts, file, text):
    writes = {setting.file: setting.text for setting in Limits(**from_properties(texts)).settings()}
    assert writes[file] == text


@pytest.mark.parametrize(
    ("texts", "fields"),
    [
        ([], {}), (["MemoryMax=64M", "MemoryMax=65M"], {"memory_max": 65 << 20}), (["MemoryMax=64M", "MemoryMax="], {}),
        (["MemoryMax=", "MemoryMax=1M"], {"memory_max": 1 << 20}), (["MemoryHigh=infinity"], {"memory_high": inf}),
        (["MemoryMax=100%"], {"memory_max": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")}),
        (["CPUQuota=150%", "CPUQuota="], {}), (["CPUQuotaPeriodSec=10ms"], {"cpu_period_usec": 10000}),
        (["AllowedCPUs=0-1 ,3"], {"cpuset_cpus": "0-1,3"}), (["AllowedMemoryNodes=0 1"], {"cpuset_mems": "0-1"}),
        (["IOWeight=200"], {"io_weight": 200}),
        (["IOReadBandwidthMax=8:0 10M"], {"io_max": {"8:0": {"rbps": 10_000_000}}}),
        (["IOWriteBandwidthMax=/dev/block/8:0 1.5K"], {"io_max": {"8:0": {"wbps": 1500}}}),
        (["IOReadIOPSMax=8:0 1K", "IOWriteIOPSMax=8:0 infinity", "IOReadIOPSMax=8:16 7", "IOReadIOPSMax=8:16 8"],
         {"io_max": {"8:0": {"riops": 1000, "wiops": inf}, "8:16": {"riops": 8}}}),
        (["IOReadIOPSMax=8:0 1", "IOWriteIOPSMax=8:0 2", "IOReadIOPSMax="], {"io_max": {"8:0": {"wiops": 2}}}),
        (["IOReadIOPSMax=8:0 1", "IOReadIOPSMax="], {}),
        (["LimitNOFILE=1024:4096"], {"nofile": (1024, 4096)}), (["LimitNPROC=infinity"], {"nproc": inf}),
        (["LimitFSIZE=1K"], {"fsize": 1024}), (["LimitCORE=0"], {"core": 0}), (["LimitSTACK=8M"], {"stack": 8 << 20}),
        (["LimitAS=4G:16G"], {"as_": (4 << 30, 16 << 30)}), (["OOMPolicy=kill", "OOMPolicy="], {}),
    ],
    ids=repr,
)  # fmt: skip
def test_properties_are_fields_and_the_last_wins(texts, fields):
    assert from_properties(texts) == fields


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("MemoryMax", "expected NAME=VALUE"), ("", "expected NAME=VALUE"), ("Bogus=1", "'Bogus' is unknown; known are"),
        ("memory_max=1", "'memory_max' is unknown"), ("MemroyMax=1", r"unknown \(did you mean MemoryMax\?\)"),
        ("IOReadIOPSmax=1", r"\(did you mean IOReadIOPSMax\?\)"),
        *[(f"{name}={value}", f"^{name}") for name, values in {
            "MemoryMax": ("64MB", "64k", "0", "0%", "101%", "12.555%", "max", "lots", "-1"), "MemoryHigh": ("0", "max"),
            "TasksMax": ("0", "0%", "1K", "max", "5000000", "-1"),
            "CPUQuota": ("1.5", "%", "-5%", "0%", "infinity", "0.05%", "1.234%"),
            "CPUQuotaPeriodSec": ("10s", "0", "0.5ms", "infinity", "x"), "CPUWeight": ("0", "10001", "x", "idle"),
            "IOWeight": ("0", "10001", "idle"), "AllowedCPUs": ("3-1", "a", "0-"), "OOMPolicy": ("stop", "x"),
            "IOReadBandwidthMax": ("/dev/null 1M", "8:0", "8:0 0", "8:0 10MB", "8:0 x", "8:0 .5M", "8:0 1.", "8:0 -1",
                                   "8:0 ²", "/nowhere 1M", "8:0 9999999999E", "8:0 K"),
            "LimitNOFILE": ("1K", "2:1", "x"), "LimitAS": ("1KB", "2G:1G"),
        }.items() for value in values],
    ],
)  # fmt: skip
def test_a_property_that_is_none_is_refused_by_name(text, said):
    with pytest.raises(UsageError, match=said):
        Limits(**from_properties([text]))


def test_what_is_refused_on_purpose_says_why():
    with pytest.raises(UsageError, match=r"cpu\.idle is not supported"):
        from_properties(["CPUWeight=idle"])
    with pytest.raises(UsageError, match="has systemd stop the unit"):
        from_properties(["OOMPolicy=stop"])


def test_properties_for_the_bus_are_what_was_asked_for():
    limits = Limits(
        memory_max="64M", memory_high="max", memory_low=0, memory_swap_max=5, pids_max="max", cpu_max=1.5,
        cpu_period_usec=50000, cpu_weight=5, io_weight=6, cpuset_cpus="0-3,8", cpuset_mems="0", hugetlb="2MB=1",
        io_max=["8:0 rbps=1M wbps=max", "8:16 rbps=7 wiops=3"], nofile=5, memory_oom_group=True,
    )  # fmt: skip
    assert dict(to_properties(limits)) == {
        "MemoryMax": ("t", 64 << 20), "MemoryHigh": ("t", 2**64 - 1), "MemoryLow": ("t", 0), "MemorySwapMax": ("t", 5),
        "TasksMax": ("t", 2**64 - 1), "CPUQuotaPerSecUSec": ("t", 1_500_000), "CPUQuotaPeriodUSec": ("t", 50000),
        "CPUWeight": ("t", 5), "IOWeight": ("t", 6), "AllowedCPUs": ("ay", b"\x0f\x01"),
        "AllowedMemoryNodes": ("ay", b"\x01"),
        "IOReadBandwidthMax": ("a(st)", [("/dev/block/8:0", 1 << 20), ("/dev/block/8:16", 7)]),
        "IOWriteBandwidthMax": ("a(st)", [("/dev/block/8:0", 2**64 - 1)]),
        "IOWriteIOPSMax": ("a(st)", [("/dev/block/8:16", 3)]),
    }  # fmt: skip
    assert to_properties(Limits(nofile=5)) == []
    assert to_properties(Limits(cpu_max="max")) == [("CPUQuotaPerSecUSec", ("t", 2**64 - 1))]


@given(st.sets(st.integers(0, 200), min_size=1))
def test_a_bitmap_has_a_bit_for_each_cpu_and_no_byte_too_many(numbers):
    [(_, (_, bitmap))] = to_properties(Limits(cpuset_cpus=numbers))
    assert {number for number in range(len(bitmap) * 8) if bitmap[number // 8] >> number % 8 & 1} == numbers
    assert bitmap[-1]


@given(st.integers(10, 10**7))
def test_a_quota_is_the_same_on_the_bus_and_in_the_file(hundredths):
    fields = from_properties([f"CPUQuota={hundredths // 100}.{hundredths % 100:02}%"])
    [(_, (_, per_second))] = to_properties(Limits(**fields))
    assert per_second == hundredths * 100
