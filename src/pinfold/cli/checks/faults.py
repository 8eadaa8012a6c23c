"""Faults of the kernel that pinfold works around, by release: what cannot be probed without being hit by it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

from pinfold.cli.checks import Check
from pinfold.proc import read

# b69bb476dee9, "cgroup: fix race between fork and cgroup.kill": in 6.14, and by the announcements of the stable
# releases in these. No other series that has cgroup.kill was still maintained then (February 2025).
_RACE_FIXED: Final = (6, 14)
_RACE_FIXED_IN_SERIES: Final = {(5, 15): 179, (6, 1): 129, (6, 6): 79, (6, 12): 16, (6, 13): 4}
_RMDIR_TRAILS: Final = (6, 19)


def series(release: str) -> tuple[int, int] | None:
    """The first two numbers of a release, as uname(2) has it."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else None


def patch(release: str, version: str, signature: str | None = None) -> int | None:
    """The third number: the stable release that a kernel is made from; None if it does not say.

    Debian names its packages 6.1.0-N and has the stable release in uname(2)'s `version`; Ubuntu has it in
    /proc/version_signature. What follows a 0 is elsewhere (RHEL) no word about backports.
    """
    of = series(release)
    if of is None:
        return None
    number = re.compile(rf"(?<![\d.]){of[0]}\.{of[1]}\.(\d+)")
    for text in (signature or "", version, release):
        if found := [int(each) for each in number.findall(text) if each != "0"]:
            return found[-1]
    return None


def fork_race(of: tuple[int, int], stable: int | None) -> Check:
    """Whether cgroup.kill may miss a process that is being forked."""
    name = "fork during kill"
    fix = "take Linux 6.14 or later, or 6.13.4, 6.12.16, 6.6.79, 6.1.129, 5.15.179 of the stable series"
    mended = "pinfold kills again until the cgroup is empty"
    if of >= _RACE_FIXED:
        return Check(name, True, "mended in Linux 6.14: cgroup.kill misses no fork")
    fixed = _RACE_FIXED_IN_SERIES.get(of)
    if fixed is not None and stable is not None and stable >= fixed:
        return Check(name, True, f"mended in Linux {of[0]}.{of[1]}.{fixed}: cgroup.kill misses no fork")
    if fixed is not None and stable is not None:
        return Check(name, False, f"cgroup.kill can miss a process that is being forked; {mended}", fix=fix)
    found = f"cgroup.kill may miss a process that is being forked, unless the distribution has mended it; {mended}"
    return Check(name, False, found, fix=fix)


def leaders() -> Check:
    """The one fault that all known releases have (up to 6.18, where it was measured)."""
    found = (
        "cgroup.kill misses a process whose first thread has exited, in all releases that are known; pinfold then "
        "signals each process by itself"
    )
    return Check("threads without leader", False, found)


def rmdir_trails(of: tuple[int, int]) -> Check:
    """Whether a cgroup that says it is empty can still be in use for a moment."""
    name = "rmdir after populated 0"
    if of < _RMDIR_TRAILS:
        return Check(name, True, "at once (before Linux 6.19)")
    return Check(name, False, "may have to wait for it (from Linux 6.19); pinfold tries again for up to a second")


def look() -> Iterator[Check]:
    """Those that this kernel has, by its own words."""
    kernel = os.uname()
    of = series(kernel.release) or (0, 0)
    yield fork_race(of, patch(kernel.release, kernel.version, read("/proc/version_signature")))
    yield leaders()
    yield rmdir_trails(of)
