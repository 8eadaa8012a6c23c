"""Low descriptor numbers, kept free for children of a program that holds many.

A child copies what lies below the highest descriptor that it is given (close_range(2) with CLOSE_RANGE_UNSHARE, Linux
5.9). The kernel hands out the lowest free number, so in a program with 19 000 open sockets a new pipe is number 19 001,
and each start would copy them all. A few low numbers are held by /dev/null, and lent to what a child is given.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections import deque

from pinfold.spawn._spawn import Child
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


LOW: Final = 64  # so few are copied in no time
_NUMBERS: Final = 6  # two starts at once with all three; a third one copies the table

_lock = threading.Lock()
_free: deque[int] = deque()
_out: deque[tuple[Child, list[int]]] = deque()


def reserve() -> None:
    """Hold some low numbers, as far as there are any; for `release` to give up."""
    with _lock:
        with contextlib.suppress(OSError):  # out of descriptors: then there are none to lend
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            try:
                _free.extend(fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, 3) for _ in range(_NUMBERS))
            finally:
                os.close(null)
        _drop(LOW)


def release() -> None:
    """Give them up."""
    with _lock:
        _take_back(everything=True)
        _drop(0)


def _drop(limit: int) -> None:
    for fd in [fd for fd in _free if fd >= limit]:
        _free.remove(fd)
        os.close(fd)


def lend(child: Child, fds: list[int]) -> tuple[list[int], int]:
    """Low numbers for these descriptors, until `child` has copies of its own; and the highest of them all.

    As they were, where there are not enough.
    """
    with _lock:
        _take_back()
        high = sorted({fd for fd in fds if fd >= LOW})
        if len(high) > len(_free):
            return fds, max(fds)
        lent = {fd: _free.popleft() for fd in high}
        _out.append((child, list(lent.values())))
        for fd, number in lent.items():
            os.dup2(fd, number, inheritable=False)
    low = [lent.get(fd, fd) for fd in fds]
    return low, max(low)


def take_back() -> None:
    """Take back what children have copies of: a lent number keeps a pipe open."""
    if _out:
        with _lock:
            _take_back()


def _take_back(*, everything: bool = False) -> None:
    for _ in range(len(_out)):
        child, numbers = _out.popleft()
        if not everything and not (child.pid and child.wait_detached(0)):
            _out.append((child, numbers))
            continue
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            for number in numbers:
                os.dup2(null, number, inheritable=False)
                _free.append(number)
        finally:
            os.close(null)


def _after_fork() -> None:
    """What was lent is our parent's children's; here it would keep their pipes open."""
    global _lock
    _lock = threading.Lock()
    _take_back(everything=True)


os.register_at_fork(after_in_child=_after_fork)
