"""Errors of `check=True`: a command ran and did not succeed. They are the standard library's, too.

RunError
    ├── TimeoutExpired (subprocess.TimeoutExpired)
    └── CommandFailed (subprocess.CalledProcessError)

A module of their own, imported when one of them is named: the import of subprocess takes longer than a run.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, ClassVar

from pinfold.errors import Error

if TYPE_CHECKING:
    from pinfold.result import Result


class RunError(Error):
    """`check=True`, and the command did not end with status 0. `result` is its Result."""

    result: Result


class TimeoutExpired(RunError, subprocess.TimeoutExpired):
    """The command was ended by one of its time limits."""

    exit_code: ClassVar[int] = 124

    def __init__(self, result: Result, timeout: float) -> None:
        super().__init__(result.args, timeout, output=result.stdout, stderr=result.stderr)
        self.result = result


class CommandFailed(RunError, subprocess.CalledProcessError):
    """The command failed, was killed, or was ended for another reason than time."""

    def __init__(self, result: Result) -> None:
        # None where nobody knows the status, which the standard library's class does not foresee.
        super().__init__(result.returncode, result.args, output=result.stdout, stderr=result.stderr)  # type: ignore[arg-type]
        self.result = result

    def __str__(self) -> str:
        if self.result.outcome in ("exited", "signaled"):
            return super().__str__()
        return f"command {self.cmd!r} ended with the outcome {self.result.outcome}"
