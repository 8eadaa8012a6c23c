"""What can go wrong, each with its facts.

Error
    ├── UsageError (ValueError)       the caller's values are wrong or contradict each other
    ├── Unsupported                   this host cannot do what was asked: feature, found, fix
    │   ├── NoCgroup2                 no usable cgroup v2 mount
    │   ├── NotDelegated              no cgroup of ours to make cgroups in
    │   └── NoSystemd                 no manager, or no bus to it
    ├── CgroupError (OSError)         an operation on one cgroup file: op, file, value, errno
    ├── UnitError                     systemd did not do what it was asked to with one unit: unit, op, found, fix
    ├── SpawnError (OSError)          a step between clone and exec: step, errno; carries a Result
    │   ├── CommandNotFound (FileNotFoundError)
    │   └── CommandNotExecutable (PermissionError)
    └── RunError                      `check=True` and the command did not succeed; see run_errors.py

How a command *ended* raises nothing unless `check=True`. `exit_code` is what the command line makes of it.
"""

from __future__ import annotations

import errno as _errno
import os

from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, ClassVar

    from pinfold.result import Result


class Error(Exception):
    """Base of all errors that are pinfold's own; never raised itself."""

    exit_code: ClassVar[int] = 125


class UsageError(Error, ValueError):
    """The caller's values are wrong or contradict each other. Nothing was started."""


class Unsupported(Error):
    """This host, or this release, cannot do what was asked for.

    `feature` is what was asked, `found` what there is instead, `fix` what to do about it.
    """

    def __init__(self, feature: str, found: str, fix: str) -> None:
        super().__init__(f"{feature}: {found} ({fix})")
        self.feature, self.found, self.fix = feature, found, fix

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.feature, self.found, self.fix), self.__dict__


class NoCgroup2(Unsupported):
    """There is no cgroup v2 mount that this process can use."""


class NotDelegated(Unsupported):
    """There is a cgroup v2 mount, and no cgroup in it that this process may make cgroups in."""


class NoSystemd(Unsupported):
    """No systemd, or no bus by which to ask it."""


class CgroupError(Error, OSError):
    """An operation on one file of one cgroup failed; the OSError is chained."""

    def __init__(self, op: str, file: str, error: OSError, value: str | None = None, advice: str | None = None) -> None:
        super().__init__(error.errno, error.strerror)
        self.op, self.file, self.value, self.advice = op, file, value, advice

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.op, self.file, OSError(self.errno, self.strerror), self.value, self.advice), vars(self)

    def __str__(self) -> str:
        what = self.file if self.value is None else f"{self.file}={self.value}"
        advice = f" ({self.advice})" if self.advice else ""
        return f"{self.op} {what}: {self.strerror}{advice}"


class UnitError(Error):
    """The systemd manager refused an operation on one unit, failed in it, or did not end it in time.

    `op` is what was asked for, `found` what came instead (the manager's own error name and message, or the result of
    the job), `fix` what to do about it.
    """

    def __init__(self, unit: str, op: str, found: str, fix: str) -> None:
        super().__init__(f"{op} {unit}: {found} ({fix})")
        self.unit, self.op, self.found, self.fix = unit, op, found, fix

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.unit, self.op, self.found, self.fix), self.__dict__


class SpawnError(Error, OSError):
    """The command was not started: `step` says which of the steps between clone and exec refused.

    Steps, in their order: clone, cgroup, session, fds, cwd, umask, rlimits, groups, gid, uid, no_new_privs, signals,
    exec. `subject` is what the step was about (the program, the directory), `result` the Result with the outcome
    `spawn_failed`. For exec the errno is execve(2)'s.
    """

    exit_code: ClassVar[int] = 125
    result: Result | None = None

    def __init__(self, step: str, errno: int, subject: str, advice: str | None = None) -> None:
        super().__init__(errno, os.strerror(errno))
        self.step, self.subject, self.advice = step, subject, advice

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.errno, self.subject, self.advice), self.__dict__

    def __str__(self) -> str:
        advice = f" ({self.advice})" if self.advice else ""
        return f"cannot run {self.subject}: {self.step}: {self.strerror}{advice}"

    @property
    def errno_name(self) -> str:
        """The errno as the kernel spells it, such as ENOENT."""
        return _errno.errorcode.get(self.errno or 0, str(self.errno))


class CommandNotFound(SpawnError, FileNotFoundError):
    """There is no such program on the PATH of the command's own environment."""

    exit_code: ClassVar[int] = 127


class CommandNotExecutable(SpawnError, PermissionError):
    """The program is there and cannot be executed: mode, format, interpreter, a directory."""

    exit_code: ClassVar[int] = 126
