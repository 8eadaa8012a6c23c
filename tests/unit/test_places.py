"""Where cgroup2 is mounted and which cgroup is ours, on mountinfo texts of real hosts."""

from __future__ import annotations

import os

import pytest

from pinfold.cgroup import places
from pinfold.cgroup.places import Mount, locate, mounts, own_path
from pinfold.errors import NoCgroup2, NotDelegated

HYBRID = """\
23 27 0:22 / /sys rw,relatime - sysfs sysfs rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = """\
24 30 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 master:2 - cgroup2 cgroup2 rw,nsdelegate
"""
DOCKER = """\
1204 1190 0:30 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot
"""
BIND_OF_A_SUBTREE = """\
1204 1190 0:30 /docker/4f5e /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw
"""
V1_ONLY = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
DECOY = "99 1 0:99 / /mnt/cgroup2 rw - tmpfs cgroup2 rw\n"


def a_mount(root="/", point="/sys/fs/cgroup"):
    return Mount(point=point, root=root, device=1, read_only=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HYBRID, [Mount(point="/sys/fs/cgroup/unified", root="/", device=os.makedev(0, 38), read_only=False)]),
        (UNIFIED, [Mount(point="/sys/fs/cgroup", root="/", device=os.makedev(0, 30), read_only=False)]),
        (DOCKER, [Mount(point="/sys/fs/cgroup", root="/", device=os.makedev(0, 30), read_only=True)]),
        (BIND_OF_A_SUBTREE, [Mount(point="/sys/fs/cgroup", root="/docker/4f5e", device=30, read_only=False)]),
        (V1_ONLY, []),
        (DECOY, []),
        ("", []),
    ],
    ids=["hybrid", "unified", "docker", "bind", "v1", "decoy", "none"],
)
def test_the_cgroup2_mounts_are_found_by_their_type(text, expected):
    assert [mount._replace(options=frozenset()) for mount in mounts(text)] == expected


def test_several_mounts_are_all_found_in_their_order():
    assert [m.point for m in mounts(HYBRID + UNIFIED)] == ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]


def test_the_options_are_those_of_the_hierarchy():
    (mount,) = mounts(DOCKER)
    assert mount.options == {"rw", "nsdelegate", "memory_recursiveprot"}


def test_octal_escapes_are_undone():
    (mount,) = mounts(r"1 2 0:9 /a\134b /mnt/with\040space\011tab\012nl rw - cgroup2 none rw")
    assert (mount.point, mount.root) == ("/mnt/with space\ttab\nnl", "/a\\b")


@pytest.mark.parametrize("odd", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"], ids=ascii)
def test_only_a_newline_ends_a_line_of_mountinfo(odd):
    (mount,) = mounts(f"1 2 0:9 / /mnt/a{odd}b rw - cgroup2 none rw\n")
    assert mount.point == f"/mnt/a{odd}b"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("9:name=systemd:/\n4:memory:/process_api/de81\n0::/\n", "/"),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", "/user.slice/user-1000.slice/session-2.scope"),
        ("0::/a:b::c\n", "/a:b::c"),
        ("0::/gone (deleted)\n", "/gone"),
        ("0::/../sibling\n", "/../sibling"),
        ("9:memory:/x\n", None),
        ("10::/not-this\n", None),
        ("", None),
    ],
)
def test_our_own_path_is_on_the_line_of_hierarchy_zero(text, path):
    assert own_path(text) == path


@pytest.mark.parametrize("odd", ["\r", "\x0b", "\x0c", "\x85"], ids=ascii)
def test_a_cgroup_with_an_odd_name_cannot_pass_for_another(odd):
    """The kernel refuses only newlines in the names of cgroups."""
    assert own_path(f"4:memory:/x{odd}0::/forged\n0::/a{odd}b\n") == f"/a{odd}b"


def test_a_carriage_return_in_a_proc_file_is_no_newline(tmp_path):
    (tmp_path / "cgroup").write_bytes(b"4:memory:/x\r0::/forged\n0::/real\n")
    assert places.read_text(str(tmp_path / "cgroup")).count("\n") == 2


@pytest.mark.parametrize(
    ("root", "path", "directory"),
    [
        ("/", "/", "/sys/fs/cgroup"),
        ("/", "/a/b", "/sys/fs/cgroup/a/b"),
        ("/docker/4f5e", "/docker/4f5e", "/sys/fs/cgroup"),
        ("/docker/4f5e", "/docker/4f5e/x", "/sys/fs/cgroup/x"),
        ("/docker/4f5e", "/docker", None),
        ("/docker/4f5e", "/", None),
        ("/docker/4f5e", "/docker/4f5e2", None),
        ("/", "/..name", "/sys/fs/cgroup/..name"),
        ("/..", "/", None),
        ("/../..", "/a", None),
        ("/", "/../sibling", None),
    ],
)
def test_a_cgroup_is_located_only_in_a_mount_that_shows_it(root, path, directory):
    """A root that begins with `/..` lies outside our cgroup namespace (cgroup_namespaces(7)): nobody can tell where."""
    assert locate(a_mount(root=root), path) == directory


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Let the process be in the cgroup `path` of a host with this mountinfo; {mnt} is a temp dir, {dev} its number."""
    device = tmp_path.stat().st_dev
    dev = f"{os.major(device)}:{os.minor(device)}"

    def set_up(mountinfo: str, path: str | None):
        texts = {
            "/proc/self/mountinfo": mountinfo.format(mnt=tmp_path, dev=dev),
            "/proc/self/cgroup": "" if path is None else f"1:cpu:/elsewhere\n0::{path}\n",
        }
        monkeypatch.setattr(places, "read_text", texts.__getitem__)
        return tmp_path

    return set_up


def test_our_own_place_is_where_the_mount_shows_it(host):
    mnt = host("1 2 {dev} /pod {mnt} rw - cgroup2 none rw\n", "/pod/app")
    (mnt / "app").mkdir()
    place = places.own_place()
    assert (place.directory, place.path, place.hierarchy.device) == (str(mnt / "app"), "/pod/app", mnt.stat().st_dev)


def test_a_writable_mount_is_preferred_to_a_read_only_one(host):
    mnt = host("1 2 {dev} / {mnt}/ro ro - cgroup2 none rw\n3 2 {dev} / {mnt}/rw rw - cgroup2 none rw\n", "/")
    (mnt / "ro").mkdir()
    (mnt / "rw").mkdir()
    assert places.own_place().directory == str(mnt / "rw")


@pytest.mark.parametrize(
    ("mountinfo", "path", "found"),
    [
        (V1_ONLY, "/", "not mounted"),
        ("1 2 {dev} / {mnt} rw - cgroup2 none rw\n", None, "not mounted"),
        ("1 2 {dev} / {mnt} ro - cgroup2 none rw\n", "/", "mounted read-only at"),
        ("1 2 {dev} /pod {mnt} rw - cgroup2 none rw\n", "/", "not visible"),
        ("1 2 {dev} / {mnt} rw - cgroup2 none rw\n", "/gone", "not visible"),
        ("1 2 0:9 / {mnt} rw - cgroup2 none rw\n", "/", "not visible"),  # something else covers it
        ("1 2 {dev} / {mnt} rw - cgroup2 none rw\n3 1 {dev} / {mnt} ro - cgroup2 none rw\n", "/", "read-only"),
    ],
)
def test_a_host_without_a_usable_mount_is_told_why(host, mountinfo, path, found):
    host(mountinfo, path)
    with pytest.raises(NoCgroup2) as caught:
        places.own_place()
    assert found in caught.value.found
    assert ("mount -o remount,rw" if "read-only" in found else "mount -t cgroup2") in caught.value.fix


def test_the_nearest_cgroup_that_is_ours_to_divide_is_taken(host, monkeypatch):
    mnt = host("1 2 {dev} / {mnt} rw - cgroup2 none rw\n", "/a/b")
    (mnt / "a" / "b").mkdir(parents=True)
    for directory in (mnt, mnt / "a", mnt / "a" / "b"):
        (directory / "cgroup.procs").write_text("")
    monkeypatch.setattr(places, "may_make_cgroups", lambda directory: directory == str(mnt / "a"))
    place = places.delegated_place()
    assert (place.directory, place.path) == (str(mnt / "a"), "/a")


def test_without_any_cgroup_of_ours_the_way_to_one_is_told(host, monkeypatch):
    mnt = host("1 2 {dev} / {mnt} rw - cgroup2 none rw\n", "/a")
    (mnt / "a").mkdir()
    asked = []
    monkeypatch.setattr(places, "may_make_cgroups", lambda directory: bool(asked.append(directory)))
    with pytest.raises(NotDelegated) as caught:
        places.delegated_place()
    assert "Delegate=yes" in caught.value.fix
    assert asked == [str(mnt / "a")]  # above the mount there is nothing to ask


def test_a_directory_without_the_file_to_move_processes_is_not_ours(tmp_path):
    assert not places.may_make_cgroups(str(tmp_path))
    (tmp_path / "cgroup.procs").write_text("")
    assert places.may_make_cgroups(str(tmp_path))
