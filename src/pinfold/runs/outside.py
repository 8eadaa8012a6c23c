"""What others see of a run, and do to it: `pinfold ps`, `pinfold kill`, and the manager of its scope."""

from __future__ import annotations

import contextlib
import signal
from typing import Final

from pinfold.backend import Scope
from pinfold.lease import record

_OF_A_STOP: Final = (-signal.SIGTERM, -signal.SIGKILL, -signal.SIGHUP)


def tell(scope: Scope, run: record.Run) -> None:
    """Write on its cgroup what it is. A kernel that takes no such record is no reason not to run."""
    with contextlib.suppress(OSError):
        record.write(scope.cgroup.dir, record.RUN, run)


def was_canceled(scope: Scope, returncode: int | None) -> bool:
    """Whether somebody outside has asked for the end of a run whose main process has ended."""
    with contextlib.suppress(OSError):
        if record.attribute(scope.cgroup.dir, record.CANCELED) is not None:
            return True
    # systemd ends a scope by signals to all in it, in no order: it has to be asked, by a call of the bus.
    return returncode in _OF_A_STOP and scope.warden is not None and scope.warden.revoked()
