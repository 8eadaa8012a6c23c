"""Programs of the tests of ps, kill and gc: an executor that does what it is told, and the command line in a part of
the hierarchy, so that no test sees what else is on the host. Each may be started as uid 65534, in a cgroup of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from unittest import mock

import pinfold
from pinfold.cgroup import places
from pinfold.lease import find


def import_everything() -> None:
    """What is imported late might not be readable any more for uid 65534."""
    from pinfold.cli.main import cli

    for name in ("traceback", "pinfold.cli.gc"):
        importlib.import_module(name)
    # As root: without the sweep that goes with each opening.
    with mock.patch("pinfold.lease.sweep.beside"), pinfold.Fold(backend="cgroupfs") as fold:
        fold.start(["true"], stdout=pinfold.PIPE).communicate()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        cli.main(["ps", "--label", "x"], standalone_mode=False)
        cli.main(["kill"], standalone_mode=False)


def become_nobody(directory: str) -> None:
    with open(directory + "/cgroup.procs", "w") as procs:
        procs.write("0")
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def execute(labels, runs) -> None:
    """Open a fold and start these runs, say so, and say their outcomes when stdin says anything; else go on."""
    with pinfold.Fold(backend="cgroupfs", labels=labels) as fold:
        started = [fold.start(argv, labels=each, stdout=pinfold.PIPE, stdin=pinfold.DEVNULL) for argv, each in runs]
        for run in started:
            run.stdout.readline()  # it is ready
        ids = [run.run_id for run in started]
        said = {"fold": fold.path, "guard": fold.guard, "ids": ids, "pids": [run.pid for run in started]}
        print(json.dumps(said), flush=True)
        while at := sys.stdin.readline():
            result = started[int(at)].wait(20)
            print(json.dumps([result.outcome, result.receipt.emptied, result.receipt.removed]), flush=True)
        for run in started:
            run.stdout.close()


if __name__ == "__main__":
    what, nobody, rest = sys.argv[1], sys.argv[2], sys.argv[3:]
    place = places.place_at(rest[0])
    if nobody:
        import_everything()
        become_nobody(nobody)
    if what == "execute":
        execute(*json.loads(rest[1]))
    else:
        find.top = lambda: place
        sys.argv[0] = "pinfold"
        from pinfold.cli.main import main

        main(rest[1:])
