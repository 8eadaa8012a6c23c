"""From `stdin=`, `stdout=` and `stderr=` to file descriptors: which the command gets, and which are ours.

Two lists, named for their owners: `for_child` is closed once the command has its copies (so that the end of its
streams is seen), the rest once the run has ended.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable

from pinfold.errors import UsageError
from pinfold.fds import clear_of_stdio
from pinfold.runs.pipes import Capture, Feed, Poller, Relay
from pinfold.spawn.steps import INHERIT
from pinfold.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import IO, Any, Final


# The standard library's values, so that either module's names can be used.
PIPE: Final = -1
STDOUT: Final = -2
DEVNULL: Final = -3

Output = Capture | Relay


class Stdio:
    """The descriptors of one run. `pipes` are ends that the user reads or writes himself (`start` with PIPE)."""

    __slots__ = ("child", "feed", "for_child", "outputs", "pipes")

    def __init__(self) -> None:
        self.child = [INHERIT, INHERIT, INHERIT]
        self.for_child: list[int] = []
        self.feed: Feed | None = None
        self.outputs: tuple[Output, ...] = ()
        self.pipes: dict[int, int] = {}

    def close_for_child(self) -> None:
        """Close what the command has its own copies of. Idempotent."""
        while self.for_child:
            os.close(self.for_child.pop())

    def close(self) -> None:
        """Close all but the user's ends. Idempotent."""
        self.close_for_child()
        if self.feed is not None:
            self.feed.close()
        for output in self.outputs:
            output.close()
        _open.discard(self)

    def watch(self, poller: Poller, on_bytes: Callable[[], None] | None) -> None:
        """Begin; `on_bytes` is called whenever some came."""
        if self.feed is not None:
            self.feed.watch(poller)
        for output in self.outputs:
            output.on_bytes = on_bytes
            output.watch(poller)

    def take_all(self) -> None:
        """Take what is in the pipes now."""
        for output in self.outputs:
            output.ready_until_blocked()

    @property
    def drained(self) -> bool:
        """Every stream has come to its end."""
        return all(output.done for output in self.outputs)

    @property
    def receiver_is_slow(self) -> bool:
        """Bytes wait for the receiver of a relayed stream."""
        return any(isinstance(output, Relay) and output.busy for output in self.outputs)

    @property
    def exceeded(self) -> bool:
        """More was written than the limit of a stream."""
        return any(output.exceeded for output in self.outputs)

    @property
    def byte_count(self) -> int:
        """All bytes that came."""
        return sum(output.count for output in self.outputs)

    def output(self, number: int) -> Output | None:
        """The one for stdout (1) or stderr (2), if it passes through us."""
        return next((output for output in self.outputs if output.number == number), None)

    def close_pipes(self) -> None:
        """Close the user's ends, for a run that he never got."""
        while self.pipes:
            os.close(self.pipes.popitem()[1])

    def forget(self) -> None:
        """In a forked child: close the copies, and touch nothing that is shared with the parent."""
        copies = list(self.for_child)
        self.for_child.clear()
        for end in (self.feed, *self.outputs):
            if end is not None and end.fd >= 0:
                copies.append(end.fd)
                end.fd = -1
        for fd in copies:
            with contextlib.suppress(OSError):
                os.close(fd)


_open: set[Stdio] = set()  # those with pipe ends of ours


def _after_fork() -> None:
    """A forked child's copy of a write end would keep a command, or us, waiting for the end of a stream."""
    for io in list(_open):
        io.forget()
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)


class StdioPlan(NamedTuple):
    """What was asked for. `manual`: PIPE means a stream for the user, not a capture.

    `watched`: output must be counted (an idle timeout, a limit), so what would go straight to a file is relayed.
    """

    stdin: Any = None
    stdout: Any = None
    stderr: Any = None
    input: bytes | None = None
    output_limit: int | None = None
    watched: bool = False
    manual: bool = False

    def open(self, io: Stdio) -> None:
        """Open all of it into `io`. Raises UsageError, or OSError for a file that cannot be opened."""
        if self.stdin is None and self.stdout is None and self.stderr is None and not self.watched:
            return
        _open.add(io)
        self._stdin(io)
        self._output(io, 1, self.stdout, "stdout")
        if self.stderr == STDOUT and isinstance(self.stderr, int):
            io.child[2] = _ours_or_null(1, io) if io.child[1] == INHERIT else io.child[1]
        else:
            self._output(io, 2, self.stderr, "stderr")

    def _stdin(self, io: Stdio) -> None:
        if self.stdin == PIPE and isinstance(self.stdin, int):
            read, write = _pipe()
            io.for_child.append(read)
            io.child[0] = read
            if self.manual and self.input is None:
                io.pipes[0] = write
            else:
                io.feed = Feed(write, self.input or b"")
                os.set_blocking(write, False)
        else:
            io.child[0] = _fd_of(self.stdin, "stdin", os.O_RDONLY, io)

    def _output(self, io: Stdio, number: int, target: Any, what: str) -> None:
        captured = target == PIPE and isinstance(target, int)
        if not captured and not self.watched:
            io.child[number] = _fd_of(target, what, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, io)
            return
        if captured and self.manual:
            read, write = _pipe()
            io.pipes[number] = read
        else:
            destination = None if captured else _fd_of(target, what, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, io)
            receiver = None if destination is None else _receiver(number, destination, io)
            read, write = _pipe()
            if receiver is None:
                output: Output = Capture(read, self.output_limit)
            else:
                io.for_child.remove(receiver)
                output = Relay(read, receiver, self.output_limit)
            output.number = number
            io.outputs += (output,)
        io.for_child.append(write)
        io.child[number] = write
        os.set_blocking(read, False)


def _receiver(number: int, destination: int, io: Stdio) -> int:
    """An fd of our own for the receiver of a relayed stream; in `io` until somebody takes it over.

    The receiver of a pipe or a terminal gets an open file description of our own, which can be non-blocking: a
    terminal that is not read takes less than it polls for, and two writers may see the same room in a pipe. Else, or
    where that is not permitted, the caller's, which must stay blocking for the others who have it.
    """
    target = number if destination == INHERIT else destination
    if destination == INHERIT and not _is_ours(number):
        return _opened(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC), io)
    mode = os.fstat(target).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with contextlib.suppress(OSError):
            own = f"/proc/self/fd/{target}"
            return _opened(os.open(own, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), io)
    return _opened(os.dup(target), io)


def _is_ours(number: int) -> bool:
    """Whether a standard descriptor is open, and not some close-on-exec file that landed there."""
    try:
        return os.get_inheritable(number)
    except OSError:
        return False


def _ours_or_null(number: int, io: Stdio) -> int:
    return number if _is_ours(number) else _opened(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC), io)


def _pipe() -> tuple[int, int]:
    read, write = os.pipe2(os.O_CLOEXEC)
    return (read, write) if read > 2 and write > 2 else (clear_of_stdio(read), clear_of_stdio(write))


def _fd_of(target: IO[Any] | int | str | os.PathLike[Any] | None, what: str, flags: int, io: Stdio) -> int:
    if target is None:
        return INHERIT
    if isinstance(target, int) and not isinstance(target, bool):
        if target == DEVNULL:
            return _opened(os.open("/dev/null", flags & os.O_ACCMODE | os.O_CLOEXEC), io)
        if target < 0:
            raise UsageError(f"{what}={target}: must be a file, an fd, PIPE or DEVNULL")
        os.fstat(target)  # a closed one is the caller's error, not the command's
        return target
    if isinstance(target, (str, os.PathLike)):
        if "\0" in os.fsdecode(target):
            raise UsageError(f"{what} {target!r}: has a NUL byte")
        return _opened(os.open(target, flags | os.O_CLOEXEC, 0o666), io)
    if hasattr(target, "fileno"):
        if hasattr(target, "flush") and flags != os.O_RDONLY:
            target.flush()  # what the caller wrote comes before what the command writes
        number: int = target.fileno()
        return number
    raise UsageError(f"{what} is {type(target).__name__}: must be a file, a path, an fd, PIPE or DEVNULL")


def _opened(fd: int, io: Stdio) -> int:
    fd = clear_of_stdio(fd)
    io.for_child.append(fd)
    return fd
