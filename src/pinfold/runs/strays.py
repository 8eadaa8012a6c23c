"""Who is still in a cgroup, by name.

Reading another process's command line waits for the lock of its memory, for as long as a file system that it uses does
not answer (proc_pid_cmdline(5) does not say so). So that is done by a thread that nobody waits for; all else here comes
from /proc/PID/stat, which cannot block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from pinfold.proc import proc_is_ours, read_bytes, wait_for_argv
from pinfold.result import Stray, Stuck
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


NAMED_AT_MOST: Final = 64  # the others are counted


class Naming:
    """The names of some processes, as they come in."""

    def __init__(self, pids: Sequence[int]) -> None:
        """What /proc/PID/stat says, at once. What has gone, or cannot be read, is None: naming must not fail."""
        pids = pids[:NAMED_AT_MOST]
        self._known = [_by_stat(pid) for pid in pids] if proc_is_ours() else [Stray(pid) for pid in pids]
        self._argv: dict[int, list[str] | None] = {}

    @property
    def may_have_argv(self) -> bool:
        """Whether it is worth asking for command lines."""
        return any(stray.comm is not None for stray in self._known)

    def read_argv(self) -> None:
        """Read the command lines, one after the other. Can block for as long as one of these processes lives."""
        for stray in self._known:
            if stray.comm is not None:
                self._argv[stray.pid] = wait_for_argv(stray.pid)

    def strays(self) -> list[Stray]:
        """What is known by now."""
        return [stray._replace(argv=self._argv.get(stray.pid)) for stray in self._known]


def _by_stat(pid: int) -> Stray:
    text = read_bytes(f"/proc/{pid}/stat")
    # The name may hold spaces and parentheses; what follows the last ")" does not.
    before, _, after = text.rpartition(b")")
    fields = after.split()
    try:
        comm = before.split(b"(", 1)[1].decode("utf-8", "backslashreplace")
        return Stray(pid, int(fields[1]), int(fields[3]), comm)
    except (IndexError, ValueError):
        return Stray(pid)


def stuck(pid: int) -> Stuck:
    """What keeps a process from dying, as far as /proc tells."""
    if not proc_is_ours():
        return Stuck(pid)
    found = Stuck(pid)
    with contextlib.suppress(ValueError, LookupError):
        text = read_bytes(f"/proc/{pid}/status").decode("utf-8", "surrogateescape")
        lines = dict(line.split(":\t", 1) for line in text.split("\n") if ":\t" in line)
        found = Stuck(pid, printable(lines["Name"]), lines["State"][0], None, int(lines["TracerPid"]))
    wchan = read_bytes(f"/proc/{pid}/wchan").decode("ascii", "replace")
    return found._replace(wchan=wchan if wchan not in ("", "0") else None)  # 0: not waiting, or not for our eyes


def printable(text: str) -> str:
    """Text of a foreign process without lone surrogates (bytes that are no UTF-8), so that JSON stays valid."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
