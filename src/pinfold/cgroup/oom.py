"""Whose memory limit it was: the run's own, one above it, or the end of the host's memory.

The kernel counts `oom` where the limit was hit and `oom_kill` where the victim was, each also in every cgroup above
(memory.events); memory.events.local (Linux 5.2) has what happened in that very cgroup.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from pinfold import late
from pinfold.cgroup.controllers import is_root
from pinfold.cgroup.files import flat_keyed, reread
from pinfold.cgroup.places import Place, ancestors
from pinfold.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any, Final, Literal

    By = Literal["own", "below", "ancestor", "host"]


_LOCAL: Final = "memory.events.local"
_KMSG: Final = "/dev/kmsg"
_RECORD: Final = 8192  # CONSOLE_EXT_LOG_MAX
# The log escapes what is no printable ASCII (msg_add_ext_text() of kernel/printk/printk.c). Names may hold anything
# else, commas and `,task=` too; that of a task has at most 15 bytes.
_VICTIM: Final = (
    rb"oom-kill:.*?task_memcg=(?P<cgroup>.*?),task=(?P<comm>(?:\\x[0-9a-f]{2}|[^\\]){0,15}),pid=(?P<pid>\d+),uid=\d+$"
)
_ESCAPED: Final = rb"\\x([0-9a-f]{2})"


class Verdict(NamedTuple):
    """Whose limit killed processes of a run; `cgroup` is the one that was full. None: this host does not tell."""

    by: By | None
    cgroup: str | None


class AncestorOom:
    """The cgroups from a run's parent up to the root, for the limits that were hit there while it ran."""

    def __init__(self, place: Place) -> None:
        """`place` is the parent of the runs. Those that cannot be read are left out."""
        self._fds: dict[str, int] = {}
        top = place
        for at in (place, *ancestors(place)):
            top = at
            with contextlib.suppress(OSError):
                directory = at.hierarchy.open_root(at.directory)
                try:
                    self._fds[at.path] = at.hierarchy.open(directory, _LOCAL, os.O_RDONLY)
                finally:
                    os.close(directory)
        self.complete = is_root(top.directory)

    def counts(self) -> dict[str, int]:
        """How often each one's own limit has led to an OOM kill, nearest first."""
        found = {}
        for path, fd in self._fds.items():
            with contextlib.suppress(OSError):
                found[path] = flat_keyed(reread(fd)).get("oom", 0)
        return found

    def close(self) -> None:
        """Close the files."""
        while self._fds:
            os.close(self._fds.popitem()[1])


def verdict(texts: Mapping[str, str], own: frozenset[str], before: Mapping[str, int], above: AncestorOom) -> Verdict:
    """Who killed, by a run's accounts and by what the limits above it counted since `before`. Only if one was killed.

    `own`: the cgroups that carry this run's own limit. `below`: one that the command itself set in a cgroup it made.
    """
    local, tree = flat_keyed(texts.get(_LOCAL, "")), flat_keyed(texts.get("memory.events", ""))
    if not tree.get("oom_kill"):
        return Verdict(None, None)
    if local.get("oom"):
        return Verdict("own", max(own, key=len, default=None))  # local to the run: its unit is above it
    if tree.get("oom") and _LOCAL in texts:
        return Verdict("below", None)
    for cgroup, count in above.counts().items():
        if count > before.get(cgroup, 0):
            return Verdict("own" if cgroup in own else "ancestor", cgroup)
    return Verdict("host" if above.complete and before else None, None)


def victim(run: str) -> dict[str, Any] | None:
    """The process that the kernel chose in the cgroup whose name ends in `run`, from its log; None if that is closed.

    The log names each choice in one line (Linux 5.0); a group's other members are not chosen, they go along.
    """
    try:
        fd = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return None
    with late.lock:
        import re

    found = None
    try:
        while True:
            try:
                record = os.read(fd, _RECORD)
            except BrokenPipeError:  # overwritten while we read: the next read goes on behind it
                continue
            if not record:  # containers put /dev/null there
                return found
            match = re.search(_VICTIM, record.partition(b";")[2].partition(b"\n")[0])
            if match and f"/{run}/".encode() in match["cgroup"] + b"/":
                comm = re.sub(_ESCAPED, lambda escape: bytes.fromhex(escape[1].decode()), match["comm"])
                found = {"pid": int(match["pid"]), "comm": comm.decode("utf-8", "backslashreplace")}
    except OSError:  # EAGAIN: its end
        return found
    finally:
        os.close(fd)
