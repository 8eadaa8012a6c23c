"""Which container this is, by its marks, and the one fix that is right there."""

from __future__ import annotations

import pytest

from pinfold.cgroup import advice

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
JOB = {"GITHUB_ACTIONS": "true"}
NOBODY_INSIDE = "Name:\tx\nCapEff:\t00000000a80425fb\n"  # what Docker leaves to root
ROOT = "Name:\tx\nCapEff:\t000001ffffffffff\n"
WHOLE_HOST = "         0          0 4294967295\n"


@pytest.mark.parametrize(
    ("files", "environ", "expected"),
    [
        ([], {}, None),
        (["/.dockerenv"], {}, "docker"),
        (["/run/.containerenv"], {}, "podman"),
        (["/run/.containerenv", "/.dockerenv"], {}, "podman"),
        ([], POD, "kubernetes"),
        (["/.dockerenv"], POD, "kubernetes"),
        ([], JOB, "github"),
        (["/.dockerenv"], JOB, "docker"),
        ([], {"GITHUB_ACTIONS": "false"}, None),
    ],
)
def test_the_kind_is_told_by_its_marks(files, environ, expected):
    assert advice.kind(files.__contains__, environ) == expected


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (None, "mount -t cgroup2 none /sys/fs/cgroup"),
        ("docker", "--security-opt writable-cgroups=true"),
        ("podman", "--security-opt unmask=/sys/fs/cgroup"),
        ("kubernetes", "cgroup_writable = true"),
        ("github", "sudo systemd-run"),
    ],
)
def test_the_fix_is_that_of_the_kind_alone_in_one_line(kind, words):
    fix = advice.mount_fix(kind, mounting=False)
    others = {"mount -t", "writable-cgroups", "unmask=", "cgroup_writable", "systemd-run"}
    assert words in fix
    assert "\n" not in fix
    assert sum(other in fix for other in others) == 1


@pytest.mark.parametrize("kind", [None, "docker", "podman", "kubernetes", "github"])
def test_who_may_mount_needs_no_other_container(kind):
    assert advice.mount_fix(kind, mounting=True) == "mount it: mount -t cgroup2 none /sys/fs/cgroup"


@pytest.mark.parametrize(
    ("status", "uid_map", "expected"),
    [
        (ROOT, WHOLE_HOST, True),
        (NOBODY_INSIDE, WHOLE_HOST, False),
        (ROOT, "         0       1000          1\n", False),
        ("", "", False),
        (ROOT, "", False),
    ],
)
def test_mounting_takes_the_capability_over_the_whole_host(status, uid_map, expected):
    assert advice.may_mount(status, uid_map) is expected


def test_a_ci_job_is_delegated_to_as_a_service_and_others_by_a_scope():
    assert "sudo systemd-run --wait" in advice.delegation_fix("github", 1001)
    for kind in (None, "docker"):
        fix = advice.delegation_fix(kind, 1001)
        assert "systemd-run --user --scope -p Delegate=yes" in fix
        assert "chown 1001 DIR DIR/cgroup.procs" in fix
