"""What the executors of these cases run: a command whose descendants do all they can to be overlooked."""

from __future__ import annotations

import os
import select
import time

# In this order: a new session; a double fork; stopped; stopped, in a session of its own; deaf to what can be ignored.
_SCRIPT = """\
echo started
setsid sleep 1000 &
( (setsid sleep 1000 &) & )
sleep 1000 & kill -STOP $!
setsid sh -c 'kill -STOP $$' &
(trap '' HUP INT TERM; sleep 1000) &
echo ready
exec sleep 1000
"""
COMMAND = ["/bin/sh", "-c", _SCRIPT]
SLEEP = ["/bin/sleep", "1000"]


class Ear:
    """Hears what commands say into their pipe."""

    def __init__(self, fd: int):
        self._fd, self._heard = fd, b""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def hears(self, word: bytes, within: float) -> bool:
        """Whether this word comes, or has come, within so many seconds. False also for the end of the pipe."""
        end = time.monotonic() + within
        while word not in self._heard:
            if not self._poll.poll(max(0, (end - time.monotonic()) * 1e3)) or not (said := os.read(self._fd, 4096)):
                return False
            self._heard += said
        return True

    def ended(self, within: float) -> bool:
        """Whether nobody holds the other end any more, or does so no longer within so many seconds."""
        end = time.monotonic() + within
        while self._poll.poll(max(0, (end - time.monotonic()) * 1e3)):
            if not os.read(self._fd, 4096):
                return True
        return False
