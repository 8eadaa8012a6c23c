"""A run in which one system call fails, whichever it is: it says so or goes on, and nothing is left."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import json
import os
import random
import select
import time
import traceback
import warnings
from collections import Counter
from typing import Any, NamedTuple

from tests.chaos import injector, wild
from tests.chaos.ground import PATIENCE, SLOWNESS, Child, Figures, Ground

from pinfold.errors import Error
from pinfold.lease import sweep
from pinfold.runs.fold import Fold

ERRORS = (
    errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO, errno.EINTR, errno.EPERM,
    errno.EBUSY, errno.ENODEV,
)  # fmt: skip
_DEADLINE = 15.0 * SLOWNESS
_GUARD_BOUND = 3.0 * SLOWNESS  # then it is a sweep's
_DRY = 3
_STRAYS = ["/bin/sh", "-c", "sleep 1000 & setsid sleep 1000 & exec sleep 1000"]


class _Phase(NamedTuple):
    """`before` is left alone, `act` is under test; both get the names they share."""

    before: Any
    act: Any


def _nothing(shared):
    pass


def _open(shared):
    shared.fold = Fold()


def _run(shared):
    shared.result = shared.fold.run(["/bin/true"], capture_output=True, timeout=20)


def _time_out(shared):
    shared.result = shared.fold.run(_STRAYS, capture_output=True, timeout=0.03)


def _start(shared):
    shared.run = shared.fold.start(wild.SLEEP)


def _start_and_kill(shared):
    with shared.fold.start(wild.SLEEP, timeout=60) as run:
        run.kill()
        shared.result = run.wait(_DEADLINE)


def _open_and_start(shared):
    _open(shared)
    _start(shared)


def _close(shared):
    shared.fold.close()


PHASES = {
    "open": _Phase(_nothing, _open),
    "run": _Phase(_open, _run),
    "time out": _Phase(_open, _time_out),
    "start and kill": _Phase(_open, _start_and_kill),
    "close": _Phase(_open_and_start, _close),
}


class _Shared:
    fold: Fold | None = None
    result: Any = None
    run: Any = None


def _fds() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return {name: target for name, target in found.items() if not target.startswith("/proc/")}


def owner(phase: _Phase, control: int, stderr: int):
    """The process that has to bear it. What it finds goes to `control`; `stderr` should stay empty."""
    os.dup2(stderr, 2)
    warnings.simplefilter("always")
    faulthandler.dump_traceback_later(_DEADLINE * 0.8)
    shared = _Shared()
    before = _fds()
    phase.before(shared)
    listener = injector.install(control)
    os.write(control, b"%d\n" % listener)
    raised: BaseException | None = None
    try:
        phase.act(shared)
    except BaseException as error:
        raised = error
    os.write(control, b"disarm\n")
    found = {"raised": _described(raised), "expected": isinstance(raised, (Error, OSError, MemoryError, type(None)))}
    found |= {"outcome": shared.result.outcome if shared.result is not None else None}
    del raised
    if shared.fold is not None:
        shared.fold.close()
    shared.fold = shared.run = shared.result = None
    gc.collect()
    os.close(listener)
    leaked = sorted(set(_fds().items()) - set(before.items()))
    with contextlib.suppress(ChildProcessError):
        found["child"] = os.waitpid(-1, os.WNOHANG)
    os.write(control, json.dumps({**found, "leaked": leaked}).encode() + b"\n")
    faulthandler.cancel_dump_traceback_later()


def _described(error: BaseException | None) -> str | None:
    if error is None:
        return None
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    way = " > ".join(f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__name__}: {error} ({way})"


class _Trial:
    """One phase in one child, with the call at `position` failed."""

    def __init__(self, ground: Ground, phase: str, position: int = -1, error: int = 0):
        self._ground = ground
        self.found: dict[str, Any] | None = None
        self.problems: list[str] = []
        self.left = self.swept = False
        self._heard = b""
        self._disarmed = False
        self._reads, writes = os.pipe2(os.O_NONBLOCK)
        stderr = os.memfd_create("stderr")
        self._child = Child(owner, PHASES[phase], writes, stderr)
        os.close(writes)
        self._asked: injector.ScopeRequest | None = None
        try:
            self._supervise(position, error)
            self._settle()
        finally:
            if self._asked is not None:
                self._asked.close()
            os.close(self._reads)
            said = os.pread(stderr, 1 << 16, 0).decode(errors="replace")
            os.close(stderr)
        self._judge(said)

    def _listen(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self._heard += os.read(self._reads, 1 << 16)
        while b"\n" in self._heard:
            line, _, self._heard = self._heard.partition(b"\n")
            if line == b"disarm":
                self._disarmed = True
            elif line.isdigit():
                self._number = int(line)
            else:
                self.found = json.loads(line)
                self.left = bool(self._ground.cgroups() or self._ground.beside() - {self._child.pid})
        return not self._disarmed

    def _supervise(self, position: int, error: int):
        """Until it has ended, or has not within the deadline."""
        end = time.monotonic() + _DEADLINE
        poll = select.poll()
        for fd in (self._reads, self._child.pidfd):
            poll.register(fd, select.POLLIN)
        self._number = -1
        while not self._child.ended(0):
            if time.monotonic() > end:
                self._child.kill()
            poll.poll(100)
            self._listen()
            if self._number >= 0:
                if self._asked is None:
                    self._asked = injector.ScopeRequest(self._child.pidfd, self._number, self._listen, position, error)
                    poll.register(self._asked.fd, select.POLLIN)
                if not self._asked.answer():
                    poll.unregister(self._asked.fd)
                    self._number = -1
            if self.found is not None:
                self._drain_until_end(end)
        self._listen()
        status = self._child.wait()
        if status != 0:
            self.problems.append("it hangs" if time.monotonic() > end else f"it ended with {status}")

    def _drain_until_end(self, end: float):
        while not self._child.ended(0.0005) and time.monotonic() < end:
            if self._asked is not None:
                self._asked.answer()

    def _settle(self):
        """What it has left is its guard's, then a sweep's."""
        began = time.monotonic()
        while self._ground.cgroups() or self._ground.beside():
            if self._asked is not None:
                self._asked.answer()  # its guard has the filter too
            took = time.monotonic() - began
            if took > _GUARD_BOUND and not self.swept:
                self.swept = True
                list(sweep.sweep(self._ground.place))
            if took > _GUARD_BOUND + PATIENCE:
                self.problems.append(f"left: {self._ground.cgroups()} {self._ground.processes()}")
                self._ground._clear()
            time.sleep(0.0005)

    def _judge(self, said: str):
        if said:
            self.problems.append(f"it printed: {' | '.join(said.split(chr(10))[-12:])}")
        if self.found is None:
            self.problems.append("it reported nothing")
            return
        if not self.found["expected"]:
            self.problems.append(f"it raised {self.found['raised']}")
        if self.found["leaked"]:
            self.problems.append(f"it leaked {self.found['leaked']}; raised {self.found['raised']}")
        if "child" in self.found:
            self.problems.append(f"a child: {self.found['child']}")

    @property
    def calls(self) -> list[int]:
        return self._asked.calls if self._asked is not None else []

    @property
    def failed(self) -> int | None:
        return self._asked.failed if self._asked is not None else None


def faults(ground: Ground, count: int, figures: Figures, rng: random.Random):
    """Each position of each phase with each error; `count` of them at random, or with 0 all."""
    if not injector.SUPPORTED:
        figures.counts["(skipped: the injector is written for x86-64)"] = 0
        return
    known = injector.names()
    trials = []
    for phase in PHASES:
        dry = [_Trial(ground, phase) for _ in range(_DRY)]
        for problem in (problem for one in dry for problem in one.problems):
            figures.fail(f"{phase}, nothing failed: {problem}")
        positions = max(len(one.calls) for one in dry)
        figures.counts[f"positions of {phase}"] = positions
        trials += [(phase, position, error) for position in range(positions) for error in ERRORS]
    if count:
        trials = rng.sample(trials, count)
    problems: Counter[str] = Counter()
    for phase, position, error in trials:
        trial = _Trial(ground, phase, position, error)
        figures.tried += 1
        if trial.failed is None:
            figures.counts["not reached"] += 1
        elif trial.found is not None:
            figures.counts["with a Result or none due" if trial.found["raised"] is None else "with an error"] += 1
        figures.counts["left to the guard or a sweep"] += trial.left
        figures.counts["left to a sweep"] += trial.swept
        call = known.get(trial.failed, trial.failed) if trial.failed is not None else "-"
        for problem in trial.problems:
            problems[f"{phase}: {call}"] += 1
            figures.fail(f"{phase}, call {position} ({call}) with {errno.errorcode[error]}: {problem}")
