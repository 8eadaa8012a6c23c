r"""Run a command in a cgroup v2 of its own, and see to it that nothing of it strays.

>>> import pinfold
>>> result = pinfold.run(["sh", "-c", "setsid sleep 60 & echo started"], capture_output=True, timeout=5)
>>> result.stdout, result.outcome, result.receipt.strays
(b'started\n', 'exited', 1)
"""

from typing import TYPE_CHECKING, Any

from pinfold.errors import (
    CgroupError,
    CommandNotExecutable,
    CommandNotFound,
    Error,
    NoCgroup2,
    NoSystemd,
    NotDelegated,
    SpawnError,
    UnitError,
    Unsupported,
    UsageError,
)
from pinfold.policy import Policy
from pinfold.result import Outcome, Placement, Receipt, Result, Stray, Stream, Usage
from pinfold.runs.fold import Fold, default_fold, run, start
from pinfold.runs.run import Run
from pinfold.runs.stdio import DEVNULL, PIPE, STDOUT

if TYPE_CHECKING:
    from pinfold.limits import Limits
    from pinfold.run_errors import CommandFailed, RunError, TimeoutExpired

__version__ = "0.1.0"

__all__ = [
    "DEVNULL", "PIPE", "STDOUT", "CgroupError", "CommandFailed", "CommandNotExecutable", "CommandNotFound", "Error",
    "Fold", "Limits", "NoCgroup2", "NoSystemd", "NotDelegated", "Outcome", "Placement", "Policy", "Receipt", "Result",
    "Run", "RunError", "SpawnError", "Stray", "Stream", "TimeoutExpired", "UnitError", "Unsupported", "Usage",
    "UsageError", "default_fold", "run", "start",
]  # fmt: skip

# Imported when they are named: they bring subprocess and dataclasses with them, which take longer than a run.
_LATE = {
    "CommandFailed": "pinfold.run_errors",
    "Limits": "pinfold.limits",
    "RunError": "pinfold.run_errors",
    "TimeoutExpired": "pinfold.run_errors",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'pinfold' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
