"""Settings: what is written to which cgroup file, what a file says, and when the kernel took a write.

Texts of files marked 6.1 and 6.18 were read from kernels 6.1.176 and 6.18.44. Those of 5.15, 6.6 and 6.12 are derived
from their cgroup-v2.rst and sources, not read.
"""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfold.limits import Limits
from pinfold.limits.cgroup_files import Setting, cpu_max_text

PAGE = os.sysconf("SC_PAGESIZE")
MOST_PAGES = (2**63 - 1) // PAGE


def writes(**limits):
    return [(setting.file, setting.text) for setting in Limits(**limits).settings()]


def one(**limits):
    return Limits(**limits).settings()[0]


def test_each_limit_is_a_write_to_the_file_of_its_name():
    limits = Limits(
        memory_max="64M", memory_high="max", memory_low=0, memory_swap_max="1G", pids_max=5, cpu_max=0.2, cpu_weight=50,
        cpuset_cpus="0-3,8", cpuset_mems="0", io_weight=200, io_max=["8:0 rbps=1M wiops=max", "8:16 wbps=1"],
        hugetlb=["2MB=64M", "1GB=max"], memory_oom_group=False, nofile=5,
    )  # fmt: skip
    assert limits.settings() == [
        ("memory_low", "memory", "memory.low", "0"), ("memory_high", "memory", "memory.high", "max"),
        ("memory_max", "memory", "memory.max", "67108864"),
        ("memory_swap_max", "memory", "memory.swap.max", "1073741824"),
        ("memory_oom_group", "memory", "memory.oom.group", "0"), ("pids_max", "pids", "pids.max", "5"),
        ("cpu_weight", "cpu", "cpu.weight", "50"), ("cpu_max", "cpu", "cpu.max", "20000 100000"),
        ("cpuset_mems", "cpuset", "cpuset.mems", "0"), ("cpuset_cpus", "cpuset", "cpuset.cpus", "0-3,8"),
        ("io_weight", "io", "io.weight", "default 200"), ("io_max", "io", "io.max", "8:0 rbps=1048576 wiops=max"),
        ("io_max", "io", "io.max", "8:16 wbps=1"), ("hugetlb", "hugetlb", "hugetlb.2MB.max", "67108864"),
        ("hugetlb", "hugetlb", "hugetlb.1GB.max", "max"),
    ]  # fmt: skip
    assert Limits(nofile=5).settings() == []


def test_a_ceiling_on_memory_brings_the_kill_of_the_whole_group_along():
    assert writes(memory_max="64M") == [("memory.max", "67108864"), ("memory.oom.group", "1")]
    assert writes(memory_max="64M", memory_oom_group=False)[1:] == [("memory.oom.group", "0")]
    assert writes(memory_max="max") == [("memory.max", "max")]
    assert writes(memory_high="64M") == [("memory.high", "67108864")]
    assert writes(memory_oom_group=True) == [("memory.oom.group", "1")]


# Read from cpu.max of scopes that systemd 252 made with CPUQuota= and CPUQuotaPeriodSec=, on 6.1.
@pytest.mark.parametrize(
    ("cpus", "period", "text"),
    [
        (1.5, None, "150000 100000"), (0.2, None, "20000 100000"), (0.01, None, "1000 100000"),
        (0.005, None, "1000 200000"), (0.001, None, "1000 1000000"), (0.3333, None, "33330 100000"),
        (1000, None, "100000000 100000"), (0.2, 10000, "2000 10000"), (0.2, 1000, "1000 5000"),
        (0.2, 1000000, "200000 1000000"), (0.3333, 3333, "1110 3333"), (0.003, 1000, "1000 333333"),
        (0.007, None, "1000 142857"), (0.0033, None, "1000 303030"),
    ],
)  # fmt: skip
def test_a_quota_is_written_as_systemd_252_wrote_it(cpus, period, text):
    assert cpu_max_text(cpus, period) == text
    assert writes(cpu_max=cpus, cpu_period_usec=period) == [("cpu.max", text)]


def test_no_quota_keeps_a_period():
    assert writes(cpu_max="max") == [("cpu.max", "max 100000")]
    assert writes(cpu_max="max 5000") == [("cpu.max", "max 5000")]


@given(st.integers(1000, 10**6), st.integers(1000, 10**8))
def test_the_kernels_own_text_for_a_quota_is_written_back_as_it_was(period, quota):
    assert writes(cpu_max=f"{quota} {period}") == [("cpu.max", f"{quota} {period}")]


IO_MAX = "8:0 rbps=1048576 wbps=max riops=max wiops=120\n8:16 rbps=2097152 wbps=max riops=max wiops=max\n"  # derived

READINGS = [
    *[(one(**{name: "64M"}), text, value) for name in ("memory_max", "memory_high", "memory_low", "memory_swap_max")
      for text, value in [("67108864\n", 67108864), ("max\n", "max"), ("0\n", 0), ("", None), ("lots\n", None),
                          ("-1\n", None), ("1.5\n", None), ("1 2\n", None)]],
    *[(one(memory_oom_group=True), text, value) for text, value in
      [("1\n", True), ("0\n", False), ("", None), ("2\n", None)]],
    *[(one(pids_max=5), text, value) for text, value in [("2383\n", 2383), ("max\n", "max"), ("", None)]],
    *[(one(cpu_max=1), text, value) for text, value in
      [("20000 100000\n", 0.2), ("150000 100000\n", 1.5), ("max 100000\n", "max"), ("max\n", None), ("", None),
       ("max 0\n", None), ("x 100000\n", None), ("1 2 3\n", None)]],
    # "0" is what 6.1 says while cpu.idle is 1
    *[(one(cpu_weight=1), text, value) for text, value in [("100\n", 100), ("0\n", 0), ("", None), ("idle\n", None)]],
    *[(one(cpuset_cpus="0"), text, value) for text, value in
      [("0-3,8\n", "0-3,8"), ("0\n", "0"), ("\n", ""), ("3-1\n", None), ("all\n", None)]],
    *[(one(io_weight=1), text, value) for text, value in
      [("default 100\n", 100), ("default 100\n8:16 200\n8:0 50\n", 100), ("8:16 200\n", None), ("", None),
       ("default x\n", None)]],
    *[(one(io_max="8:0 rbps=1"), text, value) for text, value in
      [(IO_MAX, {"8:0": {"rbps": 1048576, "wbps": "max", "riops": "max", "wiops": 120}}), ("", None), ("8:0\n", None),
       ("8:01 rbps=1\n18:0 rbps=2\n", None), ("8:0 rbps=lots\n", None), ("\n", None)]],
    *[(one(hugetlb="2MB=1"), text, value) for text, value in
      [("67108864\n", {"2MB": 67108864}), ("max\n", {"2MB": "max"}), ("", None)]],
]  # fmt: skip


@pytest.mark.parametrize(("setting", "text", "value"), READINGS, ids=lambda each: repr(each)[:40])
def test_a_file_is_read_in_the_units_of_asked(setting, text, value):
    found = setting.read(text)
    assert found == value
    assert type(found) is type(value)


# What was written, what the file said after that, and the kernel it is from.
TAKEN = [
    *[(one(**{name: written}), text, "6.1") for name in ("memory_low", "memory_swap_max")
      for written, text in [(4097, "4096\n"), (0, "0\n"), (100, "0\n"), ("max", "max\n")]],
    *[(one(**{name: written}), text, "6.1") for name in ("memory_max", "memory_high")
      for written, text in [(4097, "4096\n"), ("64M", "67108864\n"), ("max", "max\n"), (2**63 - 1, "max\n"),
                            (9223372036854771712, "max\n"), (9223372036854771711, "9223372036854767616\n"),
                            (9223372036854767616, "9223372036854767616\n")]],
    (one(memory_oom_group=True), "1\n", "6.1"), (one(memory_oom_group=False), "0\n", "6.1"),
    (one(pids_max=1), "1\n", "6.1"), (one(pids_max="max"), "max\n", "6.1"), (one(pids_max=4194304), "4194304\n", "6.1"),
    (one(cpu_max=0.2), "20000 100000\n", "6.1"), (one(cpu_max="max 5000"), "max 5000\n", "6.1"),
    (one(cpu_weight=10000), "10000\n", "6.1"), (one(cpu_weight=1), "1\n", "6.1"),
    *[(one(hugetlb={"2MB": written}), text, "6.18") for written, text in
      [(67108864, "67108864\n"), (3145728, "2097152\n"), (100, "0\n"), ("max", "max\n"), (2**63 - 1, "max\n"),
       (9223372036852678656, "max\n"), (9223372036850581503, "9223372036848484352\n")]],
    *[(one(cpuset_cpus="0-3,8"), text, "5.15, 6.6, 6.12 derived") for text in ("0-3,8\n", "0,1-3,8\n")],
    *[(one(io_weight=200), text, "5.15, 6.6, 6.12 derived") for text in ("default 200\n", "default 200\n8:0 5\n")],
    (one(io_max="8:0 rbps=1M wiops=120"), IO_MAX, "5.15, 6.6, 6.12 derived"),
    (one(io_max="8:0 rbps=1M wbps=max"), IO_MAX, "5.15, 6.6, 6.12 derived"),
    (one(io_max="8:32 rbps=max"), IO_MAX, "5.15, 6.6, 6.12 derived"), (one(io_max="8:0 riops=max"), "", "derived"),
    (one(io_max={"8:0": {"riops": 2**40}}), IO_MAX, "5.15, 6.6, 6.12 derived"),
    (one(io_max={"8:0": {"riops": 2**32 - 1, "wiops": 2**40}}), "", "derived: all are max, so the line is left out"),
]  # fmt: skip
NOT_TAKEN = [
    *[(one(memory_max="64M"), text) for text in ("max\n", "67104768\n", "67112960\n", "0\n", "", "x\n")],
    (one(memory_max="max"), "67108864\n"), (one(memory_low=4097), "4097\n"), (one(memory_max=2**63 - 1), "4096\n"),
    (one(memory_oom_group=True), "0\n"), (one(memory_oom_group=True), ""), (one(pids_max=5), "6\n"),
    (one(pids_max=5), "max\n"), (one(cpu_max=0.2), "max 100000\n"), (one(cpu_max=0.2), "10000 50000\n"),
    (one(cpu_weight=5), "100\n"), (one(cpuset_cpus="0-1"), "0\n"), (one(cpuset_cpus="0-1"), "\n"),
    (one(io_weight=5), "default 100\n8:0 5\n"),
    (one(io_max="8:0 rbps=2M"), IO_MAX), (one(io_max="8:32 rbps=1"), IO_MAX),
    (one(io_max="8:0 wbps=1"), IO_MAX), (one(io_max="8:0 rbps=1"), ""), (one(io_max={"8:0": {"rbps": 2**32}}), ""),
    (one(io_max={"8:0": {"riops": 2**32 - 2}}), ""), (one(io_max="8:0 rbps=max"), IO_MAX),
    (one(io_max={"8:0": {"rbps": 2**40}}), "8:0 rbps=max wbps=1 riops=1 wiops=1\n"),
    (one(hugetlb="2MB=4M"), "2097152\n"), (one(hugetlb="2MB=max"), "2097152\n"), (one(hugetlb="2MB=4M"), "max\n"),
]  # fmt: skip


@pytest.mark.skipif(PAGE != 4096, reason="the texts are of kernels with pages of 4096 bytes")
@pytest.mark.parametrize(("setting", "text", "kernel"), TAKEN, ids=lambda each: repr(each)[:60])
def test_what_the_kernel_took_agrees(setting, text, kernel):
    assert setting.agrees(text), kernel


@pytest.mark.parametrize(("setting", "text"), NOT_TAKEN, ids=lambda each: repr(each)[:60])
def test_what_the_kernel_did_not_take_does_not_agree(setting, text):
    assert not setting.agrees(text)


def kernel(setting):
    """The text of a file after that write, by the kernel's own rules of rounding (page_counter.c, blk-throttle.c)."""
    text = setting.text
    if setting.controller in ("memory", "hugetlb") and text.isdigit() and setting.limit != "memory_oom_group":
        page = PAGE if setting.controller == "memory" else 2 << 20
        most = MOST_PAGES * PAGE // page * page
        kept = min(int(text), MOST_PAGES * PAGE) // page * page
        return "max\n" if kept == most else f"{kept}\n"
    if setting.limit == "io_max":
        device, *pairs = text.split()
        rates = {**dict.fromkeys(("rbps", "wbps", "riops", "wiops"), "max"), **dict(each.split("=") for each in pairs)}
        for key in ("riops", "wiops"):
            if rates[key] != "max" and int(rates[key]) >= 2**32 - 1:
                rates[key] = "max"
        if set(rates.values()) == {"max"}:
            return ""
        return f"{device} " + " ".join(f"{key}={rate}" for key, rate in rates.items()) + "\n"
    return text + "\n"


AMOUNT = st.just(math.inf) | st.integers(PAGE, 2**63 - 1) | st.integers(PAGE, 1 << 30)
RATE = st.just(math.inf) | st.integers(1, 2**40)
LIMITS = st.builds(
    Limits,
    memory_max=st.none() | AMOUNT,
    memory_high=st.none() | AMOUNT,
    memory_low=st.none() | AMOUNT,
    memory_swap_max=st.none() | st.just(0) | AMOUNT,
    memory_oom_group=st.none() | st.booleans(),
    pids_max=st.none() | st.just(math.inf) | st.integers(1, 4194304),
    cpu_max=st.none() | st.just(math.inf) | st.floats(0.001, 1000),
    cpu_weight=st.none() | st.integers(1, 10000),
    cpuset_cpus=st.none() | st.sets(st.integers(0, 100), min_size=1),
    io_weight=st.none() | st.integers(1, 10000),
    io_max=st.none()
    | st.dictionaries(
        st.sampled_from(["8:0", "8:16", "254:0"]),
        st.dictionaries(st.sampled_from(["rbps", "wbps", "riops", "wiops"]), RATE, min_size=1),
    ),
    hugetlb=st.none() | st.dictionaries(st.just("2MB"), AMOUNT),
)


@given(LIMITS)
def test_whatever_is_written_agrees_with_what_the_kernel_makes_of_it(limits):
    for setting in limits.settings():
        text = kernel(setting)
        assert setting.agrees(text), (setting, text)
        if text:
            assert setting.read(text) is not None


@given(LIMITS, LIMITS)
def test_agreement_with_anothers_write_is_agreement_with_what_was_asked(mine, other):
    """The control of the test before: what the kernel would say the same of is all that agrees."""
    others = {setting.file: kernel(setting) for setting in other.settings() if setting.limit != "io_max"}
    for setting in mine.settings():
        if setting.file in others:
            assert setting.agrees(others[setting.file]) == (others[setting.file] == kernel(setting))


@given(LIMITS)
def test_asked_comes_back_as_the_same_limits(limits):
    assert Limits.of(limits.asked()) == limits


def test_what_is_read_of_a_table_is_merged_to_what_was_asked():
    limits = Limits(io_max=["8:0 rbps=1M wbps=max riops=max wiops=120", "8:16 rbps=2M wbps=1 riops=1 wiops=1"])
    text = "".join(f"{setting.text}\n" for setting in limits.settings())
    merged = {}
    for setting in limits.settings():
        merged.update(setting.read(text))
    assert merged == limits.asked()["io_max"]


def test_a_setting_is_plain_data():
    assert Setting("pids_max", "pids", "pids.max", "5") == ("pids_max", "pids", "pids.max", "5")
