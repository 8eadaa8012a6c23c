"""Delegation: which cgroups are ours to divide, and the leaf for processes that are in the way.

The rules are systemd's (CGROUP_DELEGATION.md) where it is the manager: a unit's cgroup and what is below belong to the
unit if it was delegated, everything else to systemd. Elsewhere nobody else divides cgroups, so we may step out of our
own, unless it carries a limit: that is meant for us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator

from pinfold.cgroup import names
from pinfold.cgroup.controllers import can_give
from pinfold.cgroup.files import DIRECTORY
from pinfold.cgroup.places import Place, ancestors, delegated_place, may_make_cgroups
from pinfold.errors import CgroupError
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


NO_SYSTEMD: Final = "systemd is not the manager here (no /run/systemd/system)"
_MOVE_BOUND: Final = 2.0  # seconds, for processes that fork while they are being moved
_LIMITS: Final = ("memory.max", "memory.high", "memory.swap.max", "pids.max", "cpu.max")


def systemd_is_running() -> bool:
    """Whether systemd is the manager of this host (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def place_for_runs() -> Place:
    """Where to make a fold: the nearest cgroup of ours that gives controllers to those below, else the nearest.

    Raises NoCgroup2, NotDelegated.
    """
    nearest = delegated_place()
    return next((place for place in _ours(nearest) if can_give(place.directory)), nearest)


def _ours(nearest: Place) -> Iterator[Place]:
    yield nearest
    if systemd_is_running() and unit_of(nearest.path) is None:
        return
    below = nearest
    for place in ancestors(nearest):
        of_systemd = systemd_is_running() and _is_unit(os.path.basename(below.path))
        # Above a run of pinfold its own kill would not reach what we run.
        is_run = names.is_within_a_run(below.path) and not names.is_within_a_run(place.path)
        if of_systemd or is_run or not _unlimited(below.directory) or not may_make_cgroups(place.directory):
            return
        yield place
        below = place


def _is_unit(name: str) -> bool:
    return name.endswith((".service", ".scope"))


def unit_of(path: str) -> str | None:
    """The unit that a cgroup belongs to; the innermost one, as a user manager's are within user@UID.service."""
    return next((name for name in reversed(path.split("/")) if _is_unit(name)), None)


def is_within_user_manager(path: str, uid: int) -> bool:
    """Whether the cgroup of this path is in the part of the tree that belongs to this user's manager."""
    return f"/user@{uid}.service/" in path + "/"


def _unlimited(directory: str) -> bool:
    for name in _LIMITS:
        try:
            with open(os.path.join(directory, name), encoding="utf-8") as file:
                if not file.read().startswith("max"):
                    return False
        except OSError:
            continue
    return True


def is_delegated(place: Place) -> bool:
    """Whether systemd, where it runs, has handed this cgroup, or the unit it is in, to us; elsewhere all are ours.

    The mark is an attribute (systemd 251); a user manager cannot set it on the units it delegates, but owns them.
    """
    if not systemd_is_running():
        return True
    for at in (place, *ancestors(place)):
        if _is_marked(at.directory) or os.stat(at.directory).st_uid != 0:
            return True
        if _is_unit(os.path.basename(at.path)):
            return False
    return False


def _is_marked(directory: str) -> bool:
    try:
        return os.getxattr(directory, "user.delegate") == b"1"
    except OSError:
        return False


def move(place: Place, leaf: str, pids: list[int]) -> None:
    """Move processes into a leaf below a cgroup, made where it is missing. Those that have ended are no error.

    Takes 7-20 ms after any quiet, as the kernel waits for RCU. Raises CgroupError.
    """
    path = f"{place.path.rstrip('/')}/{leaf}"
    try:
        procs = _procs_of(place, leaf)
    except OSError as error:
        raise CgroupError("mkdir", path, error) from error
    try:
        for pid in pids:
            try:
                os.write(procs, str(pid).encode())
            except ProcessLookupError:
                continue
            except OSError as error:
                raise CgroupError("write", f"{path}/cgroup.procs", error, str(pid)) from error
    finally:
        os.close(procs)


def _procs_of(place: Place, leaf: str) -> int:
    directory = place.hierarchy.open_root(place.directory)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(leaf, 0o755, dir_fd=directory)
        child = place.hierarchy.open(directory, leaf, DIRECTORY)
        try:
            return place.hierarchy.open(child, "cgroup.procs", os.O_WRONLY)
        finally:
            os.close(child)
    finally:
        os.close(directory)


def move_to_leaf(place: Place) -> None:
    """Move all processes of a cgroup into a leaf below, so that it can give controllers to others below.

    Raises CgroupError.
    """
    end = time.monotonic() + _MOVE_BOUND
    while pids := _processes(place.directory):
        if time.monotonic() > end:
            slower = TimeoutError(errno.ETIMEDOUT, "its processes fork faster than they can be moved")
            raise CgroupError("empty", place.path, slower)
        move(place, names.LEAF, pids)


def _processes(directory: str) -> list[int]:
    with open(os.path.join(directory, "cgroup.procs"), encoding="utf-8") as file:
        return [int(line) for line in file if line != "0\n"]  # 0: of another pid namespace, not ours to move
