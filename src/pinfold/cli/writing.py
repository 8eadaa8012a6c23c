"""Writes of our own: they wait for a reader, but only so long. Nobody may hold up the end of a run by not reading."""

from __future__ import annotations

import errno
import os
import select
import stat
import time

from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

LINE_BOUND: Final = 2.0  # seconds, for a line to a person
RESULT_BOUND: Final = 10.0  # seconds without progress, for a Result to a program
_ATOMIC: Final = 4096  # PIPE_BUF of pipe(7): a pipe that polls as writable takes so much without waiting
_LOOK: Final = 0.005


def write_within(fd: int, data: bytes, seconds: float) -> None:
    """Write all of it, and wait at most so long for the reader to take the next part.

    Raises TimeoutError if it does not, and OSError.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        from socket import MSG_DONTWAIT, socket

        with socket(fileno=os.dup(fd)) as end:
            _write_all(end.fileno(), memoryview(data), seconds, lambda part: end.send(part, MSG_DONTWAIT))
        return
    own = _own_description(fd) if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) else os.dup(fd)
    try:
        _write_all(own, memoryview(data), seconds, lambda part: os.write(own, part))
    finally:
        os.close(own)


def _own_description(fd: int) -> int:
    """One that can be non-blocking, as others have the one that was given to us; else that one, which may block."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # another user's, or no /proc
        return os.dup(fd)


def _write_all(fd: int, left: memoryview, seconds: float, write: Callable[[memoryview], int]) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    until = time.monotonic() + seconds
    while left:
        try:
            if poll.poll(max(0.0, until - time.monotonic()) * 1000):
                left = left[write(left[:_ATOMIC]) :]
                until = time.monotonic() + seconds
        except BlockingIOError:  # a terminal takes less than it polls for
            time.sleep(_LOOK)
        if time.monotonic() >= until:
            raise TimeoutError(errno.ETIMEDOUT, f"nobody has read it for {seconds:g} s")
