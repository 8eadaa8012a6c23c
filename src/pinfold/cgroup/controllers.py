"""Controllers: which a cgroup has, how they are given to those below it, and where one stops.

cgroup-v2.rst, "Controlling Controllers": a cgroup has what its parent's `cgroup.subtree_control` names; and but for the
root, one that gives controllers to its children holds no processes itself ("No Internal Process Constraint").
"""

from __future__ import annotations

import contextlib
import os

from pinfold.cgroup.files import reread
from pinfold.cgroup.places import Place, ancestors
from pinfold.errors import Unsupported
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


ACCOUNTING: Final = frozenset({"cpu", "memory", "pids", "io"})  # enabled wherever they can be: they tell what was used
_PROC_CGROUPS: Final = "/proc/cgroups"
_OF_SYSTEMD: Final = ACCOUNTING | {"cpuset"}  # others it neither gives nor takes away
# To a user manager, by name: by itself it gets cpu, memory and pids (systemd 252).
_DELEGATE_TO_USERS: Final = (
    "have systemd delegate it: systemctl edit user@.service, [Service] Delegate=cpu cpuset io memory pids"
)


def available(directory: str) -> frozenset[str]:
    """The controllers that a cgroup has (cgroup.controllers)."""
    return _words(directory, "cgroup.controllers")


def given(directory: str) -> frozenset[str]:
    """The controllers that the cgroups below it have (cgroup.subtree_control)."""
    return _words(directory, "cgroup.subtree_control")


def _words(directory: str, name: str) -> frozenset[str]:
    try:
        with open(os.path.join(directory, name), encoding="utf-8") as file:
            return frozenset(file.read().split())
    except OSError:
        return frozenset()


def is_root(directory: str) -> bool:
    """Whether it is the root of the whole hierarchy, not only of a namespace: the one cgroup without a type."""
    return not os.path.exists(os.path.join(directory, "cgroup.type"))


def holds_processes(directory: str) -> bool:
    """Whether a process, zombies included, is in this very cgroup."""
    try:
        with open(os.path.join(directory, "cgroup.procs"), encoding="utf-8") as file:
            return file.read(1) != ""
    except OSError:  # a threaded cgroup: it has no domain controllers to give
        return True


def can_give(directory: str) -> bool:
    """Whether a cgroup gives, or could be made to give, all accounting controllers it has to those below it."""
    wanted = available(directory) & ACCOUNTING
    return bool(wanted) and (wanted <= given(directory) or is_root(directory) or not holds_processes(directory))


def give(place: Place, controllers: frozenset[str]) -> frozenset[str]:
    """Enable controllers for the cgroups below, those that can be; returns all that they have then.

    One write for each, so that one refusal is not the others'. A refusal is no error here: whoever needs a controller
    that is not there gets told where it stops (`unsupported`). Nothing is written where processes are: the kernel would
    take the threaded controllers (cpu, pids) and make the cgroups below invalid for processes ("Threads").
    """
    if holds_processes(place.directory) and not is_root(place.directory):
        return given(place.directory)
    for name in sorted(controllers & available(place.directory) - given(place.directory)):
        with contextlib.suppress(OSError):
            directory = place.hierarchy.open_root(place.directory)
            try:
                fd = place.hierarchy.open(directory, "cgroup.subtree_control", os.O_WRONLY)
                try:
                    os.write(fd, f"+{name}".encode())
                finally:
                    os.close(fd)
            finally:
                os.close(directory)
    return given(place.directory)


def exchange(place: Place, file: str, text: str) -> str:
    """Write a file of a cgroup, and return what it said before. Raises OSError."""
    directory = place.hierarchy.open_root(place.directory)
    try:
        fd = place.hierarchy.open(directory, file, os.O_RDWR)
        try:
            before = reread(fd)
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    finally:
        os.close(directory)
    return before.strip()


def missing(controller: str, place: Place) -> tuple[str, str]:
    """Where on the way down to the cgroups made in `place` a controller stops, and what mends it."""
    way = [place, *ancestors(place)]
    for at in reversed(way):
        if controller in given(at.directory):
            continue
        if controller in available(at.directory):
            return _not_given(controller, at, place)
        if at is way[-1]:
            return _not_there(controller, at)
    return f"the controller {controller} is given to {place.path}, and not taken there", "report this"


def _not_given(controller: str, at: Place, place: Place) -> tuple[str, str]:
    if holds_processes(at.directory) and not is_root(at.directory):
        found = f"the controller {controller} stops at {at.path}, which holds processes itself and so cannot give it on"
        return found, "use the backend systemd, or open the fold with move_caller=True, which moves them to a leaf"
    found = f"the controller {controller} stops at {at.path}, whose cgroup.subtree_control does not name it"
    unit = next((name for name in place.path.split("/") if name.endswith((".service", ".scope"))), None)
    if unit is None or controller not in _OF_SYSTEMD:
        further = "" if at.path == place.path else "; then likewise in each cgroup below, down to ours"
        return found, f"as root: echo +{controller} > {at.directory}/cgroup.subtree_control{further}"
    if unit.startswith("user@"):
        return found, _DELEGATE_TO_USERS
    if unit.endswith(".service"):
        return found, f"have systemd delegate it: systemctl edit {unit}, [Service] Delegate=yes; and restart it"
    return found, "have systemd delegate it: start the program by systemd-run --scope -p Delegate=yes …"


def _not_there(controller: str, at: Place) -> tuple[str, str]:
    name = {"io": "blkio"}.get(controller, controller)
    hierarchies = _v1_hierarchies()
    if hierarchies.get(name, 0):  # then nobody has it to delegate
        return f"the controller {controller} is bound to cgroup v1 on this host", "boot with cgroup_no_v1=all"
    if not is_root(at.directory):
        found = f"the cgroup namespace that ends at {at.directory} was not given the controller {controller}"
        return found, "have the host delegate it to this container"
    if name in hierarchies:
        fix = f"boot without cgroup_disable={name}; a Raspberry Pi, whose firmware says that, with cgroup_enable={name}"
        return f"the controller {controller} is disabled on this host", fix
    # A controller without a v1 side is not listed there since Linux 6.14, disabled or not.
    return f"this kernel has no controller {controller}", f"take one that has it, booted without cgroup_disable={name}"


def bound_to_v1() -> list[str]:
    """The controllers that a v1 hierarchy holds, by their names there: cgroup v2 cannot have them meanwhile."""
    return [name for name, number in _v1_hierarchies().items() if number]


def _v1_hierarchies() -> dict[str, int]:
    """Controller (by v1's name) to the number of the v1 hierarchy it is bound to; 0: to none, or to v2."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(_PROC_CGROUPS, encoding="utf-8") as file:
        return {line.split()[0]: int(line.split()[1]) for line in file if not line.startswith("#")}
    return {}


def unsupported(what: str, controller: str, place: Place) -> Unsupported:
    """The error for something that needs a controller which is not there."""
    found, fix = missing(controller, place)
    return Unsupported(what, found, fix)
