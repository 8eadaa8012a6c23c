"""What doctor reckons without a host: releases and their faults, where a cgroup path is in systemd's tree."""

from __future__ import annotations

import pytest

from pinfold.cli.checks import Check, faults, guarded
from pinfold.cli.checks.manager import whereabouts

DEBIAN = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 (2024-11-22)"
PLAIN = "#1 SMP Tue Nov 24 03:55:01 UTC 2026"


@pytest.mark.parametrize(
    ("release", "version", "signature", "expected"),
    [
        ("6.18.44", PLAIN, None, ((6, 18), 44)),
        ("6.1.0-28-amd64", DEBIAN, None, ((6, 1), 119)),
        ("6.8.0-45-generic", "#45-Ubuntu SMP", "Ubuntu 6.8.0-45.45-generic 6.8.12", ((6, 8), 12)),
        ("5.14.0-503.el9.x86_64", PLAIN, None, ((5, 14), None)),
        ("6.14-rc3", PLAIN, None, ((6, 14), None)),
        ("6.13.4-arch1-1", PLAIN, None, ((6, 13), 4)),
        ("6.1.0-28-amd64", "built with gcc 16.1.2", None, ((6, 1), None)),
        ("odd", PLAIN, None, (None, None)),
    ],
)
def test_the_stable_release_is_found_where_distributions_say_it(release, version, signature, expected):
    assert (faults.series(release), faults.patch(release, version, signature)) == expected


@pytest.mark.parametrize(
    ("series", "stable", "ok", "words"),
    [
        ((6, 14), None, True, "mended in Linux 6.14"),
        ((7, 0), 3, True, "mended in Linux 6.14"),
        ((6, 13), 4, True, "mended in Linux 6.13.4"),
        ((6, 13), 3, False, "can miss"),
        ((6, 12), 16, True, "mended in Linux 6.12.16"),
        ((6, 12), 15, False, "can miss"),
        ((6, 6), 79, True, "mended in Linux 6.6.79"),
        ((6, 6), 78, False, "can miss"),
        ((6, 1), 129, True, "mended in Linux 6.1.129"),
        ((6, 1), 128, False, "can miss"),
        ((5, 15), 179, True, "mended in Linux 5.15.179"),
        ((5, 15), 178, False, "can miss"),
        ((6, 1), None, False, "may miss"),
        ((6, 8), 12, False, "unless the distribution has mended it"),
        ((5, 14), None, False, "unless the distribution has mended it"),
    ],
)
def test_the_fork_race_is_told_by_the_announced_stable_releases(series, stable, ok, words):
    check = faults.fork_race(series, stable)
    assert check.ok is ok
    assert words in check.found
    assert not check.needed
    assert bool(check.fix) is not ok


@pytest.mark.parametrize(("series", "ok"), [((6, 18), True), ((6, 19), False), ((7, 1), False)])
def test_rmdir_trails_from_a_release_on(series, ok):
    assert faults.rmdir_trails(series).ok is ok


USER = "/user.slice/user-7.slice"


@pytest.mark.parametrize(
    ("path", "uid", "found", "mended"),
    [
        (f"{USER}/user@7.service/app.slice/x.scope", 7, "in x.scope, within user@7.service", True),
        (f"{USER}/user@7.service", 7, "in user@7.service, within user@7.service", True),
        (f"{USER}/session-3.scope", 7, "in the login session session-3.scope, outside user@7.service", False),
        ("/system.slice/cron.service", 7, "in the system's cron.service, outside user@7.service", False),
        (f"{USER}/user@8.service/x.scope", 7, "outside user@7.service", False),
        ("/system.slice/sshd.service", 0, "in the system's sshd.service", True),
        (f"{USER}/session-3.scope", 0, "in the login session session-3.scope", True),
        ("/", 0, "in no unit", True),
        ("/", 7, "in no unit, outside user@7.service", False),
    ],
)
def test_whereabouts_are_told_from_the_path(path, uid, found, mended):
    said, fix = whereabouts(path, uid)
    assert found in said
    assert (fix is None) is mended


def test_a_fault_in_a_look_is_its_last_check():
    def strange_things():
        yield Check("one", True, "there")
        raise ValueError("odd")

    first, last = guarded("host", strange_things, needed=True)
    assert (first.name, first.group, first.ok) == ("one", "host", True)
    assert (last.name, last.ok, last.needed) == ("host: strange things", False, True)
    assert last.found == "could not be looked at: ValueError: odd"
