"""What /proc says. Nothing here blocks on another process, but `wait_for_argv`.

Reading a command line takes the lock of that process' memory, which may be held for as long as a file system that the
process uses does not answer (FUSE, NFS). `stat`, `status`, `comm`, `wchan` and `cgroup` take no such lock.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterable

from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


_AT_MOST: Final = 1 << 17  # bytes
_READERS: Final = 8  # so many blocking processes still let the others be read
_GIVEN_UP_AT_MOST: Final = 64

_given_up: set[int] = set()  # whose reader still waits; one is enough for each
os.register_at_fork(after_in_child=_given_up.clear)


def read_text(path: str) -> str:
    """The text of a file, with undecodable bytes as surrogate escapes. Raises OSError."""
    with open(path, "rb") as file:
        return file.read().decode("utf-8", "surrogateescape")


def read(path: str) -> str | None:
    """As `read_text`; None where it cannot be read."""
    with contextlib.suppress(OSError):
        return read_text(path)
    return None


def read_bytes(path: str) -> bytes:
    """The first 128 KiB of a file of a process; nothing where it cannot be read, for one as the process has gone."""
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
        return file.read(_AT_MOST) or b""
    return b""


def proc_is_ours() -> bool:
    """Whether /proc shows our own pid namespace; else its numbers are those of other processes."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def process_of(thread: int) -> int:
    """The process that a thread belongs to (proc_pid_status(5), Tgid); 0 if it has gone."""
    for line in read_bytes(f"/proc/{thread}/status").split(b"\n"):
        if line.startswith(b"Tgid:"):
            return int(line.split()[1])
    return 0


def children() -> list[int]:
    """The children of this process, of all its threads (CONFIG_PROC_CHILDREN, Linux 4.2). Raises OSError."""
    found: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/children", "rb") as file:
            found += map(int, file.read().split())
    return found


def cgroup_of_zombie(pid: int) -> str | None:
    """The cgroup v2 that a process was in when it died, whether or not it is still there; None if it is no zombie."""
    if read_bytes(f"/proc/{pid}/stat").rpartition(b")")[2].split()[:1] != [b"Z"]:
        return None
    for line in (read(f"/proc/{pid}/cgroup") or "").splitlines():
        if line.startswith("0::"):
            return line[3:].removesuffix(" (deleted)")
    return None


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc_pid_stat(5), field 22); None if it has ended."""
    # The name may hold spaces and parentheses; what follows the last ")" does not.
    fields = read_bytes(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if not fields:
        return None
    # A zombie with more than one thread is a leader that has exited before the others.
    ended = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1
    return None if ended else int(fields[19])


def comm(pid: int) -> str | None:
    """The name of a process' program, or the one that it has given itself; None if it has gone."""
    name = read_bytes(f"/proc/{pid}/comm")
    return _printable(name.removesuffix(b"\n")) if name else None


def wait_for_argv(pid: int) -> list[str] | None:
    """The command line of a process; None for a zombie, for a leader thread that has exited, and for what has gone.

    Can block for as long as the process lives.
    """
    words = read_bytes(f"/proc/{pid}/cmdline")
    return [_printable(word) for word in words.removesuffix(b"\0").split(b"\0")] if words else None


def argv_within(pids: Iterable[int], seconds: float) -> dict[int, list[str] | None]:
    """The command lines that come in within so many seconds, by pid.

    Threads read them. Nobody waits longer than that for a process that blocks its reader; it keeps this one thread for
    as long as it blocks, and is left out meanwhile.
    """
    asked = [pid for pid in pids if pid not in _given_up]
    waiting = deque(asked)
    found: dict[int, list[str] | None] = {}
    readers: list[threading.Thread] = []

    def read_all() -> None:
        with contextlib.suppress(IndexError):
            while True:
                pid = waiting.popleft()
                found[pid] = wait_for_argv(pid)
                _given_up.discard(pid)

    end = time.monotonic() + seconds
    while waiting and len(_given_up) < _GIVEN_UP_AT_MOST and (left := end - time.monotonic()) > 0:
        readers.append(threading.Thread(target=read_all, name="pinfold-argv", daemon=True))
        try:
            readers[-1].start()
        except RuntimeError:  # clone(2) has refused
            readers.pop()
            break
        readers[-1].join(min(left, seconds / _READERS))  # then another one goes on with the next
    for reader in readers:
        reader.join(max(0.0, end - time.monotonic()))
    never = set()
    with contextlib.suppress(IndexError):
        while True:
            never.add(waiting.popleft())
    for pid in asked:
        if pid not in found and pid not in never:
            _given_up.add(pid)
            if pid in found:  # it has just come in, perhaps before we added it
                _given_up.discard(pid)
    return dict(found)


def _printable(name: bytes) -> str:
    """Text of a foreign process without lone surrogates (bytes that are no UTF-8), so that JSON stays valid."""
    return name.decode("utf-8", "backslashreplace")
