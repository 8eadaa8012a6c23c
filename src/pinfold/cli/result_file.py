"""Where `pinfold run` writes its Result: a file, a descriptor, or both."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

from pinfold.cli.writing import RESULT_BOUND, write_within
from pinfold.errors import Error, UsageError
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pinfold.result import Result


class ResultPlaces:
    """The places, opened before the command is started: better no run than a run whose result is lost."""

    def __init__(self, file: str | None, descriptor: str | None) -> None:
        """Open them. A file is emptied now, so that it never holds the result of an earlier run. Raises UsageError."""
        self._descriptor = None if descriptor is None else _writable(descriptor)
        self._file = None if file is None else _File(file)

    def write(self, result: Result) -> None:
        """Write it as JSON to each. Raises Error, when all have been tried."""
        if self._descriptor is None and self._file is None:
            return  # JSON takes its time to load
        text = (result.to_json() + "\n").encode()
        failures = []
        if self._descriptor is not None:
            try:
                write_within(self._descriptor, text, RESULT_BOUND)
            except OSError as error:
                failures.append(f"the result could not be written to {self._descriptor}: {error.strerror}")
        if self._file is not None:
            try:
                self._file.write(text)
            except OSError as error:
                failures.append(f"the result could not be written to {self._file.path}: {error.strerror}")
        if failures:
            raise Error("; ".join(failures))


def _writable(descriptor: str) -> int:
    try:
        number = int(descriptor)
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    except (OSError, OverflowError, ValueError) as error:
        raise UsageError(f"--result-fd {descriptor}: is not an open descriptor") from error
    if mode == os.O_RDONLY:
        raise UsageError(f"--result-fd {descriptor}: is open for reading only")
    return number


class _File:
    """A file by name. What reads it finds nothing, or all of the result: it is replaced by rename(2).

    A pipe or a device is written to. So is our own stdout or stderr, where that is the file: at its end.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._mode = os.fstat(self._fd).st_mode
            self._replaced = stat.S_ISREG(self._mode) and not _is_of_ours(self._fd)
            if self._replaced:
                os.ftruncate(self._fd, 0)
        except (OSError, ValueError) as error:
            raise UsageError(f"--result {path}: cannot be written: {error}") from error

    def write(self, text: bytes) -> None:
        """Write it. Raises OSError."""
        if self._replaced and self._replace(text):
            return
        if stat.S_ISREG(self._mode):
            os.lseek(self._fd, 0, os.SEEK_END)
        write_within(self._fd, text, RESULT_BOUND)

    def _replace(self, text: bytes) -> bool:
        """False: no file can be made beside it."""
        path = os.path.realpath(self.path)
        beside = f"{path}.{os.getpid()}"
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IMODE(self._mode))
        except OSError:
            return False
        try:
            os.fchmod(fd, stat.S_IMODE(self._mode))
            write_within(fd, text, RESULT_BOUND)
            os.rename(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        finally:
            os.close(fd)
        return True


def _is_of_ours(fd: int) -> bool:
    """Whether it is the file that is our stdout or stderr."""
    for ours in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(ours), os.fstat(fd)):
                return True
    return False
