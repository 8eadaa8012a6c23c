"""Features of the kernel that runs make use of, each with its first release, and looked for rather than reckoned."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from typing import Final

from pinfold.cgroup import places
from pinfold.cgroup.controllers import given
from pinfold.cli.checks import Check
from pinfold.cli.checks.trial import Trial
from pinfold.proc import read
from pinfold.runs.reap import remembered

# File in the cgroup of a run, first release, its controller, what is missing without it.
FILES: Final = (
    ("cgroup.kill", "5.14", None, "nothing can be killed as a whole"),
    ("cgroup.freeze", "5.2", None, "what forks while it is killed one by one cannot be held"),
    ("memory.peak", "5.19", "memory", "the most memory used stays unknown"),
    ("memory.events.local", "5.2", "memory", "at whose limit something was killed is guessed"),
    ("memory.oom.group", "4.19", "memory", "a job that is out of memory is killed by halves"),
    ("memory.swap.peak", "6.5", "memory", "the most swap used stays unknown"),
    ("pids.peak", "6.1", "pids", "the most processes stay unknown"),
)
_NEEDED: Final = ("cgroup.kill",)
# Mount option of the hierarchy, first release, what is missing without it.
OPTIONS: Final = (
    ("nsdelegate", "4.13", "a container's processes could be moved out of its cgroup namespace"),
    ("memory_recursiveprot", "5.7", "a protection such as memory.low is not shared by the cgroups below"),
)
_CONFIGS: Final = ("/boot/config-{}", "/lib/modules/{}/config")


def files(place: places.Place) -> Iterator[Check]:
    """The files of cgroups, in one that runs are made in."""
    there = given(place.directory)
    for name, since, controller, without in FILES:
        needed = name in _NEEDED
        # What the cgroups below have of a controller, the place itself has if it was given it.
        if os.path.exists(os.path.join(place.directory, name)):
            yield Check(name, True, "there", needed, since=since)
        elif controller is not None and controller not in there:
            yield Check(name, False, f"cannot be told without the controller {controller}", since=since)
        elif name == "memory.swap.peak" and read("/proc/swaps") is None:
            yield Check(name, False, "this kernel does not swap (CONFIG_SWAP)", since=since)
        else:
            yield Check(name, False, f"not there: {without}", needed, fix=f"take Linux {since}", since=since)


def births(trial: Trial) -> Iterator[Check]:
    """How a run came into its cgroup, and whether that carries our record."""
    if trial.plain is not None:
        born = trial.plain.placement.entry == "clone3"
        yield Check(
            "clone3 into a cgroup",
            born,
            "commands are born in their cgroup"
            if born
            else "refused: each command is moved into its cgroup, which takes 7-20 ms",
            fix=None
            if born
            else "let the seccomp filter pass clone3 (Docker from 20.10.10, libseccomp from 2.5.2), or take Linux 5.7",
            since="5.7",
        )
    if trial.fold is not None:
        has_record = trial.fold.has_owner_record
        yield Check(
            "user.* attributes",
            has_record,
            "cgroups carry a record of their owner"
            if has_record
            else "refused: cgroups carry no record of their owner",
            fix=None if has_record else "take Linux 5.7",
            since="5.7",
        )


def pidfds() -> Iterator[Check]:
    """pidfds, tried on a child of ours: one that was reaped tells its status only where the kernel keeps it."""
    child = os.fork()
    if child == 0:
        os._exit(7)
    try:
        fd = os.pidfd_open(child)
    except OSError as error:
        os.waitpid(child, 0)
        found = f"refused ({error.strerror})"
        yield Check("pidfd_open", False, found, True, fix="let the seccomp filter pass pidfd_open", since="5.3")
        return
    try:
        os.waitpid(child, 0)
        kept = remembered(fd) == 7
    finally:
        os.close(fd)
    yield Check("pidfd_open", True, "there", needed=True, since="5.3")
    lost = "not there: a status that the host program takes away is lost"
    fix = None if kept else "take Linux 6.15, or do not wait for any child in the host program"
    yield Check("PIDFD_GET_INFO", kept, "tells the status of a reaped child" if kept else lost, fix=fix, since="6.15")


def pressure(place: places.Place | None) -> Iterator[Check]:
    """PSI (psi.rst): whether the kernel has it, had it switched off at boot, or in this cgroup (Linux 6.1)."""
    name, since = "pressure (PSI)", "4.20"
    if read("/proc/pressure/cpu") is None:
        if _configured("CONFIG_PSI") is False:
            yield Check(
                name, False, "this kernel was built without it", fix="take a kernel with CONFIG_PSI", since=since
            )
        else:
            yield Check(name, False, "not measured: disabled at boot", fix="boot with psi=1", since=since)
    elif place is not None and not os.path.exists(os.path.join(place.directory, "cpu.pressure")):
        switch = os.path.join(os.path.dirname(place.directory), "cgroup.pressure")
        yield Check(name, False, "switched off for cgroups here", fix=f"as root: echo 1 > {switch}", since=since)
    else:
        yield Check(name, True, "measured", since=since)


def _configured(option: str) -> bool | None:
    """Whether the kernel was built with an option; None: nobody says."""
    release = os.uname().release
    texts = [read(path.format(release)) for path in _CONFIGS]
    try:
        import gzip

        with gzip.open("/proc/config.gz", "rt", encoding="ascii", errors="replace") as file:
            texts.append(file.read())
    except OSError:
        pass
    for text in texts:
        if text is not None:
            return f"\n{option}=y" in text
    return None


def mount_options() -> Iterator[Check]:
    """The options that the hierarchy was mounted with; they can be seen from any cgroup namespace."""
    mounts = places.mounts(read("/proc/self/mountinfo") or "")
    if not mounts:
        return
    mount = mounts[-1]
    # A remount sets all of them: those that are there have to be named again.
    options = ",".join(["remount", *sorted(mount.options - {"rw", "ro"} | {name for name, *_ in OPTIONS})])
    fix = f"as root on the host: mount -o {options} {shlex.quote(mount.point)}"
    for name, since, without in OPTIONS:
        there = name in mount.options
        found = "the hierarchy is mounted with it" if there else f"not a mount option here: {without}"
        yield Check(name, there, found, fix=None if there else fix, since=since)
