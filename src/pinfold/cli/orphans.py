"""A second net, for the command line only: whatever leaves the cgroup does not leave the family.

Root can write itself into another cgroup. But a process cannot choose its ancestors: as child subreaper
(PR_SET_CHILD_SUBREAPER, prctl(2), Linux 3.4) we become the parent of everything that is orphaned below us, so what
escaped is found by its descent. A library could not tell its host's children from ours; this process has only ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from pinfold.proc import argv_within, children, proc_is_ours
from pinfold.result import Stray
from pinfold.runs.strays import Naming
from pinfold.spawn._spawn import prctl
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


_PR_SET_CHILD_SUBREAPER: Final = 36
_SWEEP_BOUND: Final = 2.0
_NAMING_BOUND: Final = 0.02
_PEEK: Final = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Orphans:
    """The descendants of this process that are no longer in their cgroup."""

    def __init__(self) -> None:
        """Adopt from now on; not if this process came with children (`sh -c 'job & exec pinfold …'`): not ours."""
        # In a /proc of another pid namespace the numbers mean other processes.
        self.adopting = proc_is_ours() and not _have_children() and _become_subreaper()

    def reap(self, main: int) -> None:
        """Collect those that have ended, but never the main process, whose status its run collects."""
        with contextlib.suppress(ChildProcessError):
            while self.adopting and (info := os.waitid(os.P_ALL, 0, _PEEK)) and info.si_pid != main:
                os.waitpid(info.si_pid, 0)

    def sweep(self, keep: int | None = None) -> list[Stray]:
        """After the run: kill what is left of the family but the fold's guard; returns whom it met alive."""
        found: list[Stray] = []
        end = time.monotonic() + _SWEEP_BOUND
        while self.adopting and _have_children(but=keep) and time.monotonic() < end:
            living = [pid for pid in _living_descendants() if pid != keep]
            found += _named([pid for pid in living if pid not in {stray.pid for stray in found}])
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.reap(keep or 0)
        return found


def _named(pids: list[int]) -> list[Stray]:
    strays = Naming(pids).strays()
    argv = argv_within([stray.pid for stray in strays if stray.comm is not None], _NAMING_BOUND)
    return [stray._replace(argv=argv.get(stray.pid)) for stray in strays]


def _become_subreaper() -> bool:
    try:
        return prctl(_PR_SET_CHILD_SUBREAPER, 1) == 0
    except OSError:
        return False


def _have_children(but: int | None = None) -> bool:
    if but is None:
        try:
            os.waitid(os.P_ALL, 0, _PEEK)
        except ChildProcessError:
            return False
        return True
    try:
        return bool({*children()} - {but})
    except OSError:  # CONFIG_PROC_CHILDREN is off
        return bool(set(_living_descendants()) - {but})


def _living_descendants() -> list[int]:
    import psutil

    # psutil checks creation times, so a pid that was recycled between the listing and here is not in it.
    return [p.pid for p in psutil.Process().children(recursive=True) if p.is_running() and p.status() != "zombie"]
