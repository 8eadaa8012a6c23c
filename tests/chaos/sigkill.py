"""SIGKILL to the executor, at any moment: with its guard, and with the guard killed before it and one sweep after."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time

from tests.chaos import wild
from tests.chaos.ground import PATIENCE, Child, Figures, Ground, wait_until

from pinfold.lease import sweep
from pinfold.runs.fold import Fold

_MEASURED = 7
_AFTER = 0.03  # seconds beyond the command's last word in which we still kill
_CLI_OF = 5  # one in so many trials is the command line, which takes ten times as long to start


def sigkill(ground: Ground, count: int, figures: Figures, rng: random.Random):
    """With the guard alive."""
    _trials(ground, count, figures, rng, guard_first=False)


def sigkill_guard_first(ground: Ground, count: int, figures: Figures, rng: random.Random):
    """Without: what is left is a sweep's, and one is enough."""
    _trials(ground, count, figures, rng, guard_first=True)


def negative_control(ground: Ground, count: int, figures: Figures, rng: random.Random):
    """With neither guard nor sweep the command is left: what the other cases look for can be found."""
    for _ in range(count):
        reads, writes = os.pipe()
        child = Child(library, writes, False)
        os.close(writes)
        wild.Ear(reads).hears(b"ready", PATIENCE)
        child.kill(signal.SIGSTOP)
        wait_until(lambda: _no_guards(ground), "the guard's end")
        child.kill()
        child.wait()
        os.close(reads)
        figures.tried += 1
        if not ground.inside() or not ground.cgroups() or not ground.marked():
            figures.fail("nothing was left, or it was not found")
        figures.counts["processes left"] += len(ground.inside())
        list(sweep.sweep(ground.place))
        ground.settle(figures, "after a sweep", time.monotonic())


def library(out: int, started: bool):
    """The executor: a fold, and one run in it."""
    with Fold() as fold:
        if started:
            with fold.start(wild.COMMAND, stdout=out, timeout=60) as run:
                run.wait()
        else:
            fold.run(wild.COMMAND, stdout=out, timeout=60)


class _CommandLine:
    """`pinfold run`, looking like a Child."""

    def __init__(self, out: int):
        words = [sys.executable, "-m", "pinfold", "run", "--timeout", "60", "--", *wild.COMMAND]
        self.began = time.monotonic()
        self._process = subprocess.Popen(words, stdout=out, stdin=subprocess.DEVNULL)
        self.pid = self._process.pid

    def kill(self, number: int = signal.SIGKILL):
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait()


def _launch(kind: str, out: int):
    return _CommandLine(out) if kind == "cli" else Child(library, out, kind == "start")


def _path(ground: Ground, kind: str) -> tuple[float, float]:
    """How long an executor takes to its command's exec, and to the last of its descendants: medians, in seconds."""
    started, ready = [], []
    for _ in range(_MEASURED if kind != "cli" else 3):
        reads, writes = os.pipe()
        child = _launch(kind, writes)
        os.close(writes)
        ear = wild.Ear(reads)
        for word, times in ((b"started", started), (b"ready", ready)):
            if not ear.hears(word, PATIENCE):
                raise TimeoutError(f"the command of {kind} never said {word!r}")
            times.append(time.monotonic() - child.began)
        child.kill()
        child.wait()
        os.close(reads)
        ground.settle(Figures("measured", PATIENCE), "measured", time.monotonic())
    return statistics.median(started), statistics.median(ready)


def _trials(ground: Ground, count: int, figures: Figures, rng: random.Random, *, guard_first: bool):
    paths = {kind: _path(ground, kind) for kind in ("run", "start", "cli")}
    for kind, (started, ready) in paths.items():
        figures.counts[f"us to exec of {kind}"] = round(started * 1e6)
        figures.counts[f"us to ready of {kind}"] = round(ready * 1e6)
    for number in range(count):
        kind = "cli" if number % _CLI_OF == _CLI_OF - 1 else ("run", "start")[number % 2]
        started, ready = paths[kind]
        early = number // _CLI_OF % 2 == 0
        moment = rng.uniform(0, started) if early else rng.uniform(started, ready + _AFTER)
        _trial(ground, figures, kind, moment, guard_first=guard_first)


def _no_guards(ground: Ground) -> bool:
    """Kill those that are there; one may have been on its way when its executor was stopped."""
    guards = ground.guards()
    for pid in guards:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not guards


def _trial(ground: Ground, figures: Figures, kind: str, moment: float, *, guard_first: bool):
    what = f"{kind} killed after {moment * 1e3:.2f} ms"
    reads, writes = os.pipe()
    child = _launch(kind, writes)
    os.close(writes)
    try:
        while (left := child.began + moment - time.monotonic()) > 0:
            time.sleep(left)
        if guard_first:
            child.kill(signal.SIGSTOP)  # else it starts another guard
            wait_until(lambda: _no_guards(ground), "the guard's end")
        began = time.monotonic()
        child.kill()
        if child.wait() != -signal.SIGKILL:
            figures.fail(f"{what}: it had ended by itself")
        figures.counts["with a command" if ground.inside() else "without one"] += 1
        if guard_first:
            for _ in sweep.sweep(ground.place):
                figures.counts["swept"] += 1
        figures.tried += 1
        if ground.settle(figures, what, began) and not wild.Ear(reads).ended(0.5):
            figures.fail(f"{what}: the command's pipe is still open")
    finally:
        os.close(reads)
