"""Collecting the exit status of the one child that is ours, through its pidfd."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections import deque
from typing import Final

# A child that was killed before its exec has no SIGCHLD as its exit signal, and is only found with __WALL.
_WALL: Final = 0x40000000
_OPTIONS: Final = os.WEXITED | os.WNOHANG | _WALL

# <linux/pidfd.h>, struct pidfd_info: mask, cgroupid, 11 ids, exit_code.
_PIDFD_INFO: Final = struct.Struct("=QQ11Ii")
_PIDFD_GET_INFO: Final = 0xC000FF0B | _PIDFD_INFO.size << 16
_INFO_EXIT: Final = 1 << 3


def reap(pidfd: int) -> int | None:
    """The return code of an ended child, negative for a signal; None if the status cannot be had any more.

    Where the host program ignores SIGCHLD, or waits for any child in another thread, the kernel has handed the status
    out already. Then the pidfd still knows it (PIDFD_GET_INFO, Linux 6.15). Raises BlockingIOError while it runs.
    """
    try:
        info = os.waitid(os.P_PIDFD, pidfd, _OPTIONS)
    except ChildProcessError:
        return _remembered(pidfd)
    if info is None:
        raise BlockingIOError
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


_held: deque[int] = deque()  # pidfds of children that could not be killed when their run ended


def later(pidfd: int) -> None:
    """Take over the pidfd of a child that does not end; once it has, `collect` does."""
    _held.append(pidfd)


def collect() -> None:
    """Collect those that have ended meanwhile, so that they stay no zombies."""
    for _ in range(len(_held)):
        with contextlib.suppress(IndexError):  # another thread was quicker
            pidfd = _held.popleft()
            try:
                reap(pidfd)
            except BlockingIOError:
                _held.append(pidfd)
            else:
                os.close(pidfd)


def _remembered(pidfd: int) -> int | None:
    buffer = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(buffer, 0, _INFO_EXIT, 0, *[0] * 11, 0)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    mask, *_, status = _PIDFD_INFO.unpack(buffer)
    return os.waitstatus_to_exitcode(status) if mask & _INFO_EXIT else None
