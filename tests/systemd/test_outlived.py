"""An owner that dies: its scopes go with it, whoever else holds what was its."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pinfold.cgroup import places
from pinfold.lease import find, sweep

OWNER = """
import os, sys, time, pinfold
fold = pinfold.Fold(backend="systemd", scope_per_run=sys.argv[1] == "own scope")
line = "setsid sleep 600 & (setsid sleep 600 &) ; kill -STOP $$"
runs = [fold.start(["sh", "-c", line]) for _ in range(3)]
child = os.fork() if sys.argv[2] == "forked" else 1
if child:
    paths = [run.placement.cgroup for run in runs]
    print(fold.guard or 0, *paths, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def owner(*arguments: str):
    """(process, pid of its guard or 0, the cgroups of its runs)"""
    argv = [sys.executable, "-c", OWNER, *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        try:
            guard, *paths = process.stdout.readline().split()
            top = places.own_place()
            root = top.directory.removesuffix(top.path)
            yield process, int(guard), [Path(root + path) for path in paths]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its forked child, too


@pytest.mark.parametrize("forked", ["alone", "forked"])
@pytest.mark.parametrize("kind", ["fold", "own scope"])
def test_scopes_and_runs_end_with_their_owner(booted, scopes, wait_until, kind, forked):
    with owner(kind, forked) as (process, _guard, runs):
        assert len(scopes()) == (1 if kind == "fold" else 3)
        assert all("populated 1" in (run / "cgroup.events").read_text() for run in runs)
        process.kill()
        wait_until(lambda: not any(run.exists() for run in runs), "the runs to go")
        wait_until(lambda: not scopes(), "the scopes to go")


def test_where_the_guard_was_killed_too_a_sweep_does_it(booted, scopes, wait_until):
    with owner("fold", "alone") as (process, guard, runs):
        os.kill(process.pid, signal.SIGSTOP)  # or it would end its runs, whose scope seems to be stopped
        os.kill(guard, signal.SIGKILL)
        process.kill()
        process.wait(10)
        assert all("populated 1" in (run / "cgroup.events").read_text() for run in runs)
        swept = [one for one in sweep.sweep(find.top()) if one.action == "removed"]
        (base,) = (one.cgroup for one in swept)
        assert str(runs[0].parent).endswith(base)
        wait_until(lambda: not any(run.exists() for run in runs), "the runs to go")
        wait_until(lambda: not scopes(), "the scope to go")
