"""The end of a run by force: for when an exception has passed through, maybe in the middle of an action."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING, Final

from pinfold.cgroup import signals
from pinfold.runs.bounds import KILL_BOUND, REMOVE_BOUND

if TYPE_CHECKING:
    from pinfold.runs.supervision import Supervision

_ATTEMPTS: Final = 100  # each second exception costs one
_LOOK: Final = 0.001


def end(run: Supervision) -> None:
    """Kill and clean up.

    The lifecycle is not asked, and each step can be done twice: whatever a second exception (another Ctrl-C) cuts short
    is begun again.
    """
    until = time.monotonic() + KILL_BOUND
    for _ in range(_ATTEMPTS):
        if run.ended:
            return
        with contextlib.suppress(BaseException):  # the first one is on its way to the caller
            _end(run, until)


def _end(run: Supervision, until: float) -> None:
    if run.born and run.pid is None:
        run.pid, run.pidfd, run.born_inside = run.born[0]
    if hasattr(run, "scope") and not run.removed:
        cgroup = run.scope.cgroup
        cgroup.kill()
        while time.monotonic() < until and not (run.reaped() and not cgroup.populated()):
            run.signal_main(signal.SIGKILL)
            signals.signal_all(cgroup, signal.SIGKILL)
            cgroup.kill()
            cgroup.freeze(False)
            time.sleep(_LOOK)
        run.emptied = run.reaped() and not cgroup.populated()
        run.removed = cgroup.remove_within(REMOVE_BOUND if run.emptied else 0)
    run.release()
