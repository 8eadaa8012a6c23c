"""Limits as they are applied: on a cgroup whose files answer as the test says."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from pinfold.backend import Scope, ScopeRequest
from pinfold.errors import CgroupError, SpawnError, Unsupported
from pinfold.limits import Limits
from pinfold.result import Events, Placement
from pinfold.runs.limiting import AppliedLimits
from pinfold.units import INFINITY

ALL = frozenset({"cpu", "cpuset", "io", "memory", "pids", "hugetlb"})
PATH = "/base/run-0123456789abcdef"
DEVICES = "8:0 rbps=1048576 wbps=max riops=max wiops=max\n8:16 rbps=max wbps=max riops=max wiops=120\n"


class FakeCgroup:
    """Takes what is written to its files; `says`: what a file reads instead. An OSError is a refusal."""

    path = PATH

    def __init__(self, **says):
        self.says = {name.replace("_", "."): text for name, text in says.items()}
        self.written = []

    def set(self, file, text):
        answer = self.says.get(file, f"{text}\n")
        if isinstance(answer, OSError):
            raise CgroupError("write", f"{PATH}/{file}", answer, text) from answer
        self.written.append((file, text))
        return answer

    def read(self, file):
        return self.says.get(file)


@pytest.fixture
def place(cgroups):
    cgroups.add("/", has="cpu pids", gives="cpu pids", cgroup_type=None)
    return cgroups.add("/base", has="cpu pids")


@pytest.fixture
def apply(place):
    """`apply(limits, cgroup)`: the AppliedLimits of a run with these limits in that cgroup."""

    def apply(limits=None, cgroup=None, *, controllers=ALL, stall=INFINITY, at=place, **more):
        cgroup = cgroup or FakeCgroup()
        scope = Scope("0123456789abcdef", cgroup, Placement("cgroupfs", PATH), at, controllers, **more)
        return AppliedLimits(ScopeRequest(limits), scope, stall)

    return apply


def refusal(number=errno.EINVAL):
    return OSError(number, "refused")


def test_nothing_is_written_for_a_run_without_limits(apply):
    cgroup = FakeCgroup()
    for limits in (None, Limits()):
        assert apply(limits, cgroup).limits == {"asked": {}, "applied": {}, "missing": {}}
    assert cgroup.written == []


def test_a_limit_is_in_force_once_the_kernel_reads_it_back(apply):
    cgroup = FakeCgroup(memory_max="67104768\n")
    limits = apply(Limits(memory_max=67104770, pids_max="max", cpu_max=0.5, cpu_weight=7), cgroup).limits
    assert limits == {
        "asked": {"memory_max": 67104770, "pids_max": "max", "cpu_max": 0.5, "cpu_weight": 7},
        "applied": {
            "memory_max": 67104768, "memory_oom_group": True, "pids_max": "max", "cpu_max": 0.5, "cpu_weight": 7,
        },
        "missing": {},
    }  # fmt: skip
    assert ("memory.oom.group", "1") in cgroup.written


def test_limits_of_processes_are_in_force_without_a_controller(apply):
    limits = apply(Limits(nofile=5, core="0:max", as_="1K"), controllers=frozenset()).limits
    assert limits["applied"] == limits["asked"] == {"nofile": 5, "core": [0, "max"], "as": 1024}


def test_tables_are_merged_from_their_devices_and_sizes(apply):
    asked = Limits(io_max=["8:0 rbps=1M", "8:16 wiops=120"], hugetlb=["2MB=4M", "1GB=max"])
    applied = apply(asked, FakeCgroup(io_max=DEVICES)).limits["applied"]
    assert applied == {
        "io_max": {
            "8:0": {"rbps": 1048576, "wbps": "max", "riops": "max", "wiops": "max"},
            "8:16": {"rbps": "max", "wbps": "max", "riops": "max", "wiops": 120},
        },
        "hugetlb": {"2MB": 4 << 20, "1GB": "max"},
    }


# A limit that this host does not keep: what its file answers, and what is said about it.
NOT_KEPT = [
    (Limits(pids_max=5), {"pids_max": "6\n"}, "set {}/pids.max=5: it reads '6' afterwards"),
    (Limits(pids_max=5), {"pids_max": "max\n"}, "set {}/pids.max=5: it reads 'max' afterwards"),
    (Limits(pids_max=5), {"pids_max": ""}, "set {}/pids.max=5: it reads '' afterwards"),
    (Limits(memory_low="1M"), {"memory_low": refusal()}, "write {}/memory.low=1048576: refused"),
    (Limits(io_weight=5), {"io_weight": refusal(errno.ENOENT)}, "write {}/io.weight=default 5: refused"),
    (Limits(cpuset_cpus="0-1"), {"cpuset_cpus_effective": "0\n"},
     "set {}/cpuset.cpus.effective=0-1: it reads '0' afterwards"),
    (Limits(cpuset_mems="1"), {"cpuset_mems_effective": "0\n"},
     "set {}/cpuset.mems.effective=1: it reads '0' afterwards"),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "says", "words"), NOT_KEPT, ids=str)
def test_what_the_kernel_refuses_or_makes_another_of_is_an_error(apply, limits, says, words):
    with pytest.raises(CgroupError) as caught:
        apply(limits, FakeCgroup(**says))
    assert str(caught.value).startswith(words.format(PATH))


@pytest.mark.parametrize(("limits", "says", "words"), NOT_KEPT, ids=str)
def test_with_best_effort_it_is_missing_and_the_others_are_in_force(apply, limits, says, words):
    asked = Limits.of({**limits.asked(), "cpu_weight": 7, "nofile": 5, "requirement": "best_effort"})
    found = apply(asked, FakeCgroup(**says)).limits
    (name,) = limits.asked()
    assert found["applied"] == {"cpu_weight": 7, "nofile": 5}
    assert list(found["missing"]) == [name]
    assert found["missing"][name].startswith(words.format(PATH))
    assert found["asked"] == asked.asked()


@pytest.mark.parametrize("effective", ["0-1\n", "0,1\n", None])
def test_a_cpuset_whose_cpus_are_all_there_is_in_force(apply, effective):
    found = apply(Limits(cpuset_cpus="0-1"), FakeCgroup(cpuset_cpus_effective=effective))
    assert found.limits["applied"] == {"cpuset_cpus": "0-1"}


def test_a_limit_without_its_controller_is_not_supported_and_nothing_after_it_is_written(apply):
    cgroup = FakeCgroup()
    with pytest.raises(Unsupported) as caught:
        apply(Limits(memory_low=0, cpu_weight=5, pids_max=5), cgroup, controllers=frozenset({"memory", "cpu"}))
    assert (caught.value.feature, cgroup.written) == ("limit pids_max", [("memory.low", "0")])
    assert caught.value.found == "the controller pids stops at /base, whose cgroup.subtree_control does not name it"


def test_with_best_effort_a_limit_without_its_controller_is_missing_with_the_fix(apply):
    limits = Limits(memory_max="1M", pids_max=5, requirement="best_effort")
    found = apply(limits, controllers=frozenset({"memory"})).limits
    assert found["applied"] == {"memory_max": 1 << 20, "memory_oom_group": True}
    assert list(found["missing"]) == ["pids_max"]
    assert found["missing"]["pids_max"].startswith("the controller pids stops at /base, whose")
    assert "(as root: echo +pids > " in found["missing"]["pids_max"]


def test_what_comes_along_with_a_limit_is_not_missed_where_it_was_not_asked_for(apply):
    limits = Limits(memory_max="1M", requirement="best_effort")
    found = apply(limits, FakeCgroup(memory_oom_group=refusal())).limits
    assert found == {"asked": {"memory_max": 1 << 20}, "applied": {"memory_max": 1 << 20}, "missing": {}}


def test_one_device_that_is_refused_is_missing_and_the_other_is_in_force(apply):
    limits = Limits(io_max=["8:0 rbps=1M", "8:32 rbps=1M"], requirement="best_effort")
    found = apply(limits, FakeCgroup(io_max=DEVICES)).limits
    assert list(found["applied"]["io_max"]) == ["8:0"]
    assert "8:32 rbps=1048576" in found["missing"]["io_max"]


# ---- the stall guard ----


def test_a_stall_guard_needs_the_memory_controller(apply):
    with pytest.raises(Unsupported, match=r"^stall_timeout: "):
        apply(controllers=ALL - {"memory"}, stall=1.0)


def test_a_stall_guard_needs_pressure(apply):
    with pytest.raises(Unsupported, match=r"^stall_timeout: this kernel does not measure pressure .*psi=1"):
        apply(stall=1.0)
    assert apply(None, FakeCgroup(memory_pressure="full total=0\n"), stall=1.0).limits["missing"] == {}


# ---- while it runs, and at its end ----


@pytest.mark.parametrize(("limits", "lifted"), [(Limits(cpu_max=0.01), [("cpu.max", "max")]), (Limits(pids_max=5), [])])
def test_the_dying_are_given_the_whole_cpu_if_it_was_limited(apply, limits, lifted):
    applied = apply(limits, cgroup := FakeCgroup())
    del cgroup.written[:]
    applied.relax_cpu()
    assert cgroup.written == lifted


def test_a_cgroup_that_takes_no_more_writes_stops_no_kill(apply):
    applied = apply(Limits(cpu_max=0.5), cgroup := FakeCgroup())
    cgroup.says["cpu.max"] = refusal(errno.ENODEV)
    applied.relax_cpu()
    assert cgroup.written == [("cpu.max", "50000 100000")]


@pytest.mark.parametrize(("cpus", "slow"), [(0.01, True), (0.099, True), (0.1, False), (2.0, False), ("max", False)])
def test_a_command_starts_at_full_speed_where_its_cpu_limit_is_very_low(apply, cpus, slow):
    applied = apply(Limits(cpu_max=cpus), cgroup := FakeCgroup())
    (limit,) = [text for file, text in cgroup.written if file == "cpu.max"]
    cgroup.says["cpu.max"], cgroup.written = f"{limit}\n", []
    assert applied.relax_for_exec() == slow
    assert cgroup.written == ([("cpu.max", "max")] if slow else [])
    applied.restore_cpu()
    applied.restore_cpu()
    assert cgroup.written == ([("cpu.max", "max"), ("cpu.max", limit)] if slow else [])


def test_the_cpu_limit_of_a_unit_of_its_own_is_raised_too_and_put_back(apply, cgroups):
    cgroups.add("/base/x.scope", cpu_max="1000 100000\n")
    runs = cgroups.add("/base/x.scope/runs", cpu_max="max 100000\n")
    applied = apply(Limits(cpu_max=0.01), FakeCgroup(cpu_max="1000 100000\n"), at=runs, own_unit="/base/x.scope")
    assert applied.relax_for_exec()
    assert cgroups.written == [("/base/x.scope/cpu.max", "max")]
    applied.restore_cpu()
    assert cgroups.written[1:] == [("/base/x.scope/cpu.max", "1000 100000")]


def test_a_command_that_cannot_start_in_its_memory_is_told_so(apply):
    applied = apply(Limits(memory_max="64K"))
    for number in (errno.ENOMEM, errno.E2BIG):
        assert applied.advice(SpawnError("exec", number, "'sh'")) == (
            "its memory limit of 65536 bytes may be too small to start in"
        )
    assert applied.advice(SpawnError("exec", errno.ENOENT, "'sh'")) is None
    assert applied.advice(SpawnError("clone", errno.ENOMEM, "'sh'")) is None
    assert apply(Limits(pids_max=5)).advice(SpawnError("exec", errno.ENOMEM, "'sh'")) is None


def ancestors(**counts):
    return SimpleNamespace(counts=lambda: counts, complete=True)


def test_without_a_memory_controller_nobody_looks(apply):
    applied = apply()
    assert (applied.watch(0.0), applied.look(1.0), applied.parts) == (False, False, {})


def test_the_parts_of_its_memory_are_seen_in_passing(apply):
    applied = apply(None, FakeCgroup(memory_current="9\n", memory_stat="anon 7\nfile 2\n"), ancestor_oom=ancestors())
    assert applied.watch(0.0)
    assert not applied.look(0.1)
    assert applied.parts == {"anon": 7, "file": 2}


@pytest.mark.parametrize(
    ("texts", "stall", "events"),
    [
        ({}, False, Events()), ({}, True, Events(oom_by="own", oom_cgroup=PATH, stall=True)),
        ({"memory.events": "low 0\nhigh 0\nmax 9\noom 0\noom_kill 0\n"}, False, Events(0, 0)),
        ({"pids.events": "max 3\n"}, False, Events(pids_max=3)),
        ({"memory.events": "oom 1\noom_kill 2\n", "memory.events.local": "oom 1\noom_kill 2\n"}, False,
         Events(1, 2, None, "own", PATH, {"pid": 7, "comm": "x"})),
        ({"memory.events": "oom 1\noom_kill 2\n", "memory.events.local": "oom 0\noom_kill 0\n"}, False,
         Events(1, 2, None, "below", None, {"pid": 7, "comm": "x"})),
    ],
)  # fmt: skip
def test_its_accounts_tell_what_the_limits_did(apply, monkeypatch, texts, stall, events):
    asked = []
    monkeypatch.setattr("pinfold.cgroup.oom.victim", lambda run: asked.append(run) or {"pid": 7, "comm": "x"})
    assert apply(ancestor_oom=ancestors(base=0)).evaluate(texts, stall=stall) == events
    assert asked == ([PATH.rpartition("/")[2]] if events.oom_kill else [])  # the log is read only for a kill


def test_a_kill_in_the_unit_of_the_run_is_its_own(apply, monkeypatch):
    monkeypatch.setattr("pinfold.cgroup.oom.victim", lambda _run: None)
    counts = {"/x.scope": 0}
    applied = apply(ancestor_oom=SimpleNamespace(counts=lambda: dict(counts), complete=True), own_unit="/x.scope")
    counts["/x.scope"] = 1
    texts = {"memory.events": "oom 0\noom_kill 1\n", "memory.events.local": "oom 0\noom_kill 1\n"}
    events = applied.evaluate(texts, stall=False)
    assert (events.oom_by, events.oom_cgroup) == ("own", "/x.scope")


def test_without_a_controller_nobody_counts_but_a_stall_is_told(apply):
    applied = apply(controllers=frozenset())
    assert applied.evaluate({}, stall=False) is None
    assert applied.evaluate({}, stall=True) == Events(oom_by="own", oom_cgroup=PATH, stall=True)


def test_a_limit_at_which_the_kernel_finds_nothing_to_kill_is_its_own_and_no_stall(apply):
    cgroup = FakeCgroup(memory_current="9\n", memory_events="oom_kill 0\n")
    applied = apply(None, cgroup, ancestor_oom=ancestors())
    applied.watch(0.0)
    looks = []
    for second in range(1, 5):
        cgroup.says["memory.events.local"] = f"oom {second}\n"
        looks.append(applied.look(float(second)))
    assert looks[:2] == [False, False]
    assert looks[-1]
    assert applied.evaluate({}, stall=True) == Events(oom_by="own", oom_cgroup=PATH, stall=False)
