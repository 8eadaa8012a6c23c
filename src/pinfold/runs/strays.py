"""Who is still in a cgroup: naming them, and signalling each without ever hitting a recycled pid."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal

from pinfold.cgroup.group import Cgroup, proc_is_ours
from pinfold.result import Stray

NAMED_AT_MOST = 64  # naming costs a quarter of a millisecond each; all are counted
_FREEZE_BOUND_MS = 20
_AT_ONCE = 64  # pidfds


def freeze(cgroup: Cgroup) -> None:
    """Bring the tree to a stop, so that nobody forks or exits while it is looked at; bounded.

    The write stops every process at its next return to user space; only those inside a system call trail.
    """
    cgroup.freeze(True)
    if not cgroup.frozen():
        poll = select.poll()
        poll.register(cgroup.events, select.POLLPRI)
        poll.poll(_FREEZE_BOUND_MS)


def describe(pids: list[int]) -> list[Stray]:
    """Names of the first of these processes. What has gone, or cannot be read, is None: naming must not fail."""
    try:
        import psutil  # 15-25 ms, and only wanted where something strayed
    except (OSError, ImportError):  # out of descriptors
        return [Stray(pid) for pid in pids[:NAMED_AT_MOST]]
    if not proc_is_ours():
        return [Stray(pid) for pid in pids[:NAMED_AT_MOST]]
    found = []
    for pid in pids[:NAMED_AT_MOST]:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                stray = Stray(pid, process.ppid(), comm=printable(process.name()))
        except (psutil.Error, OSError, ValueError):
            found.append(Stray(pid))
            continue
        with contextlib.suppress(OSError):
            stray = stray._replace(sid=os.getsid(pid))
        with contextlib.suppress(psutil.Error, OSError):
            # Empty for a process whose leader thread has exited.
            stray = stray._replace(argv=[printable(argument) for argument in process.cmdline()] or None)
        found.append(stray)
    return found


def printable(text: str) -> str:
    """Text of a foreign process without lone surrogates (bytes that are no UTF-8), so that JSON stays valid."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def signal_all(cgroup: Cgroup, number: int, rounds: int = 3, but: int | None = None) -> None:
    """Send a signal to every process of the tree `but` one, by pidfds that were checked to be still of it.

    More than one round, as a process may fork between the reading and the signal.
    """
    done = {0 if but is None else but}
    for _ in range(rounds):
        fresh = [pid for pid in cgroup.pids() if pid and pid not in done]
        if not fresh:
            return
        for at in range(0, len(fresh), _AT_ONCE):
            done |= _signal_some(cgroup, fresh[at : at + _AT_ONCE], number)


def _signal_some(cgroup: Cgroup, pids: list[int], number: int) -> set[int]:
    pidfds: dict[int, int] = {}
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                try:
                    pidfds[pid] = os.pidfd_open(pid)
                except OSError as error:
                    if error.errno in (errno.EINVAL, errno.ENOENT):  # a thread that is no leader
                        continue
                    if error.errno not in (errno.EMFILE, errno.ENFILE):
                        raise
                    break  # the rest is for the next round
        # A pid that is listed again after its pidfd was opened belongs to that very process, or to one of ours.
        still = set(cgroup.pids())
        for pid, pidfd in pidfds.items():
            if pid in still:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    signal.pidfd_send_signal(pidfd, number)
    finally:
        for pidfd in pidfds.values():
            os.close(pidfd)
    return set(pidfds)
