"""Descriptors of ours, clear of the three that commands inherit; and the ones that wake somebody."""

from __future__ import annotations

import contextlib
import fcntl
import os

from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


_ATTEMPTS: Final = 3  # to wake somebody


def clear_of_stdio(fd: int) -> int:
    """Move an fd that landed on 0-2 (ours were closed) out of the way: commands inherit those numbers."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def wake(eventfd: int) -> None:
    """Make it readable. Not given up at the first refusal: whoever waits for it would go on to wait."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(OSError):
            os.eventfd_write(eventfd, 1)
            return
    os.eventfd_write(eventfd, 1)
