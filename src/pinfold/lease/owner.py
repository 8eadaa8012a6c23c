"""Whether the owner of a fold lives.

If we share the owner's pid namespace, we check the process itself; its lock alone proves nothing, as forked children
keep it. Elsewhere (a container's fold seen from the host; a process that /proc hides) we check the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping

from pinfold.lease.record import OwnerRecord
from pinfold.proc import proc_is_ours, start_time
from pinfold.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Final, Literal

    State = Literal["live", "dead"]


_LOCK_BOUND: Final = 0.05  # seconds; those who probe a lock hold it for microseconds
_LOOK: Final = 0.0005


class World(NamedTuple):
    """What a pid and a start time are counted in."""

    boot_id: str
    pid_ns: int
    time_ns: int


def world() -> World:
    """That of this process."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        boot_id = file.read().strip()
    return World(boot_id, _namespace("pid"), _namespace("time"))


def _namespace(kind: str) -> int:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except FileNotFoundError:  # time namespaces: Linux 5.6
        return 0


def this_process(labels: Mapping[str, str], guard: int | None) -> OwnerRecord:
    """The record of a fold that this process opens now."""
    pid = os.getpid()
    return OwnerRecord(pid, start_time(pid) or 0, *world(), os.geteuid(), time.time(), guard, labels)


def state(owner: OwnerRecord, directory: int) -> State:
    """Whether the owner that is written on this held directory lives."""
    if owner.closed:
        return "dead"
    if is_of_our_world(owner):
        started = start_time(owner.pid)
        if started is not None or not _is_hidden(owner.pid):
            # The lock is lost at an exec, which changes neither pid nor start time.
            return "live" if started == owner.start_time and is_locked(directory) else "dead"
    return "live" if is_locked(directory) else "dead"


def is_of_our_world(owner: OwnerRecord) -> bool:
    """Whether its pids are those that we see in /proc."""
    # A container may have a boot id of its own: as a namespace, it says that the numbers are not to be compared.
    return (owner.boot_id, owner.pid_ns, owner.time_ns) == world() and proc_is_ours()


def _is_hidden(pid: int) -> bool:
    """Whether there is a process that /proc does not show us (hidepid=, proc(5)): one of our uid, if undumpable."""
    if os.path.exists(f"/proc/{pid}/stat"):
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return not os.path.exists(f"/proc/{pid}/stat")


def lock_shared(directory: int, *, bound: float = _LOCK_BOUND) -> bool:
    """Hold the lease on a cgroup: a lock on this open directory, for as long as anybody has it open.

    Many can. False: somebody who probes it has kept us from it for so many seconds.
    """
    end = time.monotonic() + bound
    while not _locked(directory, fcntl.LOCK_SH):
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK)
    return True


def unlock(directory: int) -> None:
    """End that."""
    fcntl.flock(directory, fcntl.LOCK_UN)


def is_locked(directory: int) -> bool:
    """Whether somebody holds the lease. `directory` is opened by the caller for this alone, not the holder's."""
    if not _locked(directory, fcntl.LOCK_EX):
        return True
    unlock(directory)
    return False


@contextlib.contextmanager
def without_makers(directory: int) -> Iterator[bool]:
    """Look while nobody is between the mkdir of a fold in this directory and its record; False: somebody may be."""
    alone = _locked(directory, fcntl.LOCK_EX)
    try:
        yield alone
    finally:
        if alone:
            unlock(directory)


def _locked(directory: int, kind: int) -> bool:
    try:
        fcntl.flock(directory, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
