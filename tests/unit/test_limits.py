"""Limits: what each field takes, what it refuses, and what it becomes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfold.errors import UsageError
from pinfold.limits import RLIMITS, Limits, tables, values

MEMORY = ("memory_max", "memory_high", "memory_low", "memory_swap_max")
PAGE = os.sysconf("SC_PAGESIZE")
PAGES = os.sysconf("SC_PHYS_PAGES")
LISTS = ("cpuset_cpus", "cpuset_mems")
BYTES = ("fsize", "core", "stack", "as")
STAT = os.stat
inf = math.inf


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        *[(name, value, kept) for name in MEMORY for value, kept in
          [("64M", 64 << 20), (" 64M ", 64 << 20), (PAGE, PAGE), ("max", inf), ("infinity", inf), (inf, inf),
           ("100%", PAGES * PAGE), ("50%", PAGES // 2 * PAGE), (2**63 - 1, 2**63 - 1)]],
        ("memory_low", 0, 0), ("memory_swap_max", "0", 0), ("memory_low", "0%", 0), ("memory_low", 1, 1),
        *[("memory_oom_group", value, True) for value in (True, "yes", "true", "on", "1", " YES ")],
        *[("memory_oom_group", value, False) for value in (False, "no", "false", "off", "0")],
        ("pids_max", 1, 1), ("pids_max", "10", 10), ("pids_max", "max", inf), ("pids_max", "infinity", inf),
        ("pids_max", 4194304, 4194304),
        ("cpu_max", 1, 1.0), ("cpu_max", 1.5, 1.5), ("cpu_max", "1.5", 1.5), ("cpu_max", "150%", 1.5),
        ("cpu_max", "33.33%", 0.3333), ("cpu_max", "12.5%", 0.125), ("cpu_max", "max", inf), ("cpu_max", inf, inf),
        ("cpu_max", 0.001, 0.001), ("cpu_max", "150000 100000", 1.5), ("cpu_max", "max 5000", inf),
        ("cpu_weight", 1, 1), ("cpu_weight", "10000", 10000), ("io_weight", 10000, 10000), ("io_weight", "1", 1),
        *[(name, value, kept) for name in LISTS for value, kept in
          [("0-3,8", "0-3,8"), ("0 1 2", "0-2"), ("8,0-3", "0-3,8"), ("3,2,2-2", "2-3"), ([3, 1], "1,3"), ("7", "7"),
           (range(4), "0-3"), ({5, 6}, "5-6"), ("0-1, 3", "0-1,3"), (("1", 2), "1-2")]],
        ("io_max", {"8:0": {"rbps": "1M", "wiops": 100}}, (("8:0", (("rbps", 1 << 20), ("wiops", 100))),)),
        ("io_max", {"8:0": {"wbps": "max", "riops": inf}}, (("8:0", (("wbps", inf), ("riops", inf))),)),
        ("io_max", "8:0 wiops=100 rbps=1M", (("8:0", (("rbps", 1 << 20), ("wiops", 100))),)),
        ("io_max", ["254:0 rbps=1", "8:16 wbps=2", "8:16 riops=1K"],
         (("8:16", (("wbps", 2), ("riops", 1024))), ("254:0", (("rbps", 1),)))),
        ("io_max", "/dev/block/7:1 rbps=1", (("7:1", (("rbps", 1),)),)), ("io_max", {}, None),
        ("io_max", "8:0 rbps=1 rbps=2", (("8:0", (("rbps", 2),)),)), ("io_max", {"8:0": "rbps=1K"},
         (("8:0", (("rbps", 1024),)),)),
        ("hugetlb", {"1GB": "max", "2MB": "64M"}, (("2MB", 64 << 20), ("1GB", inf))), ("hugetlb", {}, None),
        ("hugetlb", "64KB=1M", (("64KB", 1 << 20),)), ("hugetlb", ["2MB=0", "64KB=1"], (("64KB", 1), ("2MB", 0))),
        *[(name, value, kept) for name in BYTES for value, kept in
          [("1024", 1024), ("64M", 64 << 20), ("1K:2K", (1024, 2048)), ("infinity", inf), ("1K:infinity", (1024, inf)),
           ((1, 2), (1, 2)), ([1, 2], (1, 2)), ((5, 5), 5), ("0", 0), (0, 0), (inf, inf), ((1, "max"), (1, inf))]],
        *[(name, value, kept) for name in ("nofile", "nproc") for value, kept in
          [(1024, 1024), ("1024", 1024), ("1024:4096", (1024, 4096)), ("max", inf), (0, 0), ((1, inf), (1, inf))]],
        ("requirement", "best_effort", "best_effort"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_a_value_becomes_what_the_kernel_counts_in(field, value, kept):
    found = getattr(Limits.of({field: value}), "as_" if field == "as" else field)
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, value) for name in MEMORY for value in
          (-1, "64MB", 1.5, True, "", "lots", "101%", "12.345%", "-1%", "%", "1e3%", b"1", 2**63, 10**5000, [],
           -inf, math.nan)],
        *[(name, value) for name in ("memory_max", "memory_high") for value in (0, "0", "0%", 1, PAGE - 1)],
        *[("memory_oom_group", value) for value in (1, 0, "maybe", "", None.__class__)],
        *[(name, value) for name in ("pids_max", "cpu_weight", "io_weight")
          for value in (0, -1, 1.0, "1.5", "", "many", True, "²", "٣", "1K", 10**5000, "9" * 5000)],
        *[("pids_max", value) for value in ("101%", "0%", 4194305, "1.234%")],
        *[(name, value) for name in ("cpu_weight", "io_weight") for value in (10001, "max", inf)],
        *[("cpu_max", value) for value in
          (0, -1, math.nan, -inf, 1e6, 10**400, True, [], "", "lots", "-1", "0%", "1.234%", "0.0009", "1 2 3", "0.05%",
           "150000 999", "150000 1000001", "999 1000000", "1e3", "0 100000", "inf", "100000 max")],
        *[("cpu_period_usec", value) for value in (999, 1000001, "1s", True, 1e5)],
        *[(name, value) for name in LISTS for value in
          ("", " ", ",", "3-1", "a", "-1", "1-", "1--2", "0-99999999999", "65536", [], [-1], [1.5], [True], 5, b"1", {},
           {1: 2}, "²", [10**5000])],
        *[("io_max", value) for value in
          ({"8:0": {}}, {"8:0": {"bps": 1}}, {"8:0": {"rbps": 0}}, {"8:0": {"rbps": -1}}, {"8:0": {"rbps": "1MB"}},
           {"8:0": {"rbps": True}}, {"8:0": 5}, {8: {"rbps": 1}}, "8:0", "rbps=1", "8:0 bps=1", "8:0 rbps=", 5, b"8:0",
           "", 10**5000, {10**5000: {"rbps": 1}}, {"8:0": 10**5000},
           [5], {"/nowhere": {"rbps": 1}}, {"/dev/null": {"rbps": 1}}, {"/proc": {"rbps": 1}}, {"a\0": {"rbps": 1}},
           {"8:0": "rbps"}, {"8": {"rbps": 1}}, {"8:0": {5: 1}})],
        *[("hugetlb", value) for value in
          ("2MB", "2M=1", "=1", "2MB=", {"2MB": -1}, {2: 1}, {10**5000: 1}, {"0MB": 1},
           {"2MB": "1MB"}, 5, {"../2MB": 1}, [1])],
        *[(name, value) for name in ("nofile", "nproc") for value in
          ("1K", -1, 1.5, True, "2:1", (2, 1), (1, 2, 3), "1:2:3", "", ":", "1:", "infinity:1", 2**63, {})],
        *[(name, value) for name in BYTES for value in ("1KB", -1, 1.5, True, "2K:1K", (inf, 1), "", ":", {}, [1])],
        *[("requirement", value) for value in ("maybe", "", True, 1)],
    ],
    ids=lambda value: values.short(value)[:20],
)  # fmt: skip
def test_a_value_that_is_no_limit_is_refused_with_the_field_named(field, value):
    with pytest.raises(UsageError, match=f"^{field}\\b") as caught:
        Limits.of({"cpu_max": 1, field: value} if field == "cpu_period_usec" else {field: value})
    assert len(str(caught.value)) < 7000


def test_none_is_not_asked_for():
    names = [field.name for field in dataclasses.fields(Limits) if field.name != "requirement"]
    assert Limits(**dict.fromkeys(names)).asked() == {}
    assert Limits.of({}) == Limits()
    assert Limits(pids_max=3).asked() == {"pids_max": 3}


def test_asked_is_json_and_comes_back_as_the_same_limits():
    limits = Limits(
        memory_max="64M", memory_low="max", memory_oom_group=False, pids_max="max", cpu_max="20000 50000",
        cpu_weight=5, cpuset_cpus=[1, 0], io_max="8:0 rbps=1M wbps=max", io_weight=7, hugetlb="2MB=max",
        nofile=(1, 2), core=0, as_="1K:infinity", requirement="best_effort",
    )  # fmt: skip
    assert limits.asked() == {
        "memory_max": 64 << 20, "memory_low": "max", "memory_oom_group": False, "pids_max": "max", "cpu_max": 0.4,
        "cpu_period_usec": 50000, "cpu_weight": 5, "cpuset_cpus": "0-1", "io_weight": 7,
        "io_max": {"8:0": {"rbps": 1 << 20, "wbps": "max"}}, "hugetlb": {"2MB": "max"}, "nofile": [1, 2], "core": 0,
        "as": [1024, "max"],
    }  # fmt: skip
    assert Limits.of({**json.loads(json.dumps(limits.asked())), "requirement": "best_effort"}) == limits


def test_a_period_comes_with_the_kernels_own_text():
    assert Limits(cpu_max="150000 100000").cpu_period_usec == 100000
    assert Limits(cpu_max="max 5000").cpu_period_usec == 5000
    assert Limits(cpu_max="1000 2000", cpu_period_usec=2000).cpu_max == 0.5
    with pytest.raises(UsageError, match="cpu_period_usec 3000 say two periods"):
        Limits(cpu_max="1000 2000", cpu_period_usec=3000)
    with pytest.raises(UsageError, match="needs cpu_max"):
        Limits(cpu_period_usec=3000)


def test_of_takes_as_and_refuses_what_it_does_not_know():
    assert Limits.of({"as": 5}) == Limits.of({"as_": 5}) == Limits(as_=5)
    with pytest.raises(UsageError, match=r"limits: bogus, 1 is unknown; known are memory_max, .* as, requirement"):
        Limits.of({"bogus": 1, 1: 2, "pids_max": 3})
    with pytest.raises(UsageError, match="give one or the other"):
        Limits.of({"as": 5, "as_": 5})


def test_limits_are_values_that_cannot_be_changed():
    limits = Limits(io_max="8:0 rbps=1", hugetlb="2MB=1", nofile=(1, 2), cpu_max="1000 2000")
    assert pickle.loads(pickle.dumps(limits)) == limits == dataclasses.replace(limits)
    assert hash(limits) == hash(dataclasses.replace(limits))
    assert limits != dataclasses.replace(limits, nofile=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        limits.memory_max = 1


def test_rlimits_are_as_setrlimit_takes_them():
    limits = Limits(nofile=5, nproc=(1, "max"), core=0, as_="infinity", stack="1K", fsize="1K:2K")
    assert limits.rlimits() == {
        resource.RLIMIT_NOFILE: (5, 5), resource.RLIMIT_NPROC: (1, resource.RLIM_INFINITY),
        resource.RLIMIT_FSIZE: (1024, 2048), resource.RLIMIT_CORE: (0, 0), resource.RLIMIT_STACK: (1024, 1024),
        resource.RLIMIT_AS: (resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    }  # fmt: skip
    assert Limits(pids_max=1).rlimits() == {}
    assert set(RLIMITS) <= set(Limits.__dataclass_fields__)


def test_a_share_of_the_tasks_is_of_what_the_system_can_have():
    with open("/proc/sys/kernel/pid_max") as pid_max, open("/proc/sys/kernel/threads-max") as threads:
        most = min(int(pid_max.read()) - 1, int(threads.read()))
    if most <= values._MAX_PIDS:
        assert Limits(pids_max="100%").pids_max == most
    assert Limits(pids_max="10%").pids_max == most // 10


@pytest.mark.parametrize(("share", "pages"), [("50%", 254102), ("12.5%", 63525), ("12.55%", 63779), ("33.33%", 169384)])
def test_a_share_of_memory_is_rounded_as_systemd_252_did_on_a_machine_of_508204_pages(share, pages):
    assert values._share(share, 508204, "") == pages


@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_list_of_cpus_is_read_back_as_the_same_cpus(numbers):
    text = values.as_list(numbers)
    assert values.indices(text, "") == numbers
    assert values.index_list(list(numbers), "") == values.index_list(text.replace(",", " "), "") == text


@pytest.fixture
def sysfs(tmp_path):
    """Links as in /sys/dev/block: a disk, its partition, and a partition whose disk says no number."""
    for name, files in (("sda", {"dev": "8:0\n"}), ("sda/sda1", {"dev": "8:1\n", "partition": "1\n"}),
                        ("sdb/sdb1", {"partition": "1\n"})):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    (tmp_path / "block").mkdir()
    for number, name in (("8:0", "sda"), ("8:1", "sda/sda1"), ("8:17", "sdb/sdb1")):
        (tmp_path / "block" / number).symlink_to(f"../{name}")
    return str(tmp_path / "block")


def test_a_partition_is_its_disk_to_the_kernel(sysfs):
    assert tables.device_number("8:0", "io_max", sysfs) == "8:0"
    assert tables.device_number("8:1", "io_max", sysfs) == "8:0"
    assert tables.device_number("/dev/block/8:1", "io_max", sysfs) == "8:0"
    assert tables.device_number("08:001", "io_max", sysfs) == "8:0"
    with pytest.raises(UsageError, match="io_max: device 8:17: is a partition without a disk"):
        tables.device_number("8:17", "io_max", sysfs)


def node(mode, *, rdev=0, dev=0):
    return os.stat_result((mode, 0, dev, 0, 0, 0, 0, 0, 0, 0), {"st_rdev": rdev})


def test_a_path_is_its_device_or_that_of_its_file_system(sysfs, monkeypatch):
    nodes = {
        "/dev/sda1": node(0o060600, rdev=os.makedev(8, 1)), "/data with blanks": node(0o040755, dev=os.makedev(8, 0)),
        "/tmpfs": node(0o040755, dev=os.makedev(0, 25)), "/dev/zero": node(0o020666, rdev=os.makedev(1, 5)),
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda path, **how: nodes[path] if path in nodes else STAT(path, **how))
        found = {}
        for path in nodes:
            try:
                found[path] = tables.device_number(path, "io_max", sysfs)
            except UsageError as error:
                found[path] = str(error)
        line = tables._io_line("/data with blanks rbps=1 wiops=2", "io_max")
    assert line == ("/data with blanks", {"rbps": "1", "wiops": "2"})
    assert found["/dev/sda1"] == found["/data with blanks"] == "8:0"
    assert "has no block device of its own" in found["/tmpfs"]
    assert "is a character device" in found["/dev/zero"]


def test_no_limits_need_nothing():
    assert (Limits().asked(), Limits().settings(), Limits().rlimits()) == ({}, [], {})
