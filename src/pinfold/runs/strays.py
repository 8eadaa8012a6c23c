"""Who is still in a cgroup, by name."""

from __future__ import annotations

import contextlib
import os

from pinfold.cgroup.group import proc_is_ours
from pinfold.result import Stray, Stuck

NAMED_AT_MOST = 64  # naming costs a quarter of a millisecond each; all are counted


def describe(pids: list[int]) -> list[Stray]:
    """Names of the first of these processes. What has gone, or cannot be read, is None: naming must not fail."""
    try:
        import psutil  # 15-25 ms, and only wanted where something strayed
    except (OSError, ImportError):  # out of descriptors
        return [Stray(pid) for pid in pids[:NAMED_AT_MOST]]
    if not proc_is_ours():
        return [Stray(pid) for pid in pids[:NAMED_AT_MOST]]
    found = []
    for pid in pids[:NAMED_AT_MOST]:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                stray = Stray(pid, process.ppid(), comm=printable(process.name()))
        except (psutil.Error, OSError, ValueError):
            found.append(Stray(pid))
            continue
        with contextlib.suppress(OSError):
            stray = stray._replace(sid=os.getsid(pid))
        with contextlib.suppress(psutil.Error, OSError):
            # Empty for a process whose leader thread has exited.
            stray = stray._replace(argv=[printable(argument) for argument in process.cmdline()] or None)
        found.append(stray)
    return found


def stuck(pid: int) -> Stuck:
    """What keeps a process from dying, as far as /proc tells."""
    if not proc_is_ours():
        return Stuck(pid)
    found = Stuck(pid)
    with contextlib.suppress(OSError, ValueError, LookupError):
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="surrogateescape") as file:
            lines = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        found = Stuck(pid, printable(lines["Name"]), lines["State"][0], None, int(lines["TracerPid"]))
    with contextlib.suppress(OSError), open(f"/proc/{pid}/wchan", encoding="ascii", errors="replace") as file:
        wchan = file.read()
        found = found._replace(wchan=wchan if wchan not in ("", "0") else None)  # 0: not waiting, or not for our eyes
    return found


def printable(text: str) -> str:
    """Text of a foreign process without lone surrogates (bytes that are no UTF-8), so that JSON stays valid."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
