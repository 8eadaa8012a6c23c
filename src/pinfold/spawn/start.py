"""From a Command to a child on its way to its exec; and what failed there, in words."""

from __future__ import annotations

import errno
import os
import threading

from pinfold.command import Command
from pinfold.errors import CommandNotExecutable, CommandNotFound, SpawnError
from pinfold.spawn import launchers, lent, shared
from pinfold.spawn._spawn import Child, Launcher
from pinfold.spawn.steps import HELPER, descriptors

__all__ = ["Child", "failure", "release", "reserve", "settle", "start", "start_orphan"]


_lock = threading.Lock()
_users = 0


def reserve() -> None:
    """Hold what starts need; `release` gives it up with the last user."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            lent.reserve()


def release() -> None:
    """One who starts commands has done so; nothing is left of them."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            lent.release()
            launchers.end()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def start(child: Child, command: Command, steps: bytes, fds: list[int], cgroup: int, *, vfork: bool = False) -> None:
    """Start a command in the cgroup whose directory is the fd `cgroup`, and return without waiting for its exec.

    `vfork`: for a cgroup with a memory controller (see launchers.py). `fds` become its 0, 1 and 2 (INHERIT: ours). They
    must stay open until `child.wait_detached` says so. `failure` tells what has failed, at once where not even a
    process was made (`child.pid` is negative), else when the child has ended. Raises SpawnError where there is no
    thread for a vfork. `child` has the pid and the pidfd before anything else can be raised: a signal handler of the
    host program may raise on the way back from here, and a return value would be lost with it.
    """
    launcher = _launcher(command) if vfork else None
    detach = 0
    if command.attributes.keep_fds == ():
        low = max(fds)
        if low >= lent.LOW:
            fds, low = lent.lend(child, fds)
        detach = max(low + 1, 3) if low < lent.LOW else 0
    if command.identity.changes:
        shared.begin(child)
    child.start(command.argv, command.candidates(), command.env, descriptors(*fds) + steps, cgroup, detach, False,
                launcher)  # fmt: skip


def _launcher(command: Command) -> Launcher:
    try:
        return launchers.idle()
    except RuntimeError as error:
        program = repr(os.fsdecode(command.argv[0]))
        raise SpawnError("clone", errno.EAGAIN, program, f"no thread to start it from: {error}") from error


def settle(child: Child, command: Command) -> bool:
    """Take back what a child shares with us until its exec, where it shares more than memory. False: not yet."""
    done = child.wait_exec(0) or child.pid <= 0
    if done and command.identity.changes:
        shared.end()
    return done


def start_orphan(argv: list[bytes], env: list[bytes], fds: tuple[int, int, int]) -> Child:
    """Start a helper outside the runs' cgroups, in its own session and reparented at once: no wait of ours sees it.

    Its parent is init, or the next subreaper (which may be us). Raises OSError.
    """
    child = Child()
    child.start(argv, [argv[0]], env, descriptors(*fds) + HELPER, -1, 0, True)
    if (failed := child.failure()) is not None or child.pid < 0:
        number = -child.pid if failed is None else failed[0]
        child.close()
        raise OSError(number, os.strerror(number))
    return child


def failure(child: Child, command: Command, cgroup_path: str) -> SpawnError | None:
    """Why the command was not started, once its child has ended; None: it got as far as its exec."""
    failed = child.failure()
    return None if failed is None else _explained(*failed, command, cgroup_path)


def _explained(number: int, step: str, tried: bytes | None, command: Command, cgroup_path: str) -> SpawnError:
    program = repr(os.fsdecode(command.argv[0]))
    if step == "exec":
        return _exec_error(number, program, tried or b"", command)
    if step == "cwd":
        return SpawnError(step, number, program, f"the directory is {os.fsdecode(command.cwd or b'')!r}")
    if step == "clone" and number == errno.EAGAIN:
        return SpawnError(step, number, program, f"pids.max of the cgroup {cgroup_path} or one above, or RLIMIT_NPROC")
    if step == "rlimits":
        return SpawnError(step, number, program, "only root may raise a hard limit: see setrlimit(2)")
    if step in ("clone", "cgroup"):
        return SpawnError(step, number, program, f"into the cgroup {cgroup_path}")
    if step in ("groups", "gid", "uid"):
        return SpawnError(step, number, program, "only root may run a command as another user")
    return SpawnError(step, number, program)


def _exec_error(number: int, program: str, tried: bytes, command: Command) -> SpawnError:
    # Relative names were tried in the command's directory.
    file = os.path.join(command.cwd or b"", tried)
    if number == errno.ENOENT and not os.path.lexists(file):
        advice = None if b"/" in command.program else f"not found on PATH {os.fsdecode(command.path)!r}"
        return CommandNotFound("exec", number, program, advice)
    if number == errno.ENOTDIR:
        return CommandNotFound("exec", number, program, "a component of its path is no directory")
    return CommandNotExecutable("exec", number, program, _why_not_executable(number, file))


def _why_not_executable(number: int, file: bytes) -> str | None:
    if number == errno.ENOENT:
        return "the file is there: its interpreter (the #! line, or the loader of a binary) is not"
    if number == errno.EACCES and os.path.isdir(file):
        return "it is a directory"
    if number == errno.EACCES:
        return "it is not executable, or a directory on the way to it cannot be searched"
    if number == errno.ENOEXEC:
        return "it has no #! line and is no program of this machine; to run a shell script say: sh FILE"
    if number == errno.E2BIG:
        return "arguments and environment are too long for the kernel: see execve(2)"
    return None
