"""Accounts: what the texts of a cgroup's files say of its use, for the kernels that we know.

Texts marked captured were read from 6.18 (an idle cgroup without controllers); the others are derived from the sources
and documentation of their kernels, with figures of our own.
"""

from __future__ import annotations

import pytest

from pinfold.cgroup import usage
from pinfold.result import Pressure, Usage

CPU_STAT = {
    "5.15": "usage_usec 92589\nuser_usec 56700\nsystem_usec 35889\n",
    "6.1 with CONFIG_SCHED_CORE": (
        "usage_usec 92589\nuser_usec 56700\nsystem_usec 35889\ncore_sched.force_idle_usec 7\n"
    ),
    "6.12": "usage_usec 92589\nuser_usec 56700\nsystem_usec 35889\nnice_usec 11\n",
    "6.12 with CONFIG_SCHED_CORE": (
        "usage_usec 92589\nuser_usec 56700\nsystem_usec 35889\nnice_usec 11\ncore_sched.force_idle_usec 7\n"
    ),
}
# With the cpu controller; the last two since 5.18.
THROTTLED = "nr_periods 12\nnr_throttled 3\nthrottled_usec 4711\n"
BURST = "nr_bursts 0\nburst_usec 0\n"
CAPTURED_CPU_STAT = "usage_usec 0\nuser_usec 0\nsystem_usec 0\nnice_usec 0\n"
CAPTURED_PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


def pressure(some, full):
    line = "{} avg10=1.47 avg60=0.72 avg300=0.19 total={}\n"
    return line.format("some", some) + ("" if full is None else line.format("full", full))


PRESSURE = {  # cpu.pressure has no `full` line before 5.13
    kernel: {"cpu.pressure": pressure(100, full), "memory.pressure": pressure(20, 2), "io.pressure": pressure(30, 3)}
    for kernel, full in (("5.10", None), *((newer, 0) for newer in ("5.15", "6.1", "6.6", "6.12", "6.18")))
}
IO_STAT = (
    "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n"
    "8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=50331648 dios=3021\n"
)
IO_STAT_WITH_COST = (  # blk-iocost adds its own, and devices without IO have a number alone
    "254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0 cost.vrate=100.00 cost.usage=12\n259:0 \n7:7\n"
)
MEMORY_STAT = {
    "5.15": "anon 1000\nfile 2000\nkernel_stack 16\npagetables 8\nshmem 300\nfile_mapped 5\nanon_thp 0\n",
    "6.1": "anon 1000\nfile 2000\nkernel 400\nkernel_stack 16\npagetables 8\nshmem 300\nzswap 0\nfile_mapped 5\n",
}


@pytest.mark.parametrize("kernel", CPU_STAT)
def test_cpu_time_is_told_by_every_kernel_and_throttling_by_the_controller(kernel):
    bare = usage.usage({"cpu.stat": CPU_STAT[kernel]})
    assert bare == Usage(cpu_usage_usec=92589, cpu_user_usec=56700, cpu_system_usec=35889)
    for controller in (THROTTLED, THROTTLED + BURST):
        found = usage.usage({"cpu.stat": CPU_STAT[kernel] + controller})
        assert found == bare._replace(cpu_throttled_usec=4711, cpu_throttled_periods=3)


def test_nothing_used_is_0_and_not_unknown():
    found = usage.usage({
        "cpu.stat": CAPTURED_CPU_STAT, "cpu.pressure": CAPTURED_PRESSURE, "memory.pressure": CAPTURED_PRESSURE,
        "io.pressure": CAPTURED_PRESSURE, "memory.peak": "0\n", "memory.swap.peak": "0\n", "pids.peak": "0\n",
        "io.stat": "",
    })  # fmt: skip
    assert found == Usage(0, 0, 0, 0, 0, 0, 0, Pressure(0, 0, 0, 0, 0), memory_swap_peak=0)


def test_what_there_is_no_file_for_is_unknown():
    assert usage.usage({}) == Usage()
    assert set(Usage()._replace(pressure=None)) | set(Pressure()) == {None}


@pytest.mark.parametrize(
    ("file", "field"),
    [("memory.peak", "memory_peak"), ("memory.swap.peak", "memory_swap_peak"), ("pids.peak", "pids_peak")],
)
@pytest.mark.parametrize(("text", "value"), [("67108864\n", 67108864), ("0\n", 0), ("", None), ("max\n", None)])
def test_a_peak_is_the_number_in_its_file(file, field, text, value):
    assert usage.usage({file: text}) == Usage()._replace(**{field: value})


@pytest.mark.parametrize("kernel", PRESSURE)
def test_pressure_is_the_totals_of_both_lines(kernel):
    assert usage.usage(PRESSURE[kernel]).pressure == Pressure(
        cpu_some_usec=100, memory_full_usec=2, io_full_usec=3, memory_some_usec=20, io_some_usec=30
    )


@pytest.mark.parametrize("file", ["cpu", "memory", "io"])
def test_a_pressure_file_that_is_missing_hides_no_other(file):
    texts = {name: text for name, text in PRESSURE["6.1"].items() if name != f"{file}.pressure"}
    found = usage.usage(texts).pressure._asdict()
    assert {name for name, value in found.items() if value is None} == {n for n in found if n.startswith(file)}


@pytest.mark.parametrize(
    ("text", "read", "written"),
    [(IO_STAT, 91889664, 613781504), (IO_STAT_WITH_COST, 4096, 0), ("", 0, 0), ("8:0 rbytes=lots wbytes=1\n", 0, 1)],
)
def test_io_is_the_sum_of_all_devices(text, read, written):
    assert usage.usage({"io.stat": text}) == Usage(io_rbytes=read, io_wbytes=written)


@pytest.mark.parametrize(
    ("kernel", "parts"),
    [
        ("5.15", {"anon": 1000, "file": 2000, "shmem": 300}),
        ("6.1", {"anon": 1000, "file": 2000, "shmem": 300, "kernel": 400}),
    ],
)
def test_the_parts_of_memory_are_those_that_the_kernel_knows(kernel, parts):
    assert usage.memory_parts(MEMORY_STAT[kernel]) == parts
    found = usage.usage({}, parts)
    assert found == Usage()._replace(**{f"memory_{name}": value for name, value in parts.items()})


def test_a_cgroup_whose_memory_nobody_looked_at_has_no_parts():
    assert usage.memory_parts("") == {}
    assert usage.usage({}, {}) == usage.usage({}, None) == Usage()


PSI = ("cpu.pressure", "memory.pressure", "io.pressure")


@pytest.mark.parametrize(
    ("controllers", "files"),
    [
        ((), ()), (("cpu", "cpuset", "hugetlb"), ()), (("io",), ("io.stat",)),
        (("pids",), ("pids.peak", "pids.events")),
        (("memory",), ("memory.peak", "memory.events", "memory.events.local", "memory.swap.peak")),
    ],
)  # fmt: skip
def test_only_the_files_of_controllers_that_are_there_are_read(controllers, files):
    assert set(usage.files(frozenset(controllers), pressure=False)) == {"cpu.stat", *files}
    assert set(usage.files(frozenset(controllers), pressure=True)) == {"cpu.stat", *PSI, *files}


def test_no_file_is_read_twice():
    every = usage.files(frozenset({"cpu", "memory", "pids", "io"}), pressure=True)
    assert len(every) == len(set(every)) == 11
