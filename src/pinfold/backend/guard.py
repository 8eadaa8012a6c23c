"""Guard: a tiny process of ours that keeps a systemd scope.

systemd makes no scope without a process, and collects one that has none. So each of our scopes has a guard, in a leaf
beside the runs, out of reach of their kills and limits. It ends with us (its input ends then), when we let go of it,
and with the scope: a guard that has ended without us says that the scope was stopped from outside.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import Final

from pinfold.cgroup.files import clear_of_stdio

# A shell, as its private memory is a quarter of a megabyte, and it starts in a millisecond. Signals that an operator
# may send to all of a unit (systemctl kill --signal=HUP) are not for it, but for TERM.
_SCRIPT: Final = "cd /; trap '' HUP INT QUIT USR1 USR2 ALRM TSTP; read -r _"
_ALL: Final = frozenset(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}


def _inheritable() -> list[int]:
    """What the host program lets its children have: a pipe of it that the guard kept would never end."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the one that listed them, and what another thread has closed
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
    return found


class Guard:
    """A started guard; `fd` is its pidfd, readable once it has ended."""

    def __init__(self) -> None:
        """Start it: by posix_spawn, which copies nothing of us, and in a session of its own."""
        reads, self._writes = (clear_of_stdio(fd) for fd in os.pipe2(os.O_CLOEXEC))
        self.fd = -1
        try:
            self.pid = os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", _SCRIPT, "pinfold-guard"],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, reads, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                    *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=_ALL,
            )
            self.fd = clear_of_stdio(os.pidfd_open(self.pid))  # ours to reap: until then its pid is nobody else's
        except BaseException:
            self.end()
            raise
        finally:
            os.close(reads)

    def ended(self, within: float = 0.0) -> bool:
        """Whether it has ended, or does so in the next seconds; it is not reaped by this."""
        if self.fd < 0:
            return True
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(within * 1000))

    def end(self) -> None:
        """End and reap it; twice is no harm."""
        writes, self._writes = self._writes, -1
        if writes >= 0:
            os.close(writes)
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, fd, os.WEXITED)
            os.close(fd)

    def forget(self) -> None:
        """In a forked child: close our copies; the guard is our parent's."""
        for fd in (self._writes, self.fd):
            if fd >= 0:
                os.close(fd)
        self._writes = self.fd = -1
