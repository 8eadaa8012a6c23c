"""What a caller reads a started run's output with: it ends when the run has, whoever still holds the other end."""

from __future__ import annotations

import io
import os
import select
import threading

from pinfold.fds import wake
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class End(threading.Event):
    """Set when nothing of a run is left; also as a descriptor, for whoever waits for other descriptors too."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()  # guards _fd
        self._fd = -1  # until the end, for those who ask before

    def set(self) -> None:
        """It is over; `wait` returns, and the descriptors that were handed out are readable from now on."""
        with self._lock:
            super().set()
            fd, self._fd = self._fd, -1
            if fd >= 0:
                wake(fd)
                os.close(fd)

    def descriptor(self) -> int:
        """An fd that is readable once it is over; the caller's, to close."""
        with self._lock:
            if self.is_set():
                return os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            if self._fd < 0:
                self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return os.dup(self._fd)


class Reader(io.RawIOBase):
    """A pipe end that ends when the run has: also when a process outside the cgroup still holds the other end."""

    def __init__(self, fd: int, end: End) -> None:
        self._fd, self._end = fd, end
        self._over = -1  # the end as a descriptor, once we had to wait

    def readable(self) -> bool:
        """Whether it can be read from."""
        return True

    def fileno(self) -> int:
        """The pipe's descriptor. Raises ValueError once it is closed."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._fd

    def readinto(self, buffer: Any) -> int:
        """Wait for bytes, or for the end."""
        while True:
            over = self._over >= 0 and self._poll(0)
            try:
                return os.readv(self._fd, [buffer])
            except BlockingIOError:
                if over:
                    return 0
                if self._over < 0:
                    self._over = self._end.descriptor()
                self._poll(None)

    def _poll(self, timeout: int | None) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._over, select.POLLIN)
        return any(fd == self._over for fd, _mask in poll.poll(timeout))

    def close(self) -> None:
        """Close what is its own. Idempotent."""
        if not self.closed:
            os.close(self._fd)
            if self._over >= 0:
                os.close(self._over)
        super().close()
