"""Run: a command that was started and goes on while the caller does something else."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from pinfold import errors, units
from pinfold.result import Placement, Result
from pinfold.runs.loop import READABLE, Loop, SharedLoop
from pinfold.runs.pipes import Capture, Feed
from pinfold.runs.plan import Plan
from pinfold.runs.reader import End, Reader
from pinfold.runs.report import report
from pinfold.runs.request import Span
from pinfold.runs.states import Event
from pinfold.runs.supervise import Supervision
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import IO, Any, Final, Self

_EXEC_LOOK: Final = 1.0  # seconds; the loop ends the wait by ending the run
_FREEZE_BOUND: Final = 0.02
_FREEZE_LOOK: Final = 0.001


class Run:
    """A started command. A context manager, with the verbs of `subprocess.Popen`.

    `stdin`, `stdout`, `stderr` are streams where PIPE was asked for, else None. They stay readable to their end after
    the command has ended, and are the caller's to close; the context manager does it.
    """

    def __init__(self, plan: Plan, loop: SharedLoop, supervise: Callable[[Callable[[], None]], Supervision],
                 forget: Callable[[Supervision], None]) -> None:  # fmt: skip
        """Start it, and return once it has been exec'ed. `forget`: called when nothing of it is left."""
        self.args = plan.args
        self._plan, self._loop, self._forget = plan, loop, forget
        self._result: Result | None = None
        self._failure: BaseException | None = None  # why there is none
        self._said: tuple[Any, Any] | None = None  # what `communicate` has read
        self._pid = os.getpid()
        self.ended = End()  # when nothing of the run is left
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        attached = False
        self._supervision = supervise(self._finish)
        try:
            self._supervision.begin()
            self.pid: int = self._supervision.child.pid
            self._open_streams()
            attached = True
            self._supervision.attach()
            self._wait_for_exec()
        except BaseException:
            if attached:
                self.kill()
            else:
                self._supervision.abort()
                forget(self._supervision)
            self._close_streams()
            raise

    def _wait_for_exec(self) -> None:
        """The loop has its clock meanwhile, and ends a start that hangs when its time is up."""
        child = self._supervision.child
        while not child.wait_exec(_EXEC_LOOK) and not self.ended.is_set():
            pass
        if child.failure() is not None:
            self.ended.wait()
        elif self._supervision.shares:  # what was changed for the exec is as it has to be before anybody relies on it
            self._in_the_loop(self._supervision.look_exec)
        if isinstance(self._failure, errors.SpawnError):
            raise self._failure

    def _open_streams(self) -> None:
        pipes = self._supervision.io.pipes
        if 0 in pipes:
            self.stdin = self._as_text(os.fdopen(pipes.pop(0), "wb"))
        if 1 in pipes:
            self.stdout = self._as_text(io.BufferedReader(Reader(pipes.pop(1), self.ended)))
        if 2 in pipes:
            self.stderr = self._as_text(io.BufferedReader(Reader(pipes.pop(2), self.ended)))

    def _as_text(self, stream: Any) -> IO[Any]:
        encoding = self._plan.encoding
        return stream if encoding is None else io.TextIOWrapper(stream, encoding, "surrogateescape", write_through=True)

    def _finish(self) -> None:
        """Called by the loop, once nothing of the run is left."""
        supervision = self._supervision
        self._failure = supervision.failure
        if self._failure is None:
            try:
                self._result = report(self._plan, supervision.ending)
            except BaseException as error:  # noqa: BLE001  # it is raised by `wait`
                self._failure = error
        self._forget(supervision)
        self.ended.set()

    def _ask(self, wanted: Callable[[], None]) -> None:
        """Have the loop do something; nothing if the run has ended."""
        self._require_owner()
        if not self.ended.is_set():
            self._loop.call(wanted, self._supervision)

    def _require_owner(self) -> None:
        if self._pid != os.getpid():
            raise errors.Error(f"{self!r} was started before fork(); only the parent has it")

    @property
    def run_id(self) -> str:
        """Its id, as `pinfold ps` shows it and the Result has it."""
        return self._supervision.ending.scope.run_id

    @property
    def placement(self) -> Placement:
        """Where it runs."""
        return self._supervision.ending.placement

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

        There is no timeout here: the run has its own. Called again, it returns the same.
        """
        if self._said is not None:
            return self._said
        if input and self.stdin is None:
            raise errors.UsageError("input: the run was started without stdin=PIPE")
        loop = Loop()
        over, feed = -1, None
        captures = [self._capture(stream, loop) for stream in (self.stdout, self.stderr)]
        try:
            if self.stdin is not None:
                feed = self._feed(input, loop)
            over = self.ended.descriptor()
            loop.add(over, READABLE, lambda: None)
            while not self.ended.is_set() and not (
                all(c is None or c.done for c in captures) and (feed is None or feed.fd < 0)
            ):
                loop.turn()
            for capture in captures:
                if capture is not None:
                    capture.ready_until_blocked()
        finally:
            for end in (feed, *captures):
                if end is not None:
                    end.close()
            loop.close()
            if over >= 0:
                os.close(over)
        self.wait()
        out, err = (None if c is None else self._plan.decode(c.data()) for c in captures)
        self._said = out, err
        return out, err

    def _feed(self, data: bytes | str | None, loop: Loop) -> Feed:
        assert self.stdin is not None
        if isinstance(data, str):
            data = data.encode(self._plan.encoding or "utf-8", "surrogateescape")
        fd = os.dup(self.stdin.fileno())
        self.stdin.close()
        os.set_blocking(fd, False)
        feed = Feed(fd, data or b"")
        feed.watch(loop)
        return feed

    @staticmethod
    def _capture(stream: IO[Any] | None, loop: Loop) -> Capture | None:
        if stream is None or stream.closed:
            return None
        fd = os.dup(stream.fileno())
        stream.close()
        capture = Capture(fd, None)
        capture.watch(loop)
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
        self._in_the_loop(self._supervision.freeze)
        until = time.monotonic() + _FREEZE_BOUND
        while not self._in_the_loop(self._supervision.is_frozen) and time.monotonic() < until:
            time.sleep(_FREEZE_LOOK)

    def resume(self) -> None:
        """Let the tree go on."""
        self._in_the_loop(self._supervision.thaw)

    def _in_the_loop(self, act: Callable[[], bool]) -> bool:
        """Have the loop do it, and wait until it has. Whether it says so, or the run has ended."""
        done, answer = threading.Event(), [True]

        def ask() -> None:
            answer[0] = act()
            done.set()

        self._ask(ask)
        while not done.wait(0.1) and not self.ended.is_set():
            pass
        return answer[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pid != os.getpid():
            return
        if kind is not None:
            self.kill()
        self._close_streams()
        self.ended.wait()

    def _close_streams(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._supervision.io.close_pipes()

    def __repr__(self) -> str:
        return f"<pinfold.Run {self.args!r} pid {self._supervision.child.pid}>"
