"""The flag of our memory that a child changes while it shares it: whether it may be dumped, and traced.

A change of uid makes the memory undumpable (commit_creds() of kernel/cred.c), which is ours too until the exec. It has
to stay so for that long, or a process of the other uid could trace the child, and so read us. The last child to let go
has it put back.
"""

from __future__ import annotations

import os
import threading

from pinfold.spawn._spawn import Child, prctl

_GET_DUMPABLE, _SET_DUMPABLE = 3, 4  # prctl(2)

_lock = threading.Lock()
_children: set[Child] = set()
_before = 1


def begin(child: Child) -> None:
    """`child` is about to be started as another user."""
    global _before
    with _lock:
        if not _children:
            _before = prctl(_GET_DUMPABLE, 0)
        _children.add(child)


def end() -> None:
    """Some child may have exec'ed, or ended; no child waits for another."""
    with _lock:
        over = {child for child in _children if child.pid and child.wait_exec(0)}
        _children.difference_update(over)
        if over and not _children:
            prctl(_SET_DUMPABLE, min(_before, 1))  # 2 cannot be set (suid_dumpable, proc(5)); 0 is as strict


def forget(child: Child) -> None:
    """As `end`; `child` may never have been started."""
    if child.pid == 0:
        _children.discard(child)
    elif _children:
        end()


def _after_fork() -> None:
    """A forked child's memory is its own; no child of ours changes it."""
    global _lock
    _lock = threading.Lock()
    if _children:
        _children.clear()
        prctl(_SET_DUMPABLE, min(_before, 1))


os.register_at_fork(after_in_child=_after_fork)
