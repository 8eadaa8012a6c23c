"""Fold: a place to run commands in, with its base cgroup; and the default one behind the module's functions."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from pinfold.backend import Backend
from pinfold.backend.choose import open_backend
from pinfold.errors import CgroupError, Error, UsageError
from pinfold.labels import checked_labels
from pinfold.result import Result
from pinfold.runs.loop import Loop, SharedLoop
from pinfold.runs.plan import Plan
from pinfold.runs.reap import collect
from pinfold.runs.remains import Heap, clear_all
from pinfold.runs.report import report
from pinfold.runs.request import Argument, Options, plan_again
from pinfold.runs.run import Run
from pinfold.runs.supervise import Supervision
from pinfold.spawn import start as spawn
from pinfold.typed import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from typing import Final, Self, Unpack

    from pinfold.backend.choose import Name as BackendName

_CLOSE_BOUND: Final = 15.0  # for the runs to see that they were killed
_CLOSE_LOOK: Final = 0.001


class Fold:
    """An executor: a base cgroup, below which each run gets a cgroup of its own. A context manager.

    Threads may share one; a forked child must open its own.

    backend: who makes the cgroups. "cgroupfs": we do. "systemd": one delegated scope for the fold, from the system
        manager for root and the user manager for others. "auto": systemd where it runs and may be used, else cgroupfs;
        `Placement.why` has the reason.
    slice: the slice for scopes, such as a tenant's; by default pinfold.slice.
    scope_per_run: each run gets a scope of its own, with its limits as properties, to be seen in `systemctl status`.
    move_caller: this process may be moved, where the rules of delegation leave no other way: out of a login session
        into the fold's scope; with the other processes of its cgroup to a leaf, where that cgroup has to give
        controllers to the runs. Nothing else ever moves it.
    spare: keep one cgroup made ahead for the next run.
    labels: words for `pinfold ps` and `pinfold kill` to know it by, such as {"job": "4711"}.

    Raises NoCgroup2, NotDelegated or NoSystemd where this host, or this user, has no place for cgroups; UnitError
    where systemd refuses the scope.
    """

    def __init__(self, *, backend: BackendName = "auto", slice: str | None = None, scope_per_run: bool = False,
                 move_caller: bool = False, spare: bool = True,
                 labels: Mapping[str, str] | None = None) -> None:  # fmt: skip
        self._backend: Backend = open_backend(
            backend,
            labels=checked_labels(labels),
            spare=spare,
            slice_name=slice,
            scope_per_run=scope_per_run,
            move_caller=move_caller,
        )
        self._closed = self._done = False
        self._closing = threading.RLock()  # a signal handler may close it while it is being closed
        self._pid = os.getpid()
        self._running: set[Supervision] = set()
        self._heap: Heap = deque()  # of runs that have ended, to be cleared
        self._loop: SharedLoop | None = None  # of the started runs
        self._opening = threading.Lock()  # guards _loop
        spawn.reserve()
        atexit.register(self.close)
        # A worker of multiprocessing ends without atexit, but not without its own finalizers.
        util = sys.modules.get("multiprocessing.util")
        self._finalizer = util.Finalize(None, self.close, exitpriority=0) if util else None

    def run(self, argv: Sequence[Argument], *, check: bool = False, **options: Unpack[Options]) -> Result:
        """Run a command to its end and return what is known about it; see `pinfold.run`."""
        result = self.carry_out(plan_again(argv, options))
        if check:
            result.check_returncode()
        return result

    def carry_out(self, wanted: Plan, attend: Callable[[Supervision, Loop], None] | None = None) -> Result:
        """Run what was planned, in this thread. `attend`: called once it was started; may watch more in its loop."""
        loop = Loop()
        supervision = self._supervision(wanted, loop)
        try:
            self._register(supervision)
            supervision.drive(attend)
        finally:
            self._running.discard(supervision)
            loop.close()
        return report(wanted, supervision.ending)

    def start(self, argv: Sequence[Argument], **options: Unpack[Options]) -> Run:
        """Start a command and return while it runs; see `pinfold.start`."""
        wanted = plan_again(argv, {**options, "manual": True})
        loop = self._shared_loop()

        made: list[Supervision] = []

        def supervise(on_end: Callable[[], None]) -> Supervision:
            made.append(self._supervision(wanted, loop, on_end))
            self._register(made[0])
            return made[0]

        try:
            return Run(wanted, loop, supervise, self._running.discard)
        except BaseException:
            # One of a signal handler may come on the way back from `supervise`: then Run knows of nothing.
            for supervision in made:
                if not supervision.begun:
                    self._running.discard(supervision)
            raise

    def _shared_loop(self) -> SharedLoop:
        self._require_owner()
        with self._opening:
            if self._loop is not None and self._loop.failure is not None:
                self._loop.stop()
                self._loop = None
            if self._loop is None:
                try:
                    self._loop = SharedLoop()
                except RuntimeError as error:  # clone(2) has refused
                    raise Error(f"no thread for the started runs: {error}") from error
            return self._loop

    def _supervision(self, wanted: Plan, loop: Loop, on_end: Callable[[], None] | None = None) -> Supervision:
        self._require_owner()
        return Supervision(self._backend, wanted, loop, self._heap, on_end)

    def _require_owner(self) -> None:
        if self._pid != os.getpid():
            raise Error("this Fold was opened before fork(); open a new one in the child")

    def _register(self, supervision: Supervision) -> None:
        # In this order, as `close` in another thread has the opposite one: either it sees us, or we see it.
        self._running.add(supervision)
        if self._closed:
            self._running.discard(supervision)
            raise Error("this fold is closed")

    @property
    def guard(self) -> int | None:
        """The pid of the fold's guard; None where each run has one of its own (`scope_per_run`)."""
        return self._backend.guard

    @property
    def lost(self) -> bool:
        """Whether the fold's scope was stopped from outside: its runs are canceled, and it starts no others."""
        return self._backend.lost

    @property
    def usable(self) -> bool:
        """Whether it starts commands: it is neither lost nor closed."""
        return not (self._closed or self._backend.lost)

    @property
    def path(self) -> str:
        """The base cgroup, as /proc/PID/cgroup writes it."""
        return self._backend.path

    @property
    def has_owner_record(self) -> bool:
        """Whether the base cgroup carries our owner record (an extended attribute)."""
        return self._backend.has_owner_record

    def close(self) -> None:
        """Kill what is still running, wait for it, and remove the base cgroup.

        Call it again to resume after an exception (a second Ctrl-C).
        """
        self._closed = True
        forked = self._pid != os.getpid()
        with contextlib.nullcontext() if forked else self._closing:
            if not self._done:
                self._close(forked=forked)

    def _close(self, *, forked: bool) -> None:
        end = time.monotonic() + _CLOSE_BOUND
        while not forked and self._running and time.monotonic() < end:
            for supervision in list(self._running):
                supervision.life.cancel()
            with contextlib.suppress(CgroupError):
                self._backend.kill()  # again and again: a run may be about to start
            time.sleep(_CLOSE_LOOK)
        loop, self._loop = self._loop, None
        if loop is not None and forked:
            loop.abandon()
        elif loop is not None:
            loop.stop()
        if not forked:
            clear_all(self._heap)
        self._backend.close(forked=forked)
        collect()
        spawn.release()
        self._done = True
        atexit.unregister(self.close)
        if self._finalizer is not None:
            self._finalizer.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


_default: Fold | None = None
_opening = threading.Lock()


class FoldOptions(TypedDict, total=False):
    """The arguments of Fold."""

    backend: BackendName
    slice: str | None
    scope_per_run: bool
    move_caller: bool
    spare: bool
    labels: Mapping[str, str] | None


def default_fold(**options: Unpack[FoldOptions]) -> Fold:
    """The fold of the module's functions: opened on first use, and again after it was closed or lost.

    It is closed when the interpreter exits.

    With options it has to be the first use: `pinfold.default_fold(move_caller=True)` lets a program in a login session
    run commands in scopes of its user manager. Raises UsageError if it is open already.
    """
    global _default
    fold = _default
    if fold is not None and not options and fold.usable:
        return fold
    with _opening:
        if _default is not None and not _default.usable:
            _default.close()
            _default = None
        if _default is not None and options:
            raise UsageError(f"the default fold is open already: say {', '.join(options)} before the first run")
        if _default is None:
            _default = Fold(**options)
        return _default


def _after_fork() -> None:
    """A forked child has our fds, not our fold: it opens its own when it needs one."""
    global _default, _opening
    _opening = threading.Lock()
    if _default is not None:
        _default.close()
        _default = None


os.register_at_fork(after_in_child=_after_fork)


def run(argv: Sequence[Argument], *, check: bool = False, **options: Unpack[Options]) -> Result:
    """Run a command in a cgroup of its own, and return when nothing of it is left.

    Takes what `subprocess.run` takes, and the Options described there. How the command ended is in the Result and
    raises nothing, unless `check=True`: then TimeoutExpired or CommandFailed, both carrying the Result. A command that
    could not be started raises SpawnError (also a FileNotFoundError or PermissionError where it is one); wrong
    arguments raise UsageError; a host without usable cgroup v2 NoCgroup2 or NotDelegated.

    When it returns or raises, no process of the command is alive (`cgroup.kill`, cgroup-v2.rst), what was written
    before the end has been read, and its cgroup is gone; or the receipt says which of these could not be kept.
    """
    return default_fold().run(argv, check=check, **options)


def start(argv: Sequence[Argument], **options: Unpack[Options]) -> Run:
    """Start a command in a cgroup of its own and return a Run while it runs; its limits are kept by a thread.

    PIPE gives the caller streams: `Run.stdin`, `.stdout`, `.stderr`. Raises as `run` does.
    """
    return default_fold().start(argv, **options)
