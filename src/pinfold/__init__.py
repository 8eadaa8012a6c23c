r"""Run a command in its own cgroup v2 and leave no process behind.

>>> import pinfold
>>> result = pinfold.run(["sh", "-c", "setsid sleep 60 & echo started"], capture_output=True, timeout=5)
>>> result.stdout, result.outcome, result.receipt.strays
(b'started\n', 'exited', 1)
"""

from pinfold.late import lock as _lock

# Names only: each is loaded at its first use. All of them together take longer than many a command.
TYPE_CHECKING = False  # type checkers take it for true, whatever it says
if TYPE_CHECKING:
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
    from pinfold.lease.end import Killed
    from pinfold.lease.facts import FoldFacts, ProcessFacts, RunFacts
    from pinfold.limits import Limits
    from pinfold.others import kill, ps
    from pinfold.outcomes import Outcome
    from pinfold.policy import Policy
    from pinfold.result import Placement, Receipt, Result, Stray, Stream, Usage
    from pinfold.run_errors import CommandFailed, RunError, TimeoutExpired
    from pinfold.runs.fold import Fold, default_fold, run, start
    from pinfold.runs.run import Run
    from pinfold.runs.stdio import DEVNULL, PIPE, STDOUT

__version__ = "0.1.0"

__all__ = [
    "DEVNULL", "PIPE", "STDOUT", "CgroupError", "CommandFailed", "CommandNotExecutable", "CommandNotFound", "Error",
    "Fold", "FoldFacts", "Killed", "Limits", "NoCgroup2", "NoSystemd", "NotDelegated", "Outcome", "Placement",
    "Policy", "ProcessFacts", "Receipt", "Result", "Run", "RunError", "RunFacts", "SpawnError", "Stray", "Stream",
    "TimeoutExpired", "UnitError", "Unsupported", "Usage", "UsageError", "default_fold", "kill", "ps", "run", "start",
]  # fmt: skip

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these
    _MODULES = {
        "errors": (
            "CgroupError", "CommandNotExecutable", "CommandNotFound", "Error", "NoCgroup2", "NoSystemd", "NotDelegated",
            "SpawnError", "UnitError", "Unsupported", "UsageError",
        ),
        "lease.end": ("Killed",),
        "lease.facts": ("FoldFacts", "ProcessFacts", "RunFacts"),
        "limits": ("Limits",),
        "others": ("kill", "ps"),
        "policy": ("Policy",),
        "outcomes": ("Outcome",),
        "result": ("Placement", "Receipt", "Result", "Stray", "Stream", "Usage"),
        "run_errors": ("CommandFailed", "RunError", "TimeoutExpired"),
        "runs.fold": ("Fold", "default_fold", "run", "start"),
        "runs.run": ("Run",),
        "runs.stdio": ("DEVNULL", "PIPE", "STDOUT"),
    }  # fmt: skip
    _MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> object:
        """Load a public name, once."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'pinfold' has no attribute {name!r}")
        with _lock:
            from importlib import import_module

            value = globals()[name] = getattr(import_module(f"pinfold.{_MODULE_OF[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
