"""Cgroup: one directory of the hierarchy, from mkdir to rmdir."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator

from pinfold.cgroup import usage
from pinfold.cgroup.files import DIRECTORY, Hierarchy, flat_keyed, reread, write
from pinfold.errors import CgroupError
from pinfold.proc import proc_is_ours, process_of
from pinfold.typed import TYPE_CHECKING
from pinfold.units import INFINITY

if TYPE_CHECKING:
    from typing import Final, Self


GONE: Final = (errno.ENOENT, errno.ENODEV)  # the cgroup was removed beneath us
REMOVE_BOUND: Final = 1.0  # seconds; rmdir may trail `populated 0` (from Linux 6.19)
_LOOK: Final = 0.001
_AT_THE_TOP: Final = "cgroup.max.descendants or cgroup.max.depth of a cgroup above is reached"

# Held from the start: what ends it, and tells that it is over. Others are opened when they are needed.
_HELD: Final = (("cgroup.events", os.O_RDONLY), ("cgroup.kill", os.O_WRONLY))


class Cgroup:
    """A cgroup of ours, held by three fds that were opened before anything ran in it.

    A command that owns its cgroup's files can `chmod 000` them. What is open stays open; the other files are ours to
    give the permissions back to. `dirfd` is the directory, `path` the name as /proc/PID/cgroup writes it. `controllers`
    are those enabled for it.
    """

    __slots__ = ("_controllers", "_fds", "_hierarchy", "_name", "_parent", "_removing", "dirfd", "path")

    def __init__(self, hierarchy: Hierarchy, parent: int, parent_path: str, name: str,
                 controllers: frozenset[str] = frozenset()) -> None:  # fmt: skip
        """Open the cgroup `name` in the directory `parent`. Raises CgroupError."""
        self._hierarchy, self._parent, self._name, self._controllers = hierarchy, parent, name, controllers
        self.path = f"{parent_path}/{name}"
        self.dirfd = -1
        self._fds: dict[str, int] = {}
        self._removing: Iterator[None] | None = None
        try:
            self.dirfd = hierarchy.open(parent, name, DIRECTORY)
            for file, flags in _HELD:
                self._fds[file] = hierarchy.open(self.dirfd, file, flags)
        except OSError as error:
            self.close()
            raise CgroupError("open", self.path, error) from error

    @classmethod
    def make(cls, hierarchy: Hierarchy, parent: int, parent_path: str, name: str,
             controllers: frozenset[str] = frozenset(), mode: int = 0o755) -> Self:  # fmt: skip
        """mkdir it, and open it; a cgroup that exists is an error, never adopted."""
        made = True  # even if an interrupt hides that; the name is nobody else's
        try:
            try:
                os.mkdir(name, mode, dir_fd=parent)
            except OSError as error:
                made = False
                advice = _AT_THE_TOP if error.errno == errno.EAGAIN else None
                raise CgroupError("mkdir", f"{parent_path}/{name}", error, advice=advice) from error
            return cls(hierarchy, parent, parent_path, name, controllers)
        except BaseException:
            if made:
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=parent)
            raise

    def populated(self) -> bool:
        """Whether a live process is in it or below. Zombies do not count; 1 us on the kept fd."""
        return "populated 1" in self._reread("cgroup.events")

    def _reread(self, file: str) -> str:
        """The text of an open file; none if the cgroup was removed beneath us, which the kernel allows when empty."""
        try:
            return reread(self._fds[file])
        except OSError as error:
            if error.errno in GONE:
                return ""
            raise

    def kill(self) -> None:
        """SIGKILL every process in it and below, forks in flight too (cgroup.kill, Linux 5.14).

        Misses a process whose leader thread has exited (6.18), raced with fork before 6.14, and is refused by a
        cgroup that a command with the right to do so has made threaded: the caller looks at `populated` and then
        kills each of `pids`.
        """
        try:
            self._write("cgroup.kill", "1")
        except CgroupError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise

    def freeze(self) -> None:
        """Stop everything in it (cgroup.freeze, Linux 5.2). Does not wait until all are stopped."""
        self._set_frozen("1")

    def thaw(self) -> None:
        """Let it go on."""
        self._set_frozen("0")

    def _set_frozen(self, value: str) -> None:
        try:
            self.set("cgroup.freeze", value)
        except CgroupError as error:
            if error.errno not in GONE:
                raise

    def frozen(self) -> bool:
        """Whether all its processes have come to a stop."""
        text = self._reread("cgroup.events")
        return not text or "frozen 1" in text

    @property
    def events_fd(self) -> int:
        """The fd of cgroup.events, which polls POLLPRI at each change."""
        return self._fds["cgroup.events"]

    def _write(self, file: str, value: str) -> None:
        try:
            write(self._fds[file], f"{self.path}/{file}", value)
        except CgroupError as error:
            if error.errno not in GONE:
                raise

    def pids(self) -> list[int]:
        """The processes in it and below; 0 stands for one outside our pid namespace."""
        return self.list_pids(INFINITY)[0]

    def list_pids(self, until: float) -> tuple[list[int], int]:
        """The processes in it and below, and how many cgroups below were not looked into: the time was up.

        `until`: on the monotonic clock. A command can make more cgroups than can be read in time.
        """
        found: list[int] = []
        looked, unlisted = 0, 1
        with contextlib.suppress(OSError):  # what cannot be listed is still killed, from the top
            found = self._pids_in(self.dirfd)
            unlisted = 0
            for _parent, _name, directory in self._below():
                looked += 1
                with contextlib.suppress(OSError):
                    found += self._pids_in(directory)
                if time.monotonic() >= until:
                    unlisted = max(0, self._descendants() - looked)
                    break
        return list(dict.fromkeys(found)), unlisted  # a process can have threads in more than one

    def _pids_in(self, directory: int) -> list[int]:
        procs = self._open_ours(directory, "cgroup.procs", os.O_RDONLY)
        try:
            return self._pids_of(procs, directory)
        finally:
            os.close(procs)

    def _descendants(self) -> int:
        """How many cgroups are below it (cgroup.stat, Linux 4.14)."""
        return flat_keyed(self.read("cgroup.stat") or "").get("nr_descendants", 0)

    def _open_ours(self, directory: int, file: str, flags: int) -> int:
        """Open a file that the command may have taken the permissions from."""
        try:
            return self._hierarchy.open(directory, file, flags)
        except PermissionError:
            self._give_back(directory, file)
            return self._hierarchy.open(directory, file, flags)

    @staticmethod
    def _give_back(directory: int, file: str) -> None:
        """Permissions that the command has taken away as our uid, so they are ours to give back. Raises OSError."""
        os.chmod(directory, 0o755)
        # By its name, as nothing can be opened; in cgroup2 there are no symlinks to follow.
        os.chmod(file, 0o644, dir_fd=directory)

    def _pids_of(self, procs: int, directory: int) -> list[int]:
        try:
            return _numbers(procs)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                return []
        # A threaded cgroup lists its threads alone.
        file = self._hierarchy.open(directory, "cgroup.threads", os.O_RDONLY)
        try:
            threads = _numbers(file)
        finally:
            os.close(file)
        if not proc_is_ours():
            return threads  # the leaders' numbers are those of their processes, the others are nobody's
        return sorted({process_of(thread) for thread in threads} - {0})

    def hold(self, file: str) -> None:
        """Open one of its files for reading now: while the command runs, it costs no time."""
        self._fds[file] = self._hierarchy.open(self.dirfd, file, os.O_RDONLY)

    def read_accounts(self, *, pressure: bool = True) -> dict[str, str]:
        """The texts of the accounting files, by name: what the tree used until now. See `usage.usage`.

        `pressure`: those of PSI too, which take as long to read as all others together.
        """
        texts = {}
        for name in usage.files(self._controllers, pressure=pressure):
            text = self.read(name)
            if text is not None:
                texts[name] = text
        return texts

    def set(self, file: str, text: str) -> str:
        """Write one of its files, and return what the kernel says it holds now. Raises CgroupError."""
        name = f"{self.path}/{file}"
        try:
            fd = self._open_ours(self.dirfd, file, os.O_RDWR)
        except OSError as error:
            raise CgroupError("open", name, error, text) from error
        try:
            write(fd, name, text)
            return reread(fd)
        finally:
            os.close(fd)

    def read(self, file: str) -> str | None:
        """The text of one of its files. None: there is no such file, or it refuses (PSI when accounting is off)."""
        fd = self._fds.get(file, -1)
        try:
            if fd >= 0:
                return reread(fd)
            try:
                return self._hierarchy.read(self.dirfd, file)
            except PermissionError:
                self._give_back(self.dirfd, file)
                return self._hierarchy.read(self.dirfd, file)
        except OSError:
            return None

    def cpu_usec(self) -> int:
        """CPU time of the tree so far, in microseconds (cpu.stat, with or without the cpu controller)."""
        return flat_keyed(self.read("cpu.stat") or "").get("usage_usec", 0)

    def remove(self) -> bool:
        """rmdir it and everything the command made below it. False: something is still in it; try again."""
        return self.remove_until(INFINITY)

    def remove_until(self, until: float) -> bool:
        """As `remove`, but only until then (monotonic clock). False: try again; it goes on where it was."""
        if self._rmdir():
            return True
        if self._removing is None:
            self._removing = self._remove_below()
        try:
            for _ in self._removing:
                if time.monotonic() >= until:
                    return False
            self._removing = None
            return self._rmdir()
        except OSError as error:
            self._removing = None
            if error.errno in GONE:
                return not self._exists()
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise CgroupError("rmdir", self.path, error) from error

    def remove_within(self, bound: float) -> bool:
        """As `remove`, again and again for so many seconds: rmdir may trail `populated 0` (from Linux 6.19)."""
        end = time.monotonic() + bound
        while not self.remove_until(end):
            if time.monotonic() >= end:
                return False
            time.sleep(_LOOK)  # nothing tells when it has become possible
        return True

    def _rmdir(self) -> bool:
        try:
            os.rmdir(self._name, dir_fd=self._parent)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise CgroupError("rmdir", self.path, error) from error
            return False
        return True

    def _remove_below(self) -> Iterator[None]:
        for parent, name, _directory in self._below():
            os.rmdir(name, dir_fd=parent)
            yield

    def _exists(self) -> bool:
        try:
            os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
        except OSError:
            return False
        return True

    def _below(self) -> Iterator[tuple[int, str, int]]:
        """(parent fd, name, own fd) of each cgroup below, children first; the fds are ours, valid until the next.

        Two fds whatever the depth: a command can nest cgroups deeper than fds or the stack would reach.
        """
        names: list[str] = []
        here = os.dup(self.dirfd)
        try:
            if _children(here):
                os.chmod(here, 0o755)  # the command may have taken it away, as our uid
            waiting = [_children(here)]
            while True:
                if waiting[-1]:
                    name = waiting[-1].pop()
                    child = self._enter(here, name)
                    if child is None:
                        continue
                    os.close(here)
                    here = child
                    names.append(name)
                    waiting.append(_children(here))
                elif names:
                    parent = self._hierarchy.open(here, "..", DIRECTORY)
                    waiting.pop()
                    try:
                        yield parent, names.pop(), here
                    finally:
                        os.close(here)
                        here = parent
                else:
                    return
        finally:
            os.close(here)

    def _enter(self, parent: int, name: str) -> int | None:
        try:
            return self._hierarchy.open(parent, name, DIRECTORY)
        except FileNotFoundError:
            return None
        except PermissionError:
            # The command made it, as our uid, and took the permissions away: ours to give back.
            os.chmod(name, 0o755, dir_fd=parent)
            return self._hierarchy.open(parent, name, DIRECTORY)

    def __del__(self) -> None:
        # One that a signal handler's exception made us lose on the way.
        if getattr(self, "dir", -1) >= 0:
            self.close()

    def close(self) -> None:
        """Close all fds; the cgroup stays. Idempotent."""
        removing, self._removing = self._removing, None
        if removing is not None:
            removing.close()  # type: ignore[attr-defined]
        for name, fd in self._fds.items():
            if fd >= 0:
                self._fds[name] = -1  # before it is closed: an exception in between must not close it twice
                os.close(fd)
        fd, self.dirfd = self.dirfd, -1
        if fd >= 0:
            os.close(fd)


def _numbers(fd: int) -> list[int]:
    os.lseek(fd, 0, os.SEEK_SET)
    text = b""
    while chunk := os.read(fd, 1 << 16):
        text += chunk
    return [int(line) for line in text.split()]


def _children(directory: int) -> list[str]:
    """Names of the cgroups in a directory. st_nlink tells most that there are none, without reading it."""
    if os.fstat(directory).st_nlink == 2:
        return []
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
