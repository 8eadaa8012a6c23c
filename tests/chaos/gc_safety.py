"""A sweep without pause among live folds, with others dying beside them: it takes those and no other."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time

from tests.chaos import wild
from tests.chaos.ground import Child, Figures, Ground, wait_until

from pinfold.lease import sweep
from pinfold.proc import start_time
from pinfold.runs.fold import Fold

_EXECUTORS, _RUNS, _DEAD_RUNS = 5, 40, 3


def living(report: int, orders: int):
    """An executor with many runs, which says what it has, waits for the end of `orders`, and says how they are."""
    with Fold() as fold:
        runs = [fold.start(wild.SLEEP) for _ in range(_RUNS)]
        _say(report, {"path": fold.path, "pids": [run.pid for run in runs]})
        os.read(orders, 1)
        _say(report, {"ended": [run.pid for run in runs if run.poll() is not None]})
        for run in runs:
            run.kill()
        _say(report, {"outcomes": sorted({run.wait().outcome for run in runs})})


def dying(report: int):
    """An executor that is going to be killed."""
    with Fold() as fold:
        for _ in range(_DEAD_RUNS):
            fold.start(wild.SLEEP)
        _say(report, {"path": fold.path, "guard": fold.guard})
        signal.pause()


def _say(fd: int, found: dict):
    os.write(fd, json.dumps(found).encode() + b"\n")


class _Executor:
    def __init__(self, function, *arguments):
        reads, writes = os.pipe()
        self.child = Child(function, writes, *arguments)
        os.close(writes)
        self._answers = os.fdopen(reads, "rb")

    def answer(self) -> dict:
        line = self._answers.readline()
        return json.loads(line) if line else {}

    def close(self):
        self._answers.close()


def gc_safety(ground: Ground, seconds: int, figures: Figures, rng: random.Random):
    """For so many seconds."""
    orders, quit_ = os.pipe()
    alive = [_Executor(living, orders) for _ in range(_EXECUTORS)]
    try:
        told = [executor.answer() for executor in alive]
        paths = {one["path"] for one in told}
        processes = {pid: start_time(pid) for one in told for pid in one["pids"]}
        figures.counts["live runs"] = len(processes)
        own = {executor.child.pid for executor in alive} | ground.guards()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            _kill_some(ground, figures, rng, paths)
        for pid, began in processes.items():
            if began is None or start_time(pid) != began:
                figures.fail(f"process {pid} of a live run is gone")
        if gone := own - ground.beside():
            figures.fail(f"executors or guards are gone: {gone}")
    finally:
        os.write(quit_, b"q" * len(alive))
        os.close(quit_)
        os.close(orders)
        for executor in alive:
            ended, outcomes = executor.answer(), executor.answer()
            if ended != {"ended": []} or outcomes != {"outcomes": ["canceled"]}:
                figures.fail(f"live runs at the end: {ended} {outcomes}")
            if status := executor.child.wait():
                figures.fail(f"an executor ended with {status}")
            executor.close()
        ground.settle(figures, "the end", time.monotonic())


def _kill_some(ground: Ground, figures: Figures, rng: random.Random, live: set[str]):
    """One more executor, which dies with its guard while sweeps are going on; until one of them has taken it away."""
    executor = _Executor(dying)
    sweeper = Child(_sweep_for, ground, 0.2) if rng.random() < 0.25 else None
    moment = time.monotonic() + rng.uniform(0, 0.04)
    while time.monotonic() < moment:
        _sweep(ground, figures, live)
    executor.child.kill(signal.SIGSTOP)  # else it starts another guard
    theirs = _guard_of(ground, executor.child.pid, live)
    for pid in theirs:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    executor.child.kill()
    executor.child.wait()
    began = time.monotonic()
    _sweep(ground, figures, live)
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: _sweep(ground, figures, live) or _only(ground, live), "its end")
    figures.took("dead to removed", time.monotonic() - began)
    if not _only(ground, live):
        figures.fail(f"not removed: {_folds(ground) - live}")
        raise RuntimeError("what is dead stays")
    if sweeper is not None:
        figures.counts["sweepers beside"] += 1
        if sweeper.wait():
            figures.fail("a sweep in a process of its own failed")
    figures.tried += 1
    executor.close()


def _sweep(ground: Ground, figures: Figures, live: set[str]):
    figures.counts["sweeps"] += 1
    for swept in sweep.sweep(ground.place):
        figures.counts[f"swept: {swept.action}"] += 1
        if swept.cgroup in live or os.path.dirname(swept.cgroup) in live:
            figures.fail(f"a sweep has touched {swept}")


def _sweep_for(ground: Ground, seconds: float):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        list(sweep.sweep(ground.place))


def _folds(ground: Ground) -> set[str]:
    return {f"{ground.place.path}/{name}" for name in os.listdir(ground.home) if name.startswith("pinfold-")}


def _only(ground: Ground, live: set[str]) -> bool:
    return _folds(ground) == live


def _guard_of(ground: Ground, owner: int, live: set[str]) -> set[int]:
    """The guard of an executor that may not have told us: as the record on its fold has it."""
    from pinfold.lease import find

    return {
        fold.owner.guard
        for fold in find.folds(ground.place)
        if fold.owner is not None and fold.owner.pid == owner and fold.owner.guard and fold.place.path not in live
    }
