"""The one door to the kernel's cgroup files.

Everything is opened relative to a directory that is already held, by a name of one component, never through a
symlink, and what was opened must lie on the cgroup2 filesystem it is expected on. So no name a command chose, and
nothing mounted over a path, can lead a privileged write elsewhere.
"""

from __future__ import annotations

import errno
import os

from pinfold.errors import CgroupError, UsageError
from pinfold.fds import clear_of_stdio
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


# In one system call what Python takes two for. The guard's last resort does without.
try:
    from pinfold.cgroup import _door
except ImportError:
    _door = None  # type: ignore[assignment]

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY
_REFUSED: Final = (errno.ENOSYS, errno.EPERM)  # openat2, by a seccomp filter (systemd's SystemCallFilter=, containers)
_ALWAYS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_PAGE: Final = 4096  # kernfs hands out at most a page per read; a larger buffer costs more than the read itself


class Hierarchy:
    """One mounted cgroup2 filesystem, known by its device number; tests hand in a temp dir's."""

    __slots__ = ("device",)

    def __init__(self, device: int) -> None:
        self.device = device

    def open_root(self, path: str) -> int:
        """Open a directory of the hierarchy by its path: the only place where a path is walked."""
        return self._checked(os.open(path, DIRECTORY | os.O_CLOEXEC), path)

    def open(self, directory: int, name: str, flags: int) -> int:
        """Open one entry of a held directory. Raises OSError as open(2); the caller says what it was doing."""
        if "/" in name or name in ("", "."):
            raise UsageError(f"cgroup file name {name!r}: must be a single component")
        if _door is None or name == "..":  # which leads out of the directory, and is what openat2 keeps us from
            return self._checked(os.open(name, flags | _ALWAYS, dir_fd=directory), name)
        try:
            return _door.open_in(directory, name, flags)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise self._foreign(name) from error
            if error.errno not in _REFUSED:
                raise
        return self._checked(os.open(name, flags | _ALWAYS, dir_fd=directory), name)

    def read(self, directory: int, name: str) -> str:
        """The text of one file of a held directory. Raises OSError."""
        if _door is not None:
            try:
                return _door.read_in(directory, name).decode("ascii", "replace")
            except OSError as error:
                if error.errno == errno.EXDEV:
                    raise self._foreign(name) from error
                if error.errno not in _REFUSED:
                    raise
        fd = self.open(directory, name, os.O_RDONLY)
        try:
            return reread(fd)
        finally:
            os.close(fd)

    def _checked(self, fd: int, name: str) -> int:
        try:
            device = os.fstat(fd).st_dev
        except BaseException:
            os.close(fd)
            raise
        if device != self.device:
            os.close(fd)
            raise self._foreign(name)
        return fd if fd > 2 else clear_of_stdio(fd)

    @staticmethod
    def _foreign(name: str) -> UsageError:
        return UsageError(f"{name}: is not on the cgroup2 filesystem that was expected there")


def reread(fd: int) -> str:
    """The text of a file that is kept open, from its start."""
    if _door is not None:
        return _door.reread(fd).decode("ascii", "replace")
    text = os.pread(fd, _PAGE, 0)
    if len(text) >= _PAGE:
        while more := os.pread(fd, _PAGE, len(text)):
            text += more
    return text.decode("ascii", "replace")


def write(fd: int, name: str, value: str) -> None:
    """Write one value in one call, as the kernel wants it."""
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise CgroupError("write", name, error, value) from error


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20


def flat_keyed(text: str) -> dict[str, int]:
    """`KEY VALUE` lines (cpu.stat, cgroup.events, memory.events); values that are no numbers are left out."""
    out = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if _digits(value):
            out[key] = int(value)
    return out


def nested_keyed(text: str) -> dict[str, dict[str, str]]:
    """`KEY SUBKEY=VALUE …` lines (io.stat, *.pressure)."""
    out = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        key, *pairs = line.split()
        out[key] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return out


def number(text: str | None) -> int | None:
    """The value of a file that holds one number; None for `max`, or where there is no such file."""
    return int(text) if text is not None and _digits(text.strip()) else None


def stall_usec(pressure: str | None, kind: str) -> int | None:
    """The total of the line `some` or `full` of a PSI file (Documentation/accounting/psi.rst), in microseconds."""
    if pressure is None:
        return None
    _, found, rest = pressure.partition(kind + " ")
    total = rest.partition("\n")[0].rpartition("total=")[2]
    return int(total) if found and _digits(total) else None
