"""Our ends of a command's pipes: feeding its stdin, keeping or passing on what it writes.

Each object owns one fd of ours, non-blocking: that flag belongs to our end of the pipe alone, never to the one that
the command has. It is driven by a `Poller`: readiness in, a bounded number of reads or writes out, so that no stream
can hold up the clock or another stream.
"""

from __future__ import annotations

import io
import os
import select
import signal
from collections.abc import Callable

from pinfold.result import Stream
from pinfold.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing import Final


CHUNK: Final = 1 << 16  # a pipe's default capacity (pipe(7))
_BURST: Final = 16  # reads at a time, so that no stream holds up the clock
_MOST_BURSTS: Final = 4  # four times the largest pipe an ordinary user may have (pipe-max-size)
_UNLIMITED: Final = 1 << 62
_ATOMIC: Final = 4096  # PIPE_BUF: a pipe that polls writable takes this much without blocking


class Poller(Protocol):
    """Who calls a handler whenever an fd is ready: a Loop, or a run that has one."""

    def add(self, fd: int, mask: int, handler: Callable[[], None]) -> None:
        """Begin."""

    def drop(self, fd: int) -> None:
        """Forget an fd, before it is closed."""

    def watches(self, fd: int) -> bool:
        """Whether this fd has been added."""


class _End:
    """An fd of ours: one end of a pipe, watched by a poller from `watch` on. `number`: of the command's own end."""

    __slots__ = ("_poller", "fd", "number")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.number = 0
        self._poller: Poller | None = None

    @property
    def held(self) -> bool:
        """Whether anybody has the other end open; what is in the pipe yet is no matter (POLLHUP of poll(2))."""
        if self.fd < 0:
            return False
        poll = select.poll()
        poll.register(self.fd, 0)
        return not any(mask & select.POLLHUP for _, mask in poll.poll(0))

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self.fd >= 0:
            if self._poller is not None:
                self._poller.drop(self.fd)
            fd, self.fd = self.fd, -1  # before it is closed: an exception in between must not close it twice
            os.close(fd)


class Capture(_End):
    """Reads a stream and keeps it: all of it, or with a limit its head and its tail, one half each.

    What is over the limit is read and dropped, so the command is never blocked by it, and every byte is counted.
    """

    __slots__ = ("_at", "_head", "_head_room", "_ring", "_ring_room", "count", "done", "limit", "on_bytes")

    def __init__(self, fd: int, limit: int | None) -> None:
        super().__init__(fd)
        self.limit = limit
        self.count, self.done = 0, False
        self.on_bytes: Callable[[], None] | None = None
        # Grows by mremap(2) and hands its buffer out: a list of chunks to join would copy everything twice.
        self._head = io.BytesIO()
        self._head_room = _UNLIMITED if limit is None else limit - limit // 2
        self._ring_room = 0 if limit is None else limit // 2
        self._ring: memoryview | None = None  # made when the head is full
        self._at = 0

    def watch(self, poller: Poller) -> None:
        """Begin."""
        self._poller = poller
        poller.add(self.fd, select.POLLIN, self.ready)

    def ready(self) -> None:
        """Take what is there, at most a burst."""
        before = self.count
        try:
            for _ in range(_BURST):
                n = self._into_head() if self._head_room else self._into_ring()
                if n == 0:
                    self.close()
                    self.done = True
                    break
                self.count += n
        except BlockingIOError:
            pass
        if self.on_bytes and self.count > before:
            self.on_bytes()

    def _into_head(self) -> int:
        n = self._head.write(os.read(self.fd, min(CHUNK, self._head_room)))
        self._head_room -= n
        return n

    def _into_ring(self) -> int:
        ring = self._ring
        if ring is None:
            # At least a whole read, or a small limit would mean many small reads.
            ring = self._ring = memoryview(bytearray(max(self._ring_room, CHUNK)))
        n = os.readv(self.fd, [ring[self._at : self._at + CHUNK]])
        self._at = (self._at + n) % len(ring)
        return n

    def ready_until_blocked(self) -> None:
        """Take all that is in the pipe now; bounded, as somebody outside may go on writing."""
        for _ in range(_MOST_BURSTS):
            before = self.count
            if not self.done:
                self.ready()
            if self.count == before:
                return

    @property
    def exceeded(self) -> bool:
        """More was written than is kept."""
        return self.limit is not None and self.count > self.limit

    def stream(self) -> Stream:
        """The figures."""
        kept = self.count if self.limit is None else min(self.count, self.limit)
        return Stream(self.count, kept, self.exceeded)

    def data(self) -> bytes | None:
        """What was kept, in order."""
        head = self._head.getvalue()
        if self._ring is None:
            return head
        written = self.count - len(head)
        at, ring = self._at, self._ring
        tail = bytes(ring[:written]) if written < len(ring) else bytes(ring[at:]) + bytes(ring[:at])
        return head + tail[max(0, len(tail) - self._ring_room) :]


class Relay(_End):
    """Reads a stream and writes it to `out`, a dup of the caller's fd, which stays blocking: it may be shared.

    With a limit the first `limit` bytes are passed on. While the receiver does not take them nothing more is read,
    so the command is blocked as it would be by the receiver itself, and our clock runs on.
    """

    __slots__ = ("_out", "_out_poll", "_pending", "count", "done", "error", "kept", "limit", "on_bytes")

    def __init__(self, fd: int, out: int, limit: int | None) -> None:
        super().__init__(fd)
        self._out, self.limit = out, limit
        self.count = self.kept = 0
        self.done = False
        self.error: OSError | None = None  # why the receiver did not take the rest, unless it went away
        self.on_bytes: Callable[[], None] | None = None
        self._pending = b""
        self._out_poll = select.poll()
        self._out_poll.register(out, select.POLLOUT)

    def watch(self, poller: Poller) -> None:
        """Begin."""
        self._poller = poller
        poller.add(self.fd, select.POLLIN, self.ready)

    def ready(self) -> None:
        """Take a chunk and pass on what the receiver takes."""
        try:
            chunk = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            self.close()
            self.done = True
            return
        self.count += len(chunk)
        room = len(chunk) if self.limit is None else max(0, self.limit - self.kept)
        self._pending = chunk[:room]
        self.kept += len(self._pending)
        if self.on_bytes:
            self.on_bytes()
        self._pass_on()

    def _pass_on(self) -> None:
        while self._pending:
            if not self._out_poll.poll(0):
                self._wait_for_receiver()
                return
            try:
                written = _write_quietly(self._out, self._pending[:_ATOMIC])
            except BlockingIOError:  # the caller made its fd non-blocking
                self._wait_for_receiver()
                return
            except OSError as error:
                if not isinstance(error, BrokenPipeError):
                    self.error = error
                self.kept -= len(self._pending)
                # Nobody takes it any more: the command learns it the same way.
                self._pending = b""
                self.close()
                self.done = True
                return
            self._pending = self._pending[written:]

    def _wait_for_receiver(self) -> None:
        assert self._poller is not None
        if not self._poller.watches(self._out):
            self._poller.drop(self.fd)
            self._poller.add(self._out, select.POLLOUT, self._resume)

    def _resume(self) -> None:
        assert self._poller is not None
        self._poller.drop(self._out)
        self._poller.add(self.fd, select.POLLIN, self.ready)
        self._pass_on()

    def ready_until_blocked(self) -> None:
        """Pass on all that is in the pipe now, as far as the receiver takes it; bounded."""
        for _ in range(_MOST_BURSTS * _BURST):
            before = self.count
            if not self.done and not self.busy:
                self.ready()
            if self.count == before:
                return

    def stream(self) -> Stream:
        """The figures; what the receiver did not take was not kept."""
        kept = self.kept - len(self._pending)
        return Stream(self.count, kept, kept < self.count)

    def data(self) -> bytes | None:
        """Nothing was kept here."""
        return None

    @property
    def busy(self) -> bool:
        """Bytes are waiting for the receiver."""
        return bool(self._pending)

    @property
    def exceeded(self) -> bool:
        """More was written than was passed on."""
        return self.limit is not None and self.count > self.limit

    def close(self) -> None:
        """Stop reading and let go of the receiver."""
        super().close()
        if self._out >= 0:
            if self._poller is not None:
                self._poller.drop(self._out)
            out, self._out = self._out, -1
            os.close(out)


class Feed(_End):
    """Writes a command's input. A command that stops reading is no error."""

    __slots__ = ("_left",)

    def __init__(self, fd: int, data: bytes) -> None:
        super().__init__(fd)
        self._left = memoryview(data)

    def watch(self, poller: Poller) -> None:
        """Begin; with no input the stream is closed at once."""
        self._poller = poller
        if self._left:
            poller.add(self.fd, select.POLLOUT, self.ready)
        else:
            self.close()

    def ready(self) -> None:
        """Write what it takes."""
        try:
            self._left = self._left[_write_quietly(self.fd, self._left[:CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.close()
            return
        if not self._left:
            self.close()

    def close(self) -> None:
        """Close the command's input."""
        super().close()
        self._left = memoryview(b"")


_PIPE_SIGNAL: Final = frozenset({signal.SIGPIPE})


def _write_quietly(fd: int, data: bytes | memoryview) -> int:
    """write(2) that never kills the host program, which may have set SIGPIPE back to its default."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PIPE_SIGNAL)
    try:
        return os.write(fd, data)
    except BrokenPipeError:
        signal.sigtimedwait(_PIPE_SIGNAL, 0)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
