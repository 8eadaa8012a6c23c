"""Controllers on fake cgroups: which there are, who can give them on, and why one is not there."""

from __future__ import annotations

import errno

import pytest

from pinfold.cgroup import controllers
from pinfold.errors import Unsupported

HEAD = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n"
# Captured: 6.18, a hybrid host whose init binds most controllers to v1.
HYBRID = HEAD + (
    "cpuset\t3\t1\t1\ncpu\t1\t1\t1\ncpuacct\t2\t1\t1\nblkio\t7\t1\t1\nmemory\t4\t20\t1\ndevices\t5\t1\t1\n"
    "freezer\t6\t1\t1\nnet_cls\t0\t1\t1\nperf_event\t0\t1\t1\nnet_prio\t0\t1\t1\nhugetlb\t0\t1\t1\npids\t8\t1\t1\n"
)
# Derived from it and proc_cgroups_show() of kernel/cgroup/cgroup-v1.c: all on v2, and the memory controller switched
# off as by the firmware of a Raspberry Pi.
UNIFIED = HEAD + (
    "cpuset\t0\t87\t1\ncpu\t0\t87\t1\ncpuacct\t0\t87\t1\nblkio\t0\t87\t1\nmemory\t0\t87\t1\ndevices\t0\t87\t1\n"
    "freezer\t0\t87\t1\nnet_cls\t0\t87\t1\nperf_event\t0\t87\t1\nnet_prio\t0\t87\t1\nhugetlb\t0\t87\t1\npids\t0\t87\t1\n"
)
RASPBERRY_PI = HEAD + (
    "cpuset\t0\t62\t1\ncpu\t0\t62\t1\ncpuacct\t0\t62\t1\nblkio\t0\t62\t1\nmemory\t0\t62\t0\ndevices\t0\t62\t1\n"
    "freezer\t0\t62\t1\nnet_cls\t0\t62\t1\nperf_event\t0\t62\t1\nnet_prio\t0\t62\t1\npids\t0\t62\t1\n"
)
# Derived: since 6.14 those without a v1 side (CONFIG_MEMCG_V1, CONFIG_CPUSETS_V1) are left out.
WITHOUT_V1_SIDES = HEAD + "cpu\t0\t30\t1\nblkio\t0\t30\t1\npids\t0\t30\t1\n"

ALL = "cpuset cpu io memory hugetlb pids"
SCOPE = "/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope"


@pytest.fixture
def proc_cgroups(tmp_path, monkeypatch):
    """Set the text of /proc/cgroups."""

    def say(text):
        (tmp_path / "proc-cgroups").write_text(text)

    monkeypatch.setattr(controllers, "_PROC_CGROUPS", str(tmp_path / "proc-cgroups"))
    return say


def test_the_controllers_of_a_cgroup_are_the_words_of_its_files(cgroups):
    at = cgroups.add("/a", has="cpu io memory", gives="memory").directory
    assert controllers.available(at) == {"cpu", "io", "memory"}
    assert controllers.given(at) == {"memory"}


def test_a_cgroup_that_is_gone_or_closed_has_no_controllers(cgroups):
    assert controllers.available(f"{cgroups.root}/gone") == controllers.given(f"{cgroups.root}/gone") == frozenset()


def test_only_the_root_of_the_hierarchy_has_no_type(cgroups):
    assert controllers.is_root(cgroups.add("/", cgroup_type=None).directory)
    assert not controllers.is_root(cgroups.add("/a").directory)


@pytest.mark.parametrize(("holds", "expected"), [("", False), ("17", True), ("0", True), ("17 18", True)])
def test_a_cgroup_holds_processes_if_its_list_has_any(cgroups, holds, expected):
    assert controllers.holds_processes(cgroups.add("/a", holds=holds).directory) is expected


def test_a_cgroup_whose_list_cannot_be_read_holds_processes(cgroups):
    assert controllers.holds_processes(cgroups.add("/a", cgroup_procs=None).directory)


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        ({"has": ALL}, True), ({"has": ALL, "holds": "17"}, False), ({"has": "cpuset hugetlb"}, False), ({}, False),
        ({"has": ALL, "gives": "cpu io memory pids", "holds": "17"}, True),
        ({"has": ALL, "gives": "cpu io pids", "holds": "17"}, False),
        ({"has": "pids", "gives": "pids", "holds": "17"}, True), ({"has": "memory"}, True),
        ({"has": ALL, "holds": "17", "cgroup_type": None}, True),
    ],
    ids=str,
)  # fmt: skip
def test_a_cgroup_can_give_if_it_gives_already_or_holds_nothing_or_is_the_root(cgroups, cgroup, expected):
    assert controllers.can_give(cgroups.add("/a", **cgroup).directory) is expected


def test_what_is_asked_for_and_there_is_given_each_in_a_write_of_its_own(cgroups):
    place = cgroups.add("/a", has="cpu io memory pids", gives="io")
    assert controllers.give(place, frozenset({"cpu", "memory", "io", "cpuset"})) == {"io", "cpu", "memory"}
    file = "/a/cgroup.subtree_control"
    assert cgroups.written == [(file, "+cpu"), (file, "+memory")]


def test_one_refusal_is_not_the_others(cgroups):
    place = cgroups.add("/a", has="cpu memory pids")
    cgroups.refuses["+cpu"] = OSError(errno.EINVAL, "realtime processes")
    assert controllers.give(place, controllers.ACCOUNTING) == {"memory", "pids"}


def test_nothing_is_written_where_processes_are(cgroups):
    place = cgroups.add("/a", has="cpu memory pids", gives="pids", holds="17")
    assert controllers.give(place, controllers.ACCOUNTING) == {"pids"}
    assert cgroups.written == []


def test_the_root_gives_whatever_it_holds(cgroups):
    place = cgroups.add("/", has="cpu memory", holds="1 2 3", cgroup_type=None)
    assert controllers.give(place, controllers.ACCOUNTING) == {"cpu", "memory"}


def test_a_cgroup_that_may_not_be_written_to_gives_what_it_gave(cgroups):
    place = cgroups.add("/a", has="cpu memory", gives="cpu")
    cgroups.refuses["/a/cgroup.subtree_control"] = PermissionError(errno.EACCES, "Permission denied")
    assert controllers.give(place, controllers.ACCOUNTING) == {"cpu"}


@pytest.mark.parametrize(
    ("text", "controller", "found", "fix"),
    [
        (HYBRID, "memory", "the controller memory is bound to cgroup v1", "cgroup_no_v1=all"),
        (HYBRID, "io", "the controller io is bound to cgroup v1", "cgroup_no_v1=all"),  # blkio is its name there
        (RASPBERRY_PI, "memory", "the controller memory is disabled", "cgroup_enable=memory"),
        (UNIFIED.replace("blkio\t0\t87\t1", "blkio\t0\t87\t0"), "io", "the controller io is disabled",
         "boot without cgroup_disable=blkio"),
        (RASPBERRY_PI, "hugetlb", "this kernel has no controller hugetlb", "take one that has it"),
        (WITHOUT_V1_SIDES, "memory", "this kernel has no controller memory", "without cgroup_disable=memory"),
        ("", "memory", "this kernel has no controller memory", "take one that has it"),
        (HEAD + "memory\n", "memory", "this kernel has no controller memory", "take one that has it"),
    ],
)  # fmt: skip
def test_a_controller_that_the_root_has_not_is_told_by_proc_cgroups(
    cgroups, proc_cgroups, text, controller, found, fix
):
    proc_cgroups(text)
    cgroups.add("/", has="cpu cpuset pids", gives="cpu pids", cgroup_type=None)
    told = controllers.missing(controller, cgroups.add("/a", has="cpu pids"))
    assert told[0].startswith(found)
    assert fix in told[1]


def test_a_host_without_proc_cgroups_is_told_that_its_kernel_has_no_controller(cgroups, proc_cgroups):
    root = cgroups.add("/", has="cpu", cgroup_type=None)
    assert controllers.missing("memory", root)[0] == "this kernel has no controller memory"


def user_session(cgroups, **gives):
    """A user manager's part of the tree, with a scope in it; `gives` by place: `root`, `user`, `service`, `slice`."""
    cgroups.add("/", has=ALL, gives=gives.get("root", ALL), cgroup_type=None)
    cgroups.add("/user.slice", has=ALL, gives=gives.get("user", ALL))
    cgroups.add("/user.slice/user-1000.slice", has=ALL, gives=gives.get("user", ALL))
    cgroups.add("/user.slice/user-1000.slice/user@1000.service", has=ALL, gives=gives.get("service", ALL))
    cgroups.add("/user.slice/user-1000.slice/user@1000.service/app.slice", has=ALL, gives=gives.get("slice", ALL))
    return cgroups.add(SCOPE, has=ALL)


@pytest.mark.parametrize(
    ("gives", "where"),
    [
        ({"root": "cpu io memory pids"}, "/, "),
        ({"user": "cpu memory pids"}, "/user.slice, "),
        ({"service": "memory pids"}, "/user.slice/user-1000.slice/user@1000.service, "),
        ({"slice": "memory pids"}, "/user.slice/user-1000.slice/user@1000.service/app.slice, "),
    ],
    ids=str,
)
def test_a_controller_that_a_user_manager_was_not_delegated_stops_on_the_way_and_systemd_mends_it(
    cgroups, gives, where
):
    found, fix = controllers.missing("cpuset", user_session(cgroups, **gives))
    assert found.startswith(f"the controller cpuset stops at {where}")
    assert fix.startswith("have systemd delegate it: systemctl edit user@.service")


@pytest.mark.parametrize("where", ["/system.slice", "/system.slice/job.service"])
def test_a_controller_that_stops_in_a_unit_of_the_system_is_not_the_user_managers_business(cgroups, where):
    cgroups.add("/", has=ALL, gives=ALL, cgroup_type=None)
    cgroups.add("/system.slice", has=ALL, gives="" if where == "/system.slice" else ALL)
    found, fix = controllers.missing("cpuset", cgroups.add("/system.slice/job.service", has=ALL))
    assert found == f"the controller cpuset stops at {where}, whose cgroup.subtree_control does not name it"
    assert fix == "have systemd delegate it: systemctl edit job.service, [Service] Delegate=yes; and restart it"


def test_a_controller_that_nobody_gave_on_is_mended_by_root(cgroups):
    cgroups.add("/", has=ALL, gives=ALL, cgroup_type=None)
    at = cgroups.add("/jobs", has=ALL, gives="memory")
    found, fix = controllers.missing("pids", cgroups.add("/jobs/a", has="memory"))
    assert found == "the controller pids stops at /jobs, whose cgroup.subtree_control does not name it"
    assert fix.startswith(f"as root: echo +pids > {at.directory}/cgroup.subtree_control; then likewise")


def test_a_controller_stops_where_processes_are(cgroups):
    cgroups.add("/", has=ALL, gives=ALL, holds="1", cgroup_type=None)
    cgroups.add("/jobs", has=ALL, holds="17")
    found, fix = controllers.missing("memory", cgroups.add("/jobs/a"))
    assert found == "the controller memory stops at /jobs, which holds processes itself and so cannot give it on"
    assert "move_caller=True" in fix


def test_processes_in_the_root_stop_nothing(cgroups):
    root = cgroups.add("/", has=ALL, holds="1", cgroup_type=None)
    found, fix = controllers.missing("memory", root)
    assert found == "the controller memory stops at /, whose cgroup.subtree_control does not name it"
    assert fix.startswith("as root: echo +memory > ")


def test_a_controller_that_the_namespace_was_not_given_is_the_hosts_to_give(cgroups, proc_cgroups):
    proc_cgroups(UNIFIED)
    cgroups.add("/", has="cpu pids", gives="cpu pids")
    found, fix = controllers.missing("memory", cgroups.add("/a", has="cpu pids"))
    assert found == f"the cgroup namespace that ends at {cgroups.root} was not given the controller memory"
    assert "delegate it to this container" in fix


def test_a_controller_that_stops_nowhere_is_told_too(cgroups):
    cgroups.add("/", has=ALL, gives=ALL, cgroup_type=None)
    found, _fix = controllers.missing("memory", cgroups.add("/a", has=ALL, gives=ALL))
    assert found == "the controller memory is given to /a, and not taken there"


def test_the_error_says_what_was_asked_where_it_stops_and_what_mends_it(cgroups, proc_cgroups):
    proc_cgroups(RASPBERRY_PI)
    root = cgroups.add("/", has="cpu pids", cgroup_type=None)
    error = controllers.unsupported("limit memory_max", "memory", root)
    assert isinstance(error, Unsupported)
    assert (error.feature, error.found, error.fix) == ("limit memory_max", *controllers.missing("memory", root))
