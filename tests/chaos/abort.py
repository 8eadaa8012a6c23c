"""The executor dies between two steps of its own: before or after any of them, by a signal or at once."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import random
import resource
import signal
import time
from collections.abc import Callable

from tests.chaos import wild
from tests.chaos.ground import PATIENCE, Child, Figures, Ground

from pinfold.lease import sweep
from pinfold.runs.fold import Fold

# Where a function is looked up, and by which name.
STEPS = (
    "pinfold.backend.guard Guard.__init__",
    "pinfold.backend.guard start_orphan",
    "pinfold.backend.guard Guard.watch",
    "pinfold.backend.guard Guard.end",
    "pinfold.backend.cgroupfs _sweep_beside",
    "pinfold.lease.owner lock_shared",
    "pinfold.lease.owner unlock",
    "pinfold.lease.record write",
    "pinfold.cgroup.group Cgroup.make",
    "pinfold.cgroup.group Cgroup.__init__",
    "pinfold.cgroup.group Cgroup.kill",
    "pinfold.cgroup.group Cgroup.remove_until",
    "pinfold.cgroup.group Cgroup.close",
    "pinfold.cgroup.group Cgroup.list_pids",
    "pinfold.cgroup.kill signal_each",
    "pinfold.backend.base BaseCgroup.__init__",
    "pinfold.backend.base BaseCgroup.enable",
    "pinfold.backend.base BaseCgroup.scope",
    "pinfold.backend.base BaseCgroup.prepare",
    "pinfold.backend.base BaseCgroup.close",
    "pinfold.spawn.start start",
    "pinfold.runs.supervise Supervision.begin",
    "pinfold.runs.supervise Supervision.attach",
    "pinfold.runs.supervise Supervision.take",
    "pinfold.runs.main_process MainProcess._reap",
    "pinfold.runs.main_process MainProcess._let_go",
    "pinfold.runs.actions Actions._close_all",
    "pinfold.runs.remains Remains.clear",
    "pinfold.runs.loop Loop.turn",
    "pinfold.runs.loop Loop.aside",
    "pinfold.runs.stdio StdioPlan.open",
    "pinfold.runs.fold Fold.close",
    "os mkdir",
    "os rmdir",
    "os pipe2",
    "os setxattr",
    "os write",
)
DEATHS = ("SIGKILL", "_exit", "SIGSEGV")


def _die(death: str):
    if death == "_exit":
        os._exit(70)
    os.kill(os.getpid(), getattr(signal, death))


def _wrap(step: str, about: Callable[[str], None]):
    """Have `about` called with "before" and "after" at each call of a step."""
    module, _, path = step.partition(" ")
    holder = importlib.import_module(module)
    *names, last = path.split(".")
    for name in names:
        holder = getattr(holder, name)
    found = holder.__dict__[last]
    plain = found.__func__ if isinstance(found, classmethod) else found

    @functools.wraps(plain)
    def wrapped(*arguments, **options):
        about("before")
        try:
            return plain(*arguments, **options)
        finally:
            about("after")

    setattr(holder, last, classmethod(wrapped) if isinstance(found, classmethod) else wrapped)


def _play(out: int):
    """A fold's whole life: a run that ends by itself, one that times out with strays, one that is killed."""
    with Fold() as fold:
        fold.run(["/bin/true"], capture_output=True, timeout=60)
        fold.run(wild.COMMAND, stdout=out, timeout=0.02, grace=0.005)
        with fold.start(wild.SLEEP, timeout=60, stdout=out) as run:
            run.kill()
            run.wait()


def counting(out: int, report: int):
    """The executor, which says how often it has called each step."""
    counts = dict.fromkeys(STEPS, 0)

    def count(step: str, when: str):
        counts[step] += when == "before"

    for step in STEPS:
        _wrap(step, functools.partial(count, step))
    _play(out)
    os.write(report, b"\n".join(b"%d" % counts[step] for step in STEPS))


def dying(out: int, step: str, when: str, nth: int, death: str, guardless: int):
    """The executor, which dies. `guardless`: to say first that its guard is to be killed, and then wait for that."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    calls = {"before": 0, "after": 0}

    def about(now: str):
        calls[now] += 1
        if now == when and calls[now] == nth:
            if guardless >= 0:
                os.close(guardless)
                os.kill(os.getpid(), signal.SIGSTOP)
            _die(death)

    _wrap(step, about)
    _play(out)


def abort(ground: Ground, count: int, figures: Figures, rng: random.Random):
    """Each step, before and after, `count` times; in every third trial the guard dies first."""
    calls = _calls(ground)
    for step, called in calls.items():
        if not called:
            figures.fail(f"{step} was never called")
    number = 0
    for _ in range(count):
        for step, called in calls.items():
            for when in ("before", "after"):
                number += 1
                if called:
                    nth = rng.randint(1, called)
                    _trial(ground, figures, (step, when, nth, DEATHS[number % 3]), guardless=rng.random() < 1 / 3)


def _calls(ground: Ground) -> dict[str, int]:
    reads, writes = os.pipe()
    out = os.open(os.devnull, os.O_WRONLY)
    try:
        child = Child(counting, out, writes)
        os.close(writes)
        if child.wait():
            raise RuntimeError("what was not to be aborted has failed")
        return dict(zip(STEPS, map(int, os.read(reads, 1 << 16).split()), strict=True))
    finally:
        os.close(out)
        os.close(reads)


def _trial(ground: Ground, figures: Figures, plan: tuple[str, str, int, str], *, guardless: bool):
    what = "{3} {1} call {2} of {0}".format(*plan) + (", its guard killed" if guardless else "")
    reads, writes = os.pipe()
    said = os.pipe()
    child = Child(_in_child, writes, plan, said[1] if guardless else -1)
    os.close(writes)
    os.close(said[1])
    try:
        if guardless:
            _kill_guard(ground, child, figures)
        if not child.ended(PATIENCE):
            figures.fail(f"{what}: it does not end")
            child.kill()
        began = time.monotonic()
        status = child.wait()
        figures.counts["died" if status else "lived on, as it made fewer calls"] += 1
        if status == 1:
            figures.fail(f"{what}: it raised")
        if guardless and status:
            list(sweep.sweep(ground.place))
        figures.tried += 1
        if ground.settle(figures, what, began) and not wild.Ear(reads).ended(0.5):
            figures.fail(f"{what}: the command's pipe is still open")
    finally:
        os.close(reads)
        os.close(said[0])


def _in_child(out: int, plan: tuple[str, str, int, str], guardless: int):
    dying(out, *plan, guardless)


def _kill_guard(ground: Ground, child: Child, figures: Figures):
    """Wait until it stops (or has ended), kill its guard, and let it go on to its death."""
    end = time.monotonic() + PATIENCE
    while not child.ended(0):
        with contextlib.suppress(OSError), open(f"/proc/{child.pid}/stat", encoding="utf-8") as file:
            if file.read().rpartition(")")[2].split()[0] == "T":
                for pid in ground.guards():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        figures.counts["guards killed"] += 1
                child.kill(signal.SIGCONT)
                return
        if time.monotonic() > end:
            return
        time.sleep(0.0005)
