"""Threads that sleep in vfork(2) until a program has been exec'ed, so that whoever wants it need not.

Where a cgroup has a memory controller, a child that shares our memory has to be one of vfork: the OOM killer kills
everybody who shares its victim's memory, which would be us, and passes over such a child alone (oom_badness() of
mm/oom_kill.c, Linux 4.4). But vfork sleeps until the exec, which a file system can hold up for ever.

A thread that has started processes lives as long as they may: to the kernel it is their parent, and PR_SET_PDEATHSIG
(prctl(2)) tells them of the end of that thread.
"""

from __future__ import annotations

import os
import threading

from pinfold.spawn._spawn import Launcher

_lock = threading.Lock()
_idle: list[Launcher] = []
_wanted = False


def idle() -> Launcher:
    """One that is free, for one start; its thread is made if need be. RuntimeError: the kernel has refused that."""
    global _wanted
    with _lock:
        _wanted = True
        if _idle:
            return _idle.pop()
    launcher = Launcher()
    threading.Thread(target=_serve, args=(launcher,), name="pinfold-start", daemon=True).start()
    return launcher


def _serve(launcher: Launcher) -> None:
    while launcher.serve():
        with _lock:
            if not _wanted:
                return
            _idle.append(launcher)


def end() -> None:
    """Let the threads go: nothing that they have started is left."""
    global _wanted
    with _lock:
        _wanted = False
        while _idle:
            _idle.pop().close()


def _after_fork() -> None:
    """A forked child has none of these threads."""
    global _lock, _wanted
    _lock = threading.Lock()
    _idle.clear()
    _wanted = False


os.register_at_fork(after_in_child=_after_fork)
