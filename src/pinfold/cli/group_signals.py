"""A witness: tells a signal that was sent to our whole process group from one that was for us alone.

The kernel does not say (siginfo is the same), and of two that come close together the second leaves no trace
(signal(7)): timeout(1), which signals its child and then its group, looks like a plain kill(1). So one more process in
our group holds the same signals back. What is pending there was sent to the group, and the command has it too.
"""

from __future__ import annotations

import contextlib
import os
import signal


class Witness:
    """`cat` on a pipe of ours, so that it ends with us, however we end. It is outside the cgroups of runs.

    Not a fork of ours: whoever signals all processes with our name or command line must not seem to mean the group.
    """

    def __init__(self) -> None:
        """Start it; the signals in question must be blocked already, for it inherits that."""
        self._seen = 0  # a set of signals, as /proc writes it
        self._pid = self._pidfd = self._pipe = -1
        self._start()

    def saw(self, number: int) -> bool | None:
        """Whether the group was sent this signal, now or before this was last asked; None: there is no witness."""
        pending = self._pending()
        if pending is None:
            return None
        self._seen |= pending
        if pending:
            # Nobody can take a signal from another process: the next one needs a fresh witness. What the group is sent
            # in between looks like ours alone, and the command has it twice, which is better than not at all.
            self.end()
            self._start()
        seen = bool(self._seen & 1 << number - 1)
        self._seen &= ~(1 << number - 1)
        return seen

    def end(self) -> None:
        """End it, and collect it."""
        if self._pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        os.close(self._pipe)
        self._pidfd = -1

    def _start(self) -> None:
        read, self._pipe = os.pipe()
        try:
            self._pid = os.posix_spawnp("cat", ["cat"], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)])
            self._pidfd = os.pidfd_open(self._pid)
        except OSError:
            os.close(self._pipe)
            self._pidfd = -1
        finally:
            os.close(read)

    def _pending(self) -> int | None:
        if self._pidfd < 0:
            return None
        with (
            contextlib.suppress(OSError),
            open(f"/proc/{self._pid}/status", encoding="utf-8", errors="replace") as file,
        ):
            for line in file:
                if line.startswith("ShdPnd:"):
                    return int(line.split()[1], 16)
        return None
