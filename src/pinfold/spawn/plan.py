"""From a Command to a running process: the plan that the C child carries out, and its errors in words."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import struct
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pinfold.cgroup.group import Cgroup
from pinfold.command import Command
from pinfold.errors import CommandNotExecutable, CommandNotFound, SpawnError
from pinfold.policy import Policy
from pinfold.spawn._spawn import spawn as _spawn

INHERIT: Final = -1

_NO_RLIMITS: Final[Mapping[int, tuple[int, int]]] = MappingProxyType({})
_NO_CORE_FILES: Final = struct.pack("=3Q", resource.RLIMIT_CORE, 0, 0)  # struct limit of _spawn.c

# While a child has changed its uid and not yet exec'ed, our memory must stay undumpable (it is shared, and a process
# of that uid could trace the child); one at a time, as each puts the old value back at its end.
_changing_identity = threading.Lock()


_starting: set[object] = set()


def starts_under_way() -> frozenset[object]:
    """The starts of other threads: until their exec those children have copies of all our fds, pipes too."""
    return frozenset(_starting.copy())  # copied under the GIL


def _after_fork() -> None:
    """The threads that were starting something are not in a forked child."""
    global _changing_identity
    _changing_identity = threading.Lock()
    _starting.clear()


os.register_at_fork(after_in_child=_after_fork)
_NO_LOCK: Final = contextlib.nullcontext()


def spawn(command: Command, policy: Policy, cgroup: Cgroup, fds: tuple[int, int, int],
          born: list[tuple[int, int, bool]], rlimits: Mapping[int, tuple[int, int]] = _NO_RLIMITS) -> None:  # fmt: skip
    """Start a command in a cgroup; `fds` become its 0, 1 and 2 (INHERIT: ours). `rlimits`: resource to (soft, hard).

    Returns once it has been exec'ed. Raises SpawnError with the step that refused; then nothing is left of it.
    `born` gets (pid, pidfd, whether clone3 did it) before anything can be raised: a signal handler of the host program
    may raise on the way back from here, and a return value would be lost with it. The pidfd is the caller's.
    """
    identity = command.identity
    start = object()
    _starting.add(start)
    try:
        with _NO_LOCK if identity.uid is None and identity.gid is None else _changing_identity:
            _spawn(
                command.argv,
                command.candidates(),
                command.env,
                command.cwd,
                fds,
                cgroup.dir,
                policy.new_session,
                policy.umask,
                _packed(rlimits, policy) if rlimits else b"" if policy.core_files else _NO_CORE_FILES,
                None if identity.groups is None else struct.pack(f"={len(identity.groups)}I", *identity.groups),
                -1 if identity.gid is None else identity.gid,
                -1 if identity.uid is None else identity.uid,
                policy.no_new_privs,
                sum(1 << number - 1 for number in policy.keep_ignored),
                False,
                born,
            )
    except OSError as error:
        raise _explained(error, command, cgroup) from error
    finally:
        _starting.discard(start)


def spawn_orphan(argv: list[bytes], env: list[bytes], fds: tuple[int, int, int]) -> tuple[int, int]:
    """Start a process of our own beside the runs, in another session, that is no child of the host program's.

    Returns its pid and pidfd, the caller's to close. Its parent is init, or the next subreaper (which may be us).
    Raises OSError.
    """
    born: list[tuple[int, int, bool]] = []
    _spawn(argv, [argv[0]], env, b"/", fds, -1, False, -1, _NO_CORE_FILES, None, -1, -1, True, 0, True, born)
    pid, pidfd, _ = born[0]
    return pid, pidfd


def _packed(rlimits: Mapping[int, tuple[int, int]], policy: Policy) -> bytes:
    wanted = {**({} if policy.core_files else {resource.RLIMIT_CORE: (0, 0)}), **rlimits}
    # RLIM_INFINITY is -1 here and all ones there.
    return b"".join(struct.pack("=3Q", name, soft % 2**64, hard % 2**64) for name, (soft, hard) in wanted.items())


def _explained(error: OSError, command: Command, cgroup: Cgroup) -> SpawnError:
    number, step = error.errno or errno.EINVAL, str(error.strerror)
    program = repr(os.fsdecode(command.argv[0]))
    if step == "exec":
        return _exec_error(number, program, error.filename, command)
    if step == "cwd":
        return SpawnError(step, number, program, f"the directory is {os.fsdecode(command.cwd or b'')!r}")
    if step == "clone" and number == errno.EAGAIN:
        return SpawnError(step, number, program, f"pids.max of the cgroup {cgroup.path} or one above, or RLIMIT_NPROC")
    if step == "rlimits":
        return SpawnError(step, number, program, "only root may raise a hard limit: see setrlimit(2)")
    if step in ("clone", "cgroup"):
        return SpawnError(step, number, program, f"into the cgroup {cgroup.path}")
    if step in ("groups", "gid", "uid"):
        return SpawnError(step, number, program, "only root may run a command as another user")
    return SpawnError(step, number, program)


def _exec_error(number: int, program: str, tried: bytes, command: Command) -> SpawnError:
    # Relative names were tried in the command's directory.
    file = os.path.join(command.cwd or b"", tried)
    if number == errno.ENOENT and not os.path.lexists(file):
        advice = None if b"/" in command.argv[0] else f"not found on PATH {os.fsdecode(command.path)!r}"
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
