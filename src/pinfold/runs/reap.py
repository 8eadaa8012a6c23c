"""Collecting the exit status of the one child that is ours, through its pidfd; and, as process 1, its orphans."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections import deque

from pinfold.proc import cgroup_of_zombie, children
from pinfold.spawn.start import Child
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


# <linux/pidfd.h>, struct pidfd_info: mask, cgroupid, 11 ids, exit_code.
_PIDFD_INFO: Final = struct.Struct("=QQ11Ii")
_PIDFD_GET_INFO: Final = 0xC000FF0B | _PIDFD_INFO.size << 16
_INFO_EXIT: Final = 1 << 3


def remembered(pidfd: int) -> int | None:
    """The return code of a child whose status somebody else has collected; None if it cannot be had any more.

    Where the host program ignores SIGCHLD, or waits for any child in another thread, the kernel has handed the status
    out already. Then the pidfd still knows it (PIDFD_GET_INFO, Linux 6.15).
    """
    buffer = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(buffer, 0, _INFO_EXIT, 0, *[0] * 11, 0)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    mask, *_, status = _PIDFD_INFO.unpack(buffer)
    return os.waitstatus_to_exitcode(status) if mask & _INFO_EXIT else None


_left: deque[str] = deque(maxlen=64)  # cgroups of runs that have ended, for `collect_orphans`


def collect_orphans(cgroup: str) -> None:
    """As process 1, which inherits all orphans: collect those of a run in this cgroup that has ended, as an init does.

    One may be about to become a zombie when the kernel says `populated 0`: then the next run's end collects it. The
    host program's own children are in none of these cgroups.
    """
    if os.getpid() != 1:
        return
    _left.append(cgroup)
    with contextlib.suppress(OSError):
        for pid in children():
            at = cgroup_of_zombie(pid)
            if at is not None and any(f"{at}/".startswith(f"{path}/") for path in _left):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


_held: deque[Child] = deque()  # that could not be killed when their run ended


def later(child: Child) -> None:
    """Take over a child that does not end; once it has, `collect` does."""
    _held.append(child)


def collect() -> None:
    """Collect those that have ended meanwhile, so that they stay no zombies."""
    for _ in range(len(_held)):
        with contextlib.suppress(IndexError):  # another thread was quicker
            child = _held.popleft()
            with contextlib.suppress(ChildProcessError):
                if child.reap() is None:
                    _held.append(child)
                    continue
            child.close()
