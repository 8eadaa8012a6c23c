r"""Run a command in a cgroup v2 of its own, and see to it that nothing of it strays.

>>> import pinfold
>>> result = pinfold.run(["sh", "-c", "setsid sleep 60 & echo started"], capture_output=True, timeout=5)
>>> result.stdout, result.outcome, result.receipt.strays
(b'started\n', 'exited', 1)
"""

from pinfold.errors import (
    CgroupError,
    CommandFailed,
    CommandNotExecutable,
    CommandNotFound,
    Error,
    NoCgroup2,
    NoSystemd,
    NotDelegated,
    RunError,
    SpawnError,
    TimeoutExpired,
    Unsupported,
    UsageError,
)
from pinfold.limits import Limits
from pinfold.policy import Policy
from pinfold.result import Outcome, Placement, Receipt, Result, Stray, Stream, Usage
from pinfold.run.fold import Fold, default_fold, run, start
from pinfold.run.run import Run
from pinfold.run.stdio import DEVNULL, PIPE, STDOUT

__version__ = "0.1.0"

__all__ = [
    "DEVNULL", "PIPE", "STDOUT", "CgroupError", "CommandFailed", "CommandNotExecutable", "CommandNotFound", "Error",
    "Fold", "Limits", "NoCgroup2", "NoSystemd", "NotDelegated", "Outcome", "Placement", "Policy", "Receipt", "Result",
    "Run", "RunError", "SpawnError", "Stray", "Stream", "TimeoutExpired", "Unsupported", "Usage", "UsageError",
    "default_fold", "run", "start",
]  # fmt: skip
