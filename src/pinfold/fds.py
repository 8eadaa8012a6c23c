"""Descriptors of ours, clear of the three that commands inherit."""

from __future__ import annotations

import fcntl
import os


def clear_of_stdio(fd: int) -> int:
    """Move an fd that landed on 0-2 (ours were closed) out of the way: commands inherit those numbers."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)
