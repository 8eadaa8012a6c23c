"""Every process of a cgroup: stopping them all, signalling each without ever hitting a recycled pid, ending them."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Iterator

from pinfold.cgroup.group import Cgroup
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


KILL_ROUND: Final = 0.05  # seconds from the kill to the first look that takes stronger means
_END_ROUND: Final = 0.01  # as KILL_ROUND, where nothing else is to be done meanwhile
_FREEZE_BOUND_MS: Final = 20
_LOOK: Final = 0.001
_AT_ONCE: Final = 64  # pidfds


def freeze(cgroup: Cgroup) -> None:
    """Bring the tree to a stop, so that nobody forks or exits while it is looked at; bounded.

    The write stops every process at its next return to user space; only those inside a system call trail.
    """
    cgroup.freeze()
    if not cgroup.frozen():
        poll = select.poll()
        poll.register(cgroup.events_fd, select.POLLPRI)
        poll.poll(_FREEZE_BOUND_MS)


def signal_each(cgroup: Cgroup, number: int, rounds: int = 3, but: int | None = None) -> Iterator[None]:
    """Send a signal to every process of the tree `but` one, by pidfds that were checked to be still of it.

    Goes on with each step of the iterator. More than one round, as a process may fork between the reading and the
    signal.
    """
    done = {0 if but is None else but}
    for _ in range(rounds):
        fresh = [pid for pid in cgroup.pids() if pid and pid not in done]
        if not fresh:
            return
        for at in range(0, len(fresh), _AT_ONCE):
            done |= _signal_some(cgroup, fresh[at : at + _AT_ONCE], number)
            yield


def signal_all(cgroup: Cgroup, number: int) -> None:
    """As `signal_each`, in one go."""
    for _ in signal_each(cgroup, number):
        pass


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


def kill_each(cgroup: Cgroup) -> Iterator[None]:
    """What one `cgroup.kill` misses: a process whose leader thread has exited (6.18), a fork race (before 6.14).

    Goes on with each step of the iterator.
    """
    cgroup.freeze()
    try:
        yield from signal_each(cgroup, signal.SIGKILL)
        cgroup.kill()
    finally:
        cgroup.thaw()


def end_all(cgroup: Cgroup, bound: float) -> bool:
    """Kill until nothing is left, for so many seconds at most; whether nothing is."""
    began = time.monotonic()
    cgroup.kill()
    rounds = 1
    while cgroup.populated():
        took = time.monotonic() - began
        if took > bound:
            return False
        if took > _END_ROUND * rounds * (rounds + 1) / 2:
            rounds += 1
            for _ in kill_each(cgroup):
                pass
        time.sleep(_LOOK)
    return True
