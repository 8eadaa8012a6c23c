"""Where cgroup2 is mounted, which cgroup is ours, and where we may make others."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pinfold import late
from pinfold.cgroup import advice
from pinfold.cgroup.files import Hierarchy
from pinfold.errors import NoCgroup2, NotDelegated
from pinfold.proc import read_text
from pinfold.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Final


KERNEL_FLOOR: Final = (5, 14)  # cgroup.kill


class Mount(NamedTuple):
    """A cgroup2 mount: `root` is the cgroup that its mount point shows, as /proc/self/mountinfo has it."""

    point: str
    root: str
    device: int
    read_only: bool
    options: frozenset[str] = frozenset()  # of the whole hierarchy, such as nsdelegate


class Place(NamedTuple):
    """A cgroup directory: where it is in the file system, and its path as /proc/PID/cgroup writes it."""

    directory: str
    path: str
    hierarchy: Hierarchy


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash in octal (proc_pid_mountinfo(5))."""
    if "\\" not in text:
        return text
    with late.lock:
        import re

    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), text)


def mounts(mountinfo: str) -> list[Mount]:
    """The cgroup2 mounts in a mountinfo text. Hosts with v1 beside it mount it lower down."""
    found = []
    for line in mountinfo.split("\n"):
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] != "cgroup2":
            continue
        _id, _parent, device, root, point, options, *_ = before.split(" ")
        major, minor = device.split(":")
        found.append(
            Mount(
                point=_unescape(point),
                root=_unescape(root),
                device=os.makedev(int(major), int(minor)),
                read_only="ro" in options.split(","),
                options=frozenset(after.split(" ")[2].split(",")) if after.count(" ") > 1 else frozenset(),
            )
        )
    return found


def own_path(proc_cgroup: str) -> str | None:
    """Our cgroup v2 path from a /proc/PID/cgroup text (the line `0::`), or None."""
    for line in proc_cgroup.split("\n"):
        if line.startswith("0::"):
            return line[3:].removesuffix(" (deleted)")
    return None


def locate(mount: Mount, path: str) -> str | None:
    """The directory that shows the cgroup `path` below this mount, or None if it does not show it."""
    # Beyond the root of our cgroup namespace there are no names (cgroup_namespaces(7)).
    if any(p == "/.." or p.startswith("/../") for p in (mount.root, path)):
        return None
    relative = os.path.relpath(path, mount.root)
    if relative == ".." or relative.startswith("../"):
        return None
    return os.path.normpath(os.path.join(mount.point, relative))


def own_place() -> Place:
    """The cgroup this process is in. Raises NoCgroup2."""
    return place_of("self")


def place_of(pid: int | str) -> Place:
    """The cgroup that a process is in. Raises NoCgroup2, and OSError if there is no such process."""
    return place_at(own_path(read_text(f"/proc/{pid}/cgroup")))


def place_at(path: str | None) -> Place:
    """The cgroup of this path, as /proc/PID/cgroup writes it; None: there is no cgroup v2. Raises NoCgroup2."""
    found = mounts(read_text("/proc/self/mountinfo"))
    if not found or path is None:
        raise NoCgroup2("cgroup v2", "not mounted", advice.mount_fix_here())
    # A later mount covers an earlier one at the same point; so may one of another kind.
    visible = {mount.point: mount for mount in found}.values()
    for mount in sorted(visible, key=lambda m: m.read_only):
        directory = locate(mount, path)
        if directory and _is_on(directory, mount.device):
            if mount.read_only:
                fix = advice.mount_fix_here(read_only=mount.point)
                raise NoCgroup2("cgroup v2", f"mounted read-only at {mount.point}", fix)
            return Place(directory=directory, path=path, hierarchy=Hierarchy(mount.device))
    where = ", ".join(m.point for m in found)
    hidden = f"our own cgroup {path} is not visible in the mount at {where}"
    raise NoCgroup2("cgroup v2", hidden, advice.mount_fix_here())


def _is_on(directory: str, device: int) -> bool:
    try:
        return os.stat(directory).st_dev == device
    except OSError:
        return False


def ancestors(place: Place) -> Iterator[Place]:
    """The cgroups above one, as far up as the mount shows them."""
    directory, path = place.directory, place.path
    while path not in ("/", "") and os.path.exists(os.path.join(os.path.dirname(directory), "cgroup.procs")):
        directory, path = os.path.dirname(directory), os.path.dirname(path)
        yield Place(directory=directory, path=path, hierarchy=place.hierarchy)


def may_make_cgroups(directory: str) -> bool:
    """Whether the delegation rules let us start processes in cgroups below: cgroup-v2.rst, "Delegation"."""
    return os.access(directory, os.W_OK | os.X_OK) and os.access(os.path.join(directory, "cgroup.procs"), os.W_OK)


def delegated_place() -> Place:
    """The nearest cgroup, from our own upwards, that we may make cgroups in. Raises NoCgroup2, NotDelegated."""
    own = own_place()
    for place in (own, *ancestors(own)):
        if may_make_cgroups(place.directory):
            return place
    raise NotDelegated(
        "a cgroup of our own",
        f"uid {os.geteuid()} may not make cgroups in {own.directory} or above",
        advice.delegation_fix(advice.kind(), os.geteuid()),
    )
