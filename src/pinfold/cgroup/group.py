"""Cgroup: one directory of the hierarchy, from mkdir to rmdir."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from pinfold.cgroup.files import DIRECTORY, Hierarchy, flat_keyed, nested_keyed, number, reread, stall_usec, write
from pinfold.errors import CgroupError
from pinfold.result import Usage

_GONE: Final = (errno.ENOENT, errno.ENODEV)
_AT_THE_TOP: Final = "cgroup.max.descendants or cgroup.max.depth of a cgroup above is reached"
_ACCOUNTS: Final = ("cpu.stat", "cpu.pressure", "memory.pressure", "io.pressure")  # PSI: Linux 4.20
_CONTROLLER_ACCOUNTS: Final = {"memory": "memory.peak", "pids": "pids.peak", "io": "io.stat"}  # 5.19, 6.1, 4.5


class Cgroup:
    """A cgroup that we made, held by fds that were opened before anything ran in it.

    A command that owns its cgroup's files can `chmod 000` them; what is open stays open. `dir` is the directory,
    `path` the name as /proc/PID/cgroup writes it. `controllers` are those enabled for it.
    """

    __slots__ = ("_accounts", "_controllers", "_freeze", "_hierarchy", "_kill", "_name", "_parent", "_procs", "dir",
                 "events", "path")  # fmt: skip

    def __init__(self, hierarchy: Hierarchy, parent: int, parent_path: str, name: str,
                 controllers: frozenset[str] = frozenset()) -> None:  # fmt: skip
        """mkdir `name` in the directory `parent` and open it; a cgroup that exists is an error, never adopted."""
        self._hierarchy, self._parent, self._name, self._controllers = hierarchy, parent, name, controllers
        self.path = f"{parent_path.rstrip('/')}/{name}"
        self.dir = self.events = self._procs = self._kill = self._freeze = -1
        self._accounts: dict[str, int] = {}
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except OSError as error:
            advice = _AT_THE_TOP if error.errno == errno.EAGAIN else None
            raise CgroupError("mkdir", self.path, error, advice=advice) from error
        try:
            self.dir = hierarchy.open(parent, name, DIRECTORY)
            self.events = hierarchy.open(self.dir, "cgroup.events", os.O_RDONLY)
            self._kill = hierarchy.open(self.dir, "cgroup.kill", os.O_WRONLY)
            self._procs = hierarchy.open(self.dir, "cgroup.procs", os.O_RDONLY)
            self._freeze = hierarchy.open(self.dir, "cgroup.freeze", os.O_WRONLY)
        except OSError as error:
            self.close()
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=parent)
            raise CgroupError("open", self.path, error) from error

    def populated(self) -> bool:
        """Whether a live process is in it or below. Zombies do not count; 1 us on the kept fd."""
        try:
            return "populated 1" in reread(self.events)
        except OSError as error:
            if error.errno in _GONE:  # removed beneath us, which the kernel allows only when empty
                return False
            raise

    def kill(self) -> None:
        """SIGKILL every process in it and below, forks in flight too (cgroup.kill, Linux 5.14).

        Misses a process whose leader thread has exited (6.18), and raced with fork before 6.14: the caller looks
        at `populated` and uses `kill_each`.
        """
        self._write(self._kill, "cgroup.kill", "1")

    def freeze(self, frozen: bool) -> None:
        """Stop everything in it, or let it go on (cgroup.freeze, Linux 5.2). Does not wait until all are stopped."""
        self._write(self._freeze, "cgroup.freeze", "1" if frozen else "0")

    def frozen(self) -> bool:
        """Whether all its processes have come to a stop."""
        return "frozen 1" in reread(self.events)

    def _write(self, fd: int, name: str, value: str) -> None:
        try:
            write(fd, f"{self.path}/{name}", value)
        except CgroupError as error:
            if error.errno not in _GONE:
                raise

    def pids(self) -> list[int]:
        """The processes in it and below; 0 stands for one outside our pid namespace."""
        found = self._pids_of(self._procs)
        with contextlib.suppress(OSError):  # what cannot be listed is still killed, from the top
            if _children(self.dir):
                os.chmod(self.dir, 0o755)  # the command may have taken it away, as our uid
            for _parent, _name, directory in self._below():
                with contextlib.suppress(OSError):
                    procs = self._hierarchy.open(directory, "cgroup.procs", os.O_RDONLY)
                    try:
                        found += self._pids_of(procs)
                    finally:
                        os.close(procs)
        return found

    @staticmethod
    def _pids_of(procs: int) -> list[int]:
        """Empty for a threaded cgroup, which answers EOPNOTSUPP: its domain ancestor lists its processes."""
        try:
            os.lseek(procs, 0, os.SEEK_SET)
            text = b""
            while chunk := os.read(procs, 1 << 16):
                text += chunk
        except OSError:
            return []
        return [int(line) for line in text.split()]

    def open_accounts(self) -> None:
        """Open the files that `usage` reads, each where it exists: here, while the command runs, it costs no time."""
        for name in (*_ACCOUNTS, *(f for c, f in _CONTROLLER_ACCOUNTS.items() if c in self._controllers)):
            with contextlib.suppress(OSError):
                self._accounts[name] = self._hierarchy.open(self.dir, name, os.O_RDONLY)

    def _account(self, name: str) -> str | None:
        try:
            return reread(self._accounts[name])
        except (KeyError, OSError):  # PSI files can be there and refuse (EOPNOTSUPP) when accounting is off
            return None

    def cpu_usec(self) -> int:
        """CPU time of the tree so far, in microseconds (cpu.stat, with or without the cpu controller)."""
        return flat_keyed(self._account("cpu.stat") or "").get("usage_usec", 0)

    def usage(self) -> Usage:
        """What the tree used. Each figure that this kernel or this cgroup does not have stays None."""
        account = self._account
        cpu = flat_keyed(account("cpu.stat") or "")
        usage = Usage(
            cpu.get("usage_usec"),
            cpu.get("user_usec"),
            cpu.get("system_usec"),
            pressure={
                "cpu_some_usec": stall_usec(account("cpu.pressure"), "some"),
                "memory_full_usec": stall_usec(account("memory.pressure"), "full"),
                "io_full_usec": stall_usec(account("io.pressure"), "full"),
            },
        )
        if self._controllers:
            usage.memory_peak = number(account("memory.peak"))
            usage.pids_peak = number(account("pids.peak"))
            io_stat = account("io.stat")
            if io_stat is not None:
                devices = nested_keyed(io_stat).values()
                usage.io_rbytes = sum(int(device.get("rbytes", 0)) for device in devices)
                usage.io_wbytes = sum(int(device.get("wbytes", 0)) for device in devices)
        return usage

    def remove(self) -> bool:
        """rmdir it and everything the command made below it. False: something is still in it; try again."""
        try:
            try:
                self._rmdir_all()
            except PermissionError:
                os.chmod(self.dir, 0o755)  # taken away by the command, as our uid
                self._rmdir_all()
        except OSError as error:
            if error.errno in _GONE:
                return not self._exists()
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise CgroupError("rmdir", self.path, error) from error
        return True

    def _rmdir_all(self) -> None:
        for parent, name, _directory in self._below():
            os.rmdir(name, dir_fd=parent)
        os.rmdir(self._name, dir_fd=self._parent)

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
        here = os.dup(self.dir)
        waiting = [_children(here)]
        try:
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

    def close(self) -> None:
        """Close all fds; the cgroup stays."""
        for fd in (self.dir, self.events, self._kill, self._procs, self._freeze, *self._accounts.values()):
            if fd >= 0:
                os.close(fd)
        self.dir = self.events = self._procs = self._kill = self._freeze = -1
        self._accounts.clear()


def _children(directory: int) -> list[str]:
    """Names of the cgroups in a directory. st_nlink tells most that there are none, without reading it."""
    if os.fstat(directory).st_nlink == 2:
        return []
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
