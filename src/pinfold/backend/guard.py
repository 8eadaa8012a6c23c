"""Guard: a tiny process of ours that outlives us just long enough to end what we have left.

It waits at a pipe, our lease on life: the other end is ours alone, and the kernel closes it however we die. Then it
kills everything in the fold and removes it; where that takes more than a moment it becomes `lease/sweep.py`, which has
the full means. It is in no run's cgroup, in a session of its own, and no child of the host program (unless that is an
init or a subreaper), which may wait for any child, or until there is none.

A systemd scope needs a process to exist, and there it is that one too: a guard that has ended without us says that the
scope was stopped from outside.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import weakref

from pinfold.cgroup.names import RUN_PREFIX
from pinfold.fds import clear_of_stdio
from pinfold.spawn.start import start_orphan
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


# A shell, as its private memory is a quarter of a megabyte, and it starts in half a millisecond. Signals for all of a
# unit, a session or a group are not for it. Where it cannot fork (RLIMIT_NPROC, pids.max: what it is to end may have
# used them up) a shell gives up: it becomes the sweep on its way out, which takes no fork.
_SCRIPT: Final = f"""\
trap '' HUP INT QUIT ILL TRAP ABRT BUS FPE SEGV SYS PIPE ALRM USR1 USR2 TSTP TTIN TTOU VTALRM PROF XCPU XFSZ $1
IFS= read -r fold && read -r _
case $fold in *\\\\*) fold=$(printf %b "$fold") ;; esac
[ -d "$fold" ] || exit
trap '[ -d "$fold" ] && exec "$2" -I -S -c "$3" "$4" "$fold"' EXIT
echo 1 >"$fold/cgroup.kill"
for pause in 0 .001 .003 .01; do
    sleep $pause
    rmdir "$fold"/{RUN_PREFIX}* "$fold"
    [ -d "$fold" ] || exit
done
"""
_SWEEP: Final = """\
import sys
sys.path.insert(0, sys.argv[1])
from pinfold.lease.sweep import after_the_owner
after_the_owner(sys.argv[2])
"""
_END_BOUND_MS: Final = 1000
_LIBRARY: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Guard:
    """A started guard. `fd` is its pidfd, readable once it has ended."""

    def __init__(self, *, obeys_term: bool) -> None:
        """Start it. It inherits only its end of the pipe.

        `obeys_term`: SIGTERM ends it, as systemd's stop of its scope requires; else it ignores that. Raises OSError.
        """
        self.fd = self._lease = null = -1
        words = ["-c", _SCRIPT, "pinfold-guard", "" if obeys_term else "TERM", _python(), _SWEEP, _LIBRARY]
        reads, self._lease = map(clear_of_stdio, os.pipe2(os.O_CLOEXEC))
        try:
            _guards.add(self)
            null = clear_of_stdio(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            path = os.fsencode("PATH=" + os.defpath)
            child = start_orphan([b"/bin/sh", *map(os.fsencode, words)], [path], (reads, null, null))
            self.pid, self.fd = child.pid, clear_of_stdio(child.take_pidfd())
        except BaseException:
            self.end()
            raise
        finally:
            for fd in (reads, null):
                if fd >= 0:
                    os.close(fd)

    def watch(self, directory: str) -> None:
        """Say which cgroup is to be ended after us; before anything is made there. Raises OSError."""
        line = os.fsencode(directory).replace(b"\\", b"\\0134").replace(b"\n", b"\\0012")
        os.write(self._lease, line + b"\n")

    def ended(self, within: float = 0.0) -> bool:
        """Whether it has ended, or does so in the next seconds."""
        if self.fd < 0:
            return True
        poll = select.poll()  # a fresh one, as threads may ask at once
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(within * 1000))

    def end(self) -> None:
        """End it, when it has nothing to do any more. Idempotent."""
        fd, self.fd = self.fd, -1
        lease, self._lease = self._lease, -1
        try:
            if fd >= 0:
                self._kill(fd)
        finally:
            for one in (fd, lease):
                if one >= 0:
                    os.close(one)

    @staticmethod
    def _kill(fd: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(_END_BOUND_MS)
        with contextlib.suppress(ChildProcessError):  # it is ours only if we are a subreaper, or init
            os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)

    def forget(self) -> None:
        """Close our end of the pipe and its pidfd. Idempotent.

        In a forked child the lease is our parent's alone then; in the owner, the guard goes to work.
        """
        for fd in (self._lease, self.fd):
            if fd >= 0:
                os.close(fd)
        self._lease = self.fd = -1

    def __del__(self) -> None:
        # One that an exception of a signal handler has lost: what it watches is lost, too, and goes.
        if hasattr(self, "_lease"):
            self.forget()


def _python() -> str:
    """An interpreter for the sweep; where we are embedded, sys.executable is the program that we are in, or nothing."""
    name = os.path.basename(sys.executable or "")
    return sys.executable if name.startswith(("python", "pypy")) else "python3"


_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def _after_fork() -> None:
    """A forked child must not keep the folds of its parent alive."""
    for guard in list(_guards):
        guard.forget()
    _guards.clear()


os.register_at_fork(after_in_child=_after_fork)
