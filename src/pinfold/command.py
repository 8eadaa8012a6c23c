"""Command: what to execute, checked and in the form the kernel takes it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence

from pinfold import late
from pinfold.errors import UsageError
from pinfold.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any, Final


_PATHLIKE = (str, bytes, os.PathLike)


class Identity(NamedTuple):
    """The user a command runs as. None: unchanged."""

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None

    @property
    def changes(self) -> bool:
        """Whether it is another user, or another group."""
        return self.uid is not None or self.gid is not None


class Attributes(NamedTuple):
    """What a command inherits, and what it does not (posix_spawnattr_init(3) has the field's word).

    new_session: a session of its own (setsid(2)), so no terminal. process_group: a process group; 0: a new one.
    umask: None: the caller's. core_files: whether it may leave core files (RLIMIT_CORE).
    keep_ignored: signals that stay ignored if they are ignored here; all others are reset, and none is blocked.
    reset_signals: only these are reset, all others stay ignored or blocked as they are here; None: see keep_ignored.
    keep_fds: the descriptors above 2 that it gets; None: those that are inheritable (PEP 446).
    """

    new_session: bool = True
    process_group: int | None = None
    umask: int | None = 0o022
    core_files: bool = False
    keep_ignored: tuple[int, ...] = ()
    reset_signals: tuple[int, ...] | None = None
    keep_fds: tuple[int, ...] | None = ()


PLAIN: Final = Attributes()
# What `subprocess` gives: the caller's session, umask, signals and limits. Python itself ignores SIGPIPE and SIGXFSZ.
TRANSPARENT: Final = Attributes(
    new_session=False, umask=None, core_files=True, reset_signals=(signal.SIGPIPE, signal.SIGXFSZ)
)


class Command(NamedTuple):
    """argv, environment, directory, user and attributes of a command.

    Everything is bytes, as file names and arguments are. `program` is what is executed, argv[0] unless it was said.
    """

    argv: list[bytes]
    env: list[bytes]
    path: bytes
    cwd: bytes | None
    identity: Identity
    attributes: Attributes
    program: bytes

    @classmethod
    def of(
        cls,
        argv: Sequence[Any],
        *,
        env: Mapping[Any, Any] | None = None,
        cwd: Any = None,
        user: str | int | None = None,
        group: str | int | None = None,
        attributes: Attributes = PLAIN,
    ) -> Command:
        """Check and convert. Raises UsageError, naming the element that is wrong."""
        variables, lines = _snapshot() if env is None else _lines(_environment(env))
        arguments = _argv(argv)
        return cls(
            arguments,
            lines,
            variables[b"PATH"] if b"PATH" in variables else os.fsencode(os.defpath),
            None if cwd is None else _bytes(cwd, "cwd"),
            _NOBODY_ELSE if user is None and group is None else _identity(user, group),
            attributes,
            arguments[0],
        )

    def candidates(self) -> list[bytes]:
        """The files to try, as execvp(3) does, on the PATH of the command's own environment."""
        program = self.program
        if b"/" in program:
            return [program]
        # An empty element means the current directory (POSIX, "PATH").
        return [(directory or b".") + b"/" + program for directory in self.path.split(b":")]


_NOBODY_ELSE = Identity()


def _argv(argv: Sequence[Any]) -> list[bytes]:
    if type(argv) is not list and isinstance(argv, _PATHLIKE):
        raise UsageError(f"argv {argv!r}: must be a list; to run a shell line say ['sh', '-c', LINE]")
    try:
        elements = list(argv)
    except TypeError:
        raise UsageError(f"argv {argv!r}: must be a list of arguments") from None
    if not elements:
        raise UsageError("argv is empty: there is nothing to run")
    arguments = [_bytes(element, "argv", i) for i, element in enumerate(elements)]
    if not arguments[0]:
        raise UsageError("argv[0] is empty: there is nothing to run")
    return arguments


def _bytes(value: Any, what: str, index: int | None = None) -> bytes:
    if type(value) is not str and not isinstance(value, _PATHLIKE):
        raise UsageError(f"{_at(what, index)} is {type(value).__name__} {value!r}: must be str, bytes or a path")
    try:
        out = os.fsencode(value)
    except UnicodeEncodeError:
        raise UsageError(f"{_at(what, index)} {value!r}: cannot be encoded for the file system") from None
    if b"\0" in out:
        raise UsageError(f"{_at(what, index)} {value!r}: has a NUL byte, which the kernel cannot pass on")
    return out


def _at(what: str, index: int | None) -> str:
    return what if index is None else f"{what}[{index}]"


_Environment = tuple[dict[bytes, bytes], list[bytes]]  # and its lines, NAME=VALUE


def _lines(variables: dict[bytes, bytes]) -> _Environment:
    return variables, [name + b"=" + value for name, value in variables.items()]


_last_environment = _lines({})


def own_environment() -> list[bytes]:
    """Ours, as NAME=VALUE; the same list as long as it has not changed."""
    return _snapshot()[1]


def _snapshot() -> _Environment:
    """Ours, as one snapshot: other threads may change it, and `environ` itself moves when they do."""
    global _last_environment
    last, now = _last_environment, dict(os.environb._data)  # type: ignore[attr-defined]  # copied under the GIL
    if now != last[0]:  # it hardly ever changes between two runs
        last = _last_environment = _lines(now)
    return last


def _environment(env: Mapping[Any, Any]) -> dict[bytes, bytes]:
    if not isinstance(env, Mapping):
        raise UsageError(f"env is {type(env).__name__}: must be a mapping of names to values")
    out = {}
    for name, value in env.items():
        key = _bytes(name, "environment name")
        if not key or b"=" in key:
            raise UsageError(f"environment name {name!r}: must not be empty or hold '='")
        out[key] = _bytes(value, f"environment variable {name}")
    return out


def _identity(user: str | int | None, group: str | int | None) -> Identity:
    with late.lock:
        import grp
        import pwd

    entry = None if user is None else _lookup(user, "user", pwd.getpwnam, pwd.getpwuid)
    group_entry = None if group is None else _lookup(group, "group", grp.getgrnam, grp.getgrgid)
    gid = group_entry if isinstance(group_entry, int) else group_entry.gr_gid if group_entry else None
    if entry is None:
        return Identity(gid=gid)
    if isinstance(entry, int):
        if gid is None:
            raise UsageError(f"user {user}: is not in the user database, so say which group")
        return _unless_ours(Identity(entry, gid, (gid,)))
    gid = entry.pw_gid if gid is None else gid
    return _unless_ours(Identity(entry.pw_uid, gid, tuple(os.getgrouplist(entry.pw_name, gid))))


def _unless_ours(identity: Identity) -> Identity:
    """Asking for the user we are is no change, and must not need the privilege to change."""
    ours = os.geteuid() == os.getuid() == identity.uid != 0 and os.getegid() == os.getgid() == identity.gid
    return _NOBODY_ELSE if ours else identity


def _lookup(value: str | int, what: str, by_name: Any, by_id: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise UsageError(f"{what} {value!r}: must be a name or a number")
    if isinstance(value, str) and not (value.isdecimal() and len(value) <= 10):
        try:
            return by_name(value)
        except (KeyError, ValueError):
            raise UsageError(f"{what} {value!r}: no such {what} on this host") from None
    number = int(value)
    if not 0 <= number < 2**32 - 1:
        raise UsageError(f"{what} {value}: must be between 0 and {2**32 - 2}")
    try:
        return by_id(number)
    except KeyError:
        return number
