"""Run: a command that was started and goes on while the caller does something else."""

from __future__ import annotations

import contextlib
import io
import os
import select
import threading
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Self

from pinfold import errors, units
from pinfold.cgroup import signals
from pinfold.result import Result
from pinfold.runs.lifecycle import Event
from pinfold.runs.pipes import Capture, Feed, Poller
from pinfold.runs.report import report
from pinfold.runs.request import Request, Span
from pinfold.runs.supervision import Supervision

_LONGEST_WAIT = 3600.0


class Run:
    """A started command. A context manager, with the verbs of `subprocess.Popen`.

    `stdin`, `stdout`, `stderr` are streams where PIPE was asked for, else None. They stay readable to their end after
    the command has ended, and are the caller's to close; the context manager does it.
    """

    def __init__(self, request: Request, supervision: Supervision, running: set[Supervision]) -> None:
        """Start it. `running`: from which it is taken when it has ended."""
        self.args = request.args
        self._request, self._supervision, self._running = request, supervision, running
        self._result: Result | None = None
        self._failure: BaseException | None = None  # why there is none
        self._said: tuple[Any, Any] | None = None  # what `communicate` has read
        self._pid = os.getpid()
        self.ended = threading.Event()  # set when nothing of the run is left
        self._asking = threading.Lock()  # guards _wake, which ends with the run
        self._wake = self._over = -1
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        thread = threading.Thread(target=self._drive, name="pinfold", daemon=True)
        try:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            # Readable for ever once it has ended: wakes readers whose pipe is held open outside the cgroup.
            self._over = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            supervision.start()
            if supervision.error is not None:
                supervision.drive()
                report(supervision, self.args, request.decode)  # raises it
            self.pid: int = supervision.pid or 0
            supervision.accept_requests(self._wake)
            self._open_streams()
            self._begin(thread)
        except BaseException:
            # The thread may be running, and does if the exception came late enough.
            if self._supervision.driver.acquire(blocking=False):
                supervision.abort()
                running.discard(supervision)
                supervision.io.close_pipes()
                self._close_fds()
            else:
                self.kill()
            raise

    @staticmethod
    def _begin(thread: threading.Thread) -> None:
        try:
            thread.start()
        except RuntimeError as error:  # clone(2) has refused
            raise errors.Error(f"no thread for the run: {error}") from error

    def _open_streams(self) -> None:
        pipes = self._supervision.io.pipes
        if 0 in pipes:
            self.stdin = self._as_text(os.fdopen(pipes.pop(0), "wb"))
        if 1 in pipes:
            self.stdout = self._as_text(io.BufferedReader(_Reader(pipes.pop(1), self._over)))
        if 2 in pipes:
            self.stderr = self._as_text(io.BufferedReader(_Reader(pipes.pop(2), self._over)))

    def _as_text(self, stream: Any) -> IO[Any]:
        encoding = self._request.encoding
        return stream if encoding is None else io.TextIOWrapper(stream, encoding, "surrogateescape", write_through=True)

    def _drive(self) -> None:
        if not self._supervision.driver.acquire(blocking=False):
            return
        try:
            try:
                self._supervision.drive()
                self._result = report(self._supervision, self.args, self._request.decode)
            except BaseException as error:  # noqa: BLE001  # it is raised by `wait`
                self._supervision.abort()
                self._failure = error
        finally:
            self._running.discard(self._supervision)
            with contextlib.suppress(OSError):  # whoever waits must not be left waiting
                os.eventfd_write(self._over, 1)  # nobody closes it before `ended`
            with self._asking:
                self.ended.set()

    def _ask(self, wanted: Callable[[], None]) -> None:
        """Have the run's own thread do something; nothing if it has ended."""
        self._require_owner()
        with self._asking:
            if not self.ended.is_set():
                self._supervision.wanted.append(wanted)
                os.eventfd_write(self._wake, 1)

    def _require_owner(self) -> None:
        if self._pid != os.getpid():
            raise errors.Error(f"{self!r} belongs to the process that this one was forked from")

    @property
    def returncode(self) -> int | None:
        """The main process' return code once the run has ended, negative for a signal."""
        return self._result.returncode if self._result is not None else None

    def poll(self) -> int | None:
        """As `returncode`, without waiting."""
        return self.returncode

    def wait(self, timeout: Span = None) -> Result:
        """Wait until nothing of the run is left. Raises TimeoutError if that takes longer; the run goes on then.

        What went wrong in looking after it is raised here, as by `Fold.run`.

        With PIPE, somebody has to read meanwhile, or the command waits for its reader (until its own timeout).
        """
        self._require_owner()
        patience = None if timeout is None else units.span(timeout, "timeout")
        if not self.ended.wait(None if patience is None or patience == units.INFINITY else patience):
            raise TimeoutError(f"{self!r} is still running after {patience} s")
        if self._failure is not None:
            raise self._failure
        assert self._result is not None
        return self._result

    def communicate(self, input: bytes | str | None = None) -> tuple[Any, Any]:
        """Write `input`, read both streams to their ends, wait. Returns (stdout, stderr), None where not piped.

        There is no timeout here: the run has its own. Once more gives the same again.
        """
        if self._said is not None:
            return self._said
        if input and self.stdin is None:
            raise errors.UsageError("input: the run was started without stdin=PIPE")
        poller = Poller()
        feed: Feed | None = None
        captures = [self._capture(stream, poller) for stream in (self.stdout, self.stderr)]
        try:
            if self.stdin is not None:
                feed = self._feed(input, poller)
            poller.add(self._over, select.EPOLLIN, lambda: None)
            while not self.ended.is_set() and not (
                all(c is None or c.done for c in captures) and (feed is None or feed.fd < 0)
            ):
                poller.wait(_LONGEST_WAIT)
            for capture in captures:
                if capture is not None:
                    capture.ready_until_blocked()
        finally:
            for end in (feed, *captures):
                if end is not None:
                    end.close()
            poller.close()
        self.wait()
        out, err = (None if c is None else self._request.decode(c.data()) for c in captures)
        self._said = out, err
        return out, err

    def _feed(self, data: bytes | str | None, poller: Poller) -> Feed:
        assert self.stdin is not None
        if isinstance(data, str):
            data = data.encode(self._request.encoding or "utf-8", "surrogateescape")
        fd = os.dup(self.stdin.fileno())
        self.stdin.close()
        os.set_blocking(fd, False)
        feed = Feed(fd, data or b"")
        feed.watch(poller)
        return feed

    @staticmethod
    def _capture(stream: IO[Any] | None, poller: Poller) -> Capture | None:
        if stream is None or stream.closed:
            return None
        fd = os.dup(stream.fileno())
        stream.close()
        capture = Capture(fd, None)
        capture.watch(poller)
        return capture

    def send_signal(self, number: int | str) -> None:
        """Send a signal to the main process, if it is still there."""
        number = units.signal_number(number)
        self._ask(lambda: self._supervision.signal_main(number))

    def send_signal_to_group(self, number: int) -> None:
        """Send a signal to the process group of the main process, if that is still there and leads one."""
        self._ask(lambda: self._supervision.signal_group(number))

    def terminate(self) -> None:
        """Stop it: the signal to every process, the grace, the kill. The outcome is `canceled`."""
        self._ask(lambda: self._supervision.take(Event.CANCELED))

    def kill(self) -> None:
        """Kill every process of it now. The outcome is `canceled`."""
        self._ask(lambda: self._supervision.take(Event.ABORTED))

    def pause(self) -> None:
        """Freeze the whole tree (`cgroup.freeze`) until `resume`; the clocks of its limits go on."""
        self._in_its_thread(lambda: signals.freeze(self._supervision.scope.cgroup))

    def resume(self) -> None:
        """Let the tree go on."""
        self._in_its_thread(lambda: self._supervision.scope.cgroup.freeze(False))

    def _in_its_thread(self, act: Callable[[], None]) -> None:
        done = threading.Event()
        self._ask(act)
        self._ask(done.set)
        while not done.wait(0.1) and not self.ended.is_set():
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pid != os.getpid():
            return
        if kind is not None:
            self.kill()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.ended.wait()
        self._close_fds()

    def _close_fds(self) -> None:
        wake, over, self._wake, self._over = self._wake, self._over, -1, -1
        for fd in (wake, over):
            if fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        # Its thread holds a reference until the run has ended.
        if hasattr(self, "_over"):
            self._close_fds()

    def __repr__(self) -> str:
        return f"<pinfold.Run {self.args!r} pid {self.pid}>"


class _Reader(io.RawIOBase):
    """A pipe end that ends when the run has: also when a process outside the cgroup still holds the other end."""

    def __init__(self, fd: int, over: int) -> None:
        self._fd = fd
        self._over = os.dup(over)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(self._over, select.POLLIN)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._fd

    def readinto(self, buffer: Any) -> int:
        while True:
            over = any(fd == self._over for fd, _mask in self._poll.poll(0))
            try:
                return os.readv(self._fd, [buffer])
            except BlockingIOError:
                if over:
                    return 0
                self._poll.poll()

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
            os.close(self._over)
        super().close()
