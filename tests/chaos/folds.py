"""Owners that are unlike others: with hundreds of folds, with pools of workers, in a pid namespace of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

from tests.chaos import wild
from tests.chaos.ground import PATIENCE, SLOWNESS, Child, Figures, Ground, _argv, wait_until

from pinfold.lease import sweep
from pinfold.runs.fold import Fold

_MANY_BOUND = 5.0 * SLOWNESS  # seconds from the kill of an owner of hundreds
_WORKERS = 2
_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
_IN_NAMESPACE = """\
import signal, sys
from pinfold.runs.fold import Fold
from tests.chaos import wild
fold = Fold()
fold.start(wild.COMMAND, stdout=1)
signal.pause()
"""


def folds(ground: Ground, count: int, figures: Figures, rng: random.Random):
    """So many folds in one process; then the pools; then the namespaces."""
    _many(ground, count, figures)
    for method in ("fork", "spawn"):
        _pool(ground, method, figures)
    if shutil.which("unshare") is None or os.geteuid() != 0:
        figures.counts["namespaces skipped: they need root and unshare(1)"] = 1
        return
    for init in (True, False):
        _namespace(ground, figures, init=init)


# ---- many ------------------------------------------------------------------------------------------------------------


def owner_of_many(count: int, out: int):
    """The executor: each fold with a run."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    opened = [Fold() for _ in range(count)]
    for fold in opened:
        fold.start(wild.SLEEP)
    os.write(out, b"ready\n")
    signal.pause()


def _many(ground: Ground, count: int, figures: Figures):
    reads, writes = os.pipe()
    began = time.monotonic()
    child = Child(owner_of_many, count, writes)
    os.close(writes)
    try:
        if not wild.Ear(reads).hears(b"ready", 60 * SLOWNESS):
            figures.fail(f"{count} folds were not opened")
        figures.counts[f"ms to open {count} folds and start a run in each"] = round((time.monotonic() - began) * 1e3)
        figures.counts["processes of them"] = len(ground.processes())
        _kill_and_settle(ground, child, figures, f"{count} folds")
    finally:
        os.close(reads)


def _kill_and_settle(ground: Ground, child: Child, figures: Figures, what: str):
    began = time.monotonic()
    child.kill()
    child.wait()
    found = Figures(what, _MANY_BOUND)
    ground.settle(found, what, began)
    figures.tried += 1
    figures.failures += found.failures
    for name, times in found.times.items():
        figures.times[f"{what} {name}"] += times


# ---- pools -----------------------------------------------------------------------------------------------------------


def owner_of_a_pool(method: str, out: int):
    """The executor, with a run before and one after its workers came."""
    with Fold() as fold:
        before = fold.start(wild.COMMAND, stdout=subprocess.DEVNULL)
        with multiprocessing.get_context(method).Pool(_WORKERS) as pool:
            pids = set(pool.map(_worker, range(4 * _WORKERS)))
            after = fold.start(wild.COMMAND, stdout=subprocess.DEVNULL)
            fold.run(["/bin/true"])
            if before.poll() is not None or after.poll() is not None:
                raise RuntimeError("a run has ended with the coming of the workers")
            os.write(out, b"%d workers\nready\n" % len(pids))
            signal.pause()


def _worker(_number: int) -> int:
    return os.getpid()


def _pool(ground: Ground, method: str, figures: Figures):
    what = f"{method} pool"
    reads, writes = os.pipe()
    child = Child(owner_of_a_pool, method, writes)
    os.close(writes)
    try:
        if not wild.Ear(reads).hears(b"ready", PATIENCE):
            figures.fail(f"{what}: it never came")
        began = time.monotonic()
        child.kill()
        child.wait()
        # Workers outlive the owner that was killed; its folds do not, though workers were forked while it had them.
        wait_until(lambda: not ground.cgroups() and not ground.guards(), f"the end of the fold with a {what}")
        figures.took(f"{what} to gone", time.monotonic() - began)
        figures.counts[f"processes of a {what} alive then"] = len(ground.beside())
        for pid in ground.beside():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ground.settle(Figures(what, PATIENCE), what, time.monotonic())
        figures.tried += 1
    except TimeoutError as error:
        figures.fail(f"{what}: {error}: {ground.cgroups()}")
        ground._clear()
    finally:
        os.close(reads)


# ---- namespaces ------------------------------------------------------------------------------------------------------


def _namespace(ground: Ground, figures: Figures, *, init: bool):
    """An owner that is, or is not, the first process of a pid namespace; killed from here."""
    what = f"owner in a pid namespace, {'its init' if init else 'not its init'}"
    program = [sys.executable, "-c", _IN_NAMESPACE]
    argv = [*_NAMESPACE, *(program if init else ["sh", "-c", '"$@" & wait; exec sleep 1000', "sh", *program])]
    # util-linux 2.38 complains of its own sigprocmask with --kill-child.
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=quiet, stderr=quiet)
    try:
        if not wild.Ear(process.stdout.fileno()).hears(b"ready", PATIENCE):
            figures.fail(f"{what}: it never came")
            return
        owner = next(pid for pid in ground.beside() if _argv(pid)[:3] == [word.encode() for word in program])
        # More may come, as its owner makes a cgroup for the next run; and shells may go that have forked twice.
        asleep = {pid for pid in ground.inside() if _argv(pid)[:2] == [b"sleep", b"1000"]}
        cgroups = set(ground.cgroups())
        swept = list(sweep.sweep(ground.place))
        gone = asleep - ground.inside(), cgroups - set(ground.cgroups())
        if swept or any(gone):
            figures.fail(f"{what}: a sweep has touched it while it lived: {swept}, gone: {gone}")
        began = time.monotonic()
        os.kill(owner, signal.SIGKILL)
        if init:  # the kernel ends its namespace with it, the guard too
            process.wait(PATIENCE)
            found = list(sweep.sweep(ground.place))
            figures.counts[f"swept behind an {what}"] = len(found)
        wait_until(lambda: not ground.cgroups(), f"the end of the fold of an {what}")
        figures.took(f"{what} to gone", time.monotonic() - began)
        figures.tried += 1
    except TimeoutError as error:
        figures.fail(f"{what}: {error}: {ground.cgroups()}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        ground.settle(Figures(what, PATIENCE), what, time.monotonic())
