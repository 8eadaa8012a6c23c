"""Whose cgroups are ours to divide, on fake cgroups; with systemd as the manager and without."""

from __future__ import annotations

import errno
import os

import pytest

from pinfold.cgroup import delegation, names
from pinfold.cgroup.delegation import move, move_to_leaf, place_for_runs, unit_of
from pinfold.errors import CgroupError

HAS = "cpu io memory pids"
UNLIMITED = {"memory_max": "max\n", "memory_high": "max\n", "pids_max": "max\n", "cpu_max": "max 100000\n"}
SESSION = "/user.slice/user-1000.slice/session-2.scope"
SERVICE = "/system.slice/job.service"


@pytest.fixture
def host(cgroups, monkeypatch):
    """`host(own, systemd)`: this process is in the cgroup `own`."""

    def set_up(own, *, systemd):
        monkeypatch.setattr(delegation, "systemd_is_running", lambda: systemd)
        monkeypatch.setattr(delegation, "delegated_place", lambda: cgroups.place(own))
        return cgroups

    cgroups.add("/", has=HAS, gives=HAS, holds="1", cgroup_type=None)
    return set_up


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        (SESSION, "session-2.scope"),
        (f"{SERVICE}/workers/3", "job.service"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope/runs", "x.scope"),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "init.scope"),
        ("/user.slice/user-1000.slice", None),
        ("/a.service.d/b", None),
        ("/", None),
    ],
)
def test_a_cgroup_belongs_to_the_innermost_unit_on_its_path(path, unit):
    assert unit_of(path) == unit


@pytest.mark.parametrize("systemd", [False, True])
def test_the_nearest_cgroup_is_taken_if_it_can_give(host, systemd):
    host(f"{SERVICE}/runner", systemd=systemd).add(f"{SERVICE}/runner", has=HAS)
    assert place_for_runs().path == f"{SERVICE}/runner"


@pytest.mark.parametrize("systemd", [False, True])
def test_one_that_holds_processes_is_left_for_the_nearest_above_that_can_give(host, systemd):
    cgroups = host(f"{SERVICE}/a/b", systemd=systemd)
    cgroups.add("/system.slice", has=HAS, gives=HAS)
    cgroups.add(SERVICE, has=HAS, gives=HAS)
    cgroups.add(f"{SERVICE}/a", has=HAS, holds="17", **UNLIMITED)
    cgroups.add(f"{SERVICE}/a/b", has=HAS, holds="18", **UNLIMITED)
    assert place_for_runs().path == SERVICE


@pytest.mark.parametrize(("systemd", "path"), [(False, "/system.slice"), (True, SERVICE)])
def test_where_systemd_runs_nothing_above_our_unit_is_taken(host, systemd, path):
    cgroups = host(SERVICE, systemd=systemd)
    cgroups.add("/system.slice", has=HAS, gives=HAS)
    cgroups.add(SERVICE, has=HAS, holds="17", **UNLIMITED)
    assert place_for_runs().path == path


@pytest.mark.parametrize(("systemd", "path"), [(False, "/"), (True, "/a.slice")])
def test_where_systemd_runs_a_cgroup_of_no_unit_is_no_way_up(host, systemd, path):
    host("/a.slice", systemd=systemd).add("/a.slice", has=HAS, holds="17", **UNLIMITED)
    assert place_for_runs().path == path


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("memory_max", "1073741824\n"), ("memory_high", "0\n"), ("memory_swap_max", "0\n"), ("pids_max", "100\n"),
        ("cpu_max", "50000 100000\n"),
    ],
)  # fmt: skip
def test_a_cgroup_that_carries_a_limit_is_not_left(host, file, text):
    """Runs elsewhere would be out of a limit that is meant for us."""
    host("/a", systemd=False).add("/a", has=HAS, holds="17", **{**UNLIMITED, file: text})
    assert place_for_runs().path == "/a"


def test_a_limit_on_the_way_up_is_not_passed_either(host):
    cgroups = host("/a/b", systemd=False)
    cgroups.add("/a", has=HAS, holds="17", **{**UNLIMITED, "pids_max": "100\n"})
    cgroups.add("/a/b", has=HAS, holds="18", **UNLIMITED)
    assert place_for_runs().path == "/a/b"  # nearest, as none of those within the limit can give


def test_a_cgroup_that_we_may_not_divide_is_no_place(host, monkeypatch):
    cgroups = host("/a/b", systemd=False)
    cgroups.add("/a", has=HAS, gives=HAS)
    cgroups.add("/a/b", has=HAS, holds="18", **UNLIMITED)
    assert place_for_runs().path == "/a"
    monkeypatch.setattr(delegation, "may_make_cgroups", lambda directory: not directory.endswith("/a"))
    assert place_for_runs().path == "/a/b"


def test_without_systemd_every_cgroup_is_ours(host):
    place = host("/a", systemd=False).add("/a")
    assert delegation.is_delegated(place)


def attribute(value):
    def read(path, name):
        assert name == "user.delegate"
        if value is None:
            raise OSError(errno.ENODATA, "No data available")
        return value

    return read


@pytest.mark.parametrize(
    ("value", "uid", "expected"),
    [(b"1", 0, True), (b"0", 0, False), (None, 0, False), (None, 1000, True), (b"1", 1000, True)],
)
def test_a_unit_of_systemd_is_delegated_if_it_is_marked_or_a_users(host, monkeypatch, value, uid, expected):
    place = host("/a", systemd=True).add("/a")
    monkeypatch.setattr(os, "getxattr", attribute(value))
    found = os.stat(place.directory)
    monkeypatch.setattr(os, "stat", lambda _path: os.stat_result((*found[:4], uid, *found[5:10])))
    assert delegation.is_delegated(place) is expected


def test_processes_are_moved_one_by_one_into_the_leaf(cgroups):
    place = cgroups.add("/a", holds="17 18 19")
    cgroups.add("/a/x")
    move(place, "x", [17, 19])
    assert cgroups.written == [("/a/x/cgroup.procs", "17"), ("/a/x/cgroup.procs", "19")]
    assert (cgroups.text("/a", "cgroup.procs"), cgroups.text("/a/x", "cgroup.procs")) == ("18\n", "17\n19\n")


def test_a_process_that_has_ended_is_no_error_and_stops_no_other(cgroups):
    place = cgroups.add("/a", holds="17 18")
    cgroups.add("/a/x")
    cgroups.refuses["17"] = ProcessLookupError(errno.ESRCH, "No such process")
    move(place, "x", [17, 18])
    assert cgroups.text("/a/x", "cgroup.procs") == "18\n"


def test_a_refusal_says_file_and_process(cgroups):
    place = cgroups.add("/")
    cgroups.add("/x")
    cgroups.refuses["17"] = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(CgroupError, match=r"write /x/cgroup\.procs=17: Permission denied"):
        move(place, "x", [17])


def test_a_leaf_that_cannot_be_made_is_told_by_its_path(cgroups):
    place = cgroups.add("/a")
    (cgroups.directory("/a") / "x").symlink_to("/")
    with pytest.raises(CgroupError, match="mkdir /a/x: "):
        move(place, "x", [17])


def test_everything_of_a_cgroup_goes_to_the_leaf(cgroups):
    place = cgroups.add("/a", holds="17 18")
    cgroups.add(f"/a/{names.LEAF}")
    move_to_leaf(place)
    assert (cgroups.text("/a", "cgroup.procs"), cgroups.text(f"/a/{names.LEAF}", "cgroup.procs")) == ("", "17\n18\n")


def test_processes_of_another_pid_namespace_are_not_ours_to_move(cgroups):
    place = cgroups.add("/a", holds="0 17 0")
    cgroups.add(f"/a/{names.LEAF}")
    move_to_leaf(place)
    assert cgroups.written == [(f"/a/{names.LEAF}/cgroup.procs", "17")]


def test_processes_that_fork_for_ever_are_given_up(cgroups, monkeypatch):
    place = cgroups.add("/a", holds="17")
    monkeypatch.setattr(delegation, "_MOVE_BOUND", -1.0)
    with pytest.raises(CgroupError, match="empty /a: its processes fork faster than they can be moved"):
        move_to_leaf(place)


@pytest.mark.parametrize("systemd", [False, True])
def test_a_run_of_ours_is_not_stepped_out_of(host, systemd):
    """The kill of the outer run has to reach what is run in it."""
    base = f"{SERVICE}/pinfold-0123456789ab"
    run = f"{base}/run-0123456789abcdef"
    cgroups = host(run, systemd=systemd)
    cgroups.add(SERVICE, has=HAS, gives=HAS)
    cgroups.add(base, has=HAS, gives=HAS, **UNLIMITED)
    cgroups.add(run, has=HAS, holds="17", **UNLIMITED)
    assert place_for_runs().path == run
