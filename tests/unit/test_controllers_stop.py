"""Where a controller stops on the way down, and the fix for that place; on directories that play cgroups."""

from __future__ import annotations

import pytest

from pinfold.cgroup import controllers
from pinfold.cgroup.files import Hierarchy
from pinfold.cgroup.places import Place


def a_way(tmp_path, *names, given="", procs=""):
    """Nested directories that play cgroups with all controllers available, `given` by the topmost one on."""
    directory = tmp_path
    for index, name in enumerate(["", *names]):
        directory = directory / name if name else directory
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.controllers").write_text("cpu io memory pids hugetlb" if index == 0 else given)
        (directory / "cgroup.subtree_control").write_text(given)
        (directory / "cgroup.procs").write_text(procs)
        if index:
            (directory / "cgroup.type").write_text("domain")
    path = "/" + "/".join(names)
    return Place(str(directory), path, Hierarchy(tmp_path.stat().st_dev))


@pytest.mark.parametrize(
    ("names", "fix"),
    [
        (["user.slice", "user-7.slice", "user@7.service", "pinfold.slice"], "systemctl edit user@.service"),
        (["system.slice", "x.service", "pinfold-1"], "systemctl edit x.service, [Service] Delegate=yes"),
        (["system.slice", "x.scope", "pinfold-1"], "systemd-run --scope -p Delegate=yes"),
        (["elsewhere", "pinfold-1"], "as root: echo +memory > "),
    ],
)
def test_the_fix_is_that_of_the_unit_that_it_is_missing_in(tmp_path, names, fix):
    found, mends = controllers.missing("memory", a_way(tmp_path, *names))
    assert found == "the controller memory stops at /, whose cgroup.subtree_control does not name it"
    assert fix in mends


def test_what_systemd_does_not_manage_is_given_by_hand_and_all_the_way_down(tmp_path):
    _found, mends = controllers.missing("hugetlb", a_way(tmp_path, "system.slice", "x.scope"))
    assert mends.startswith(
        f"as root: echo +hugetlb > {tmp_path}/cgroup.subtree_control; then likewise in each cgroup below"
    )


@pytest.mark.parametrize(
    ("hierarchies", "root", "words", "fix"),
    [
        ({"blkio": 7}, True, "is bound to cgroup v1 on this host", "boot with cgroup_no_v1=all"),
        ({"blkio": 7}, False, "is bound to cgroup v1 on this host", "boot with cgroup_no_v1=all"),
        ({"blkio": 0}, False, "was not given the controller io", "have the host delegate it to this container"),
        (
            {"blkio": 0},
            True,
            "is disabled on this host",
            "boot without cgroup_disable=blkio; a Raspberry Pi, whose firmware says that, with cgroup_enable=blkio",
        ),
        ({}, True, "this kernel has no controller io", "take one that has it, booted without cgroup_disable=blkio"),
    ],
)
def test_a_controller_that_is_not_even_at_the_top_is_explained(tmp_path, monkeypatch, hierarchies, root, words, fix):
    monkeypatch.setattr(controllers, "_v1_hierarchies", lambda: hierarchies)
    place = a_way(tmp_path, "a")
    (tmp_path / "cgroup.controllers").write_text("")
    if not root:
        (tmp_path / "cgroup.type").write_text("domain")
    found, mends = controllers.missing("io", place)
    assert words in found
    assert mends.startswith(fix)


def test_the_controllers_of_v1_are_named(monkeypatch):
    monkeypatch.setattr(controllers, "_v1_hierarchies", lambda: {"cpu": 1, "pids": 0, "blkio": 7})
    assert controllers.bound_to_v1() == ["cpu", "blkio"]
