"""From the arguments of `run` and `start` to what a run needs: checked before anything exists."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from pinfold import late, units
from pinfold.backend import ScopeRequest
from pinfold.command import PLAIN, Attributes, Command, own_environment
from pinfold.errors import UsageError
from pinfold.labels import checked_labels
from pinfold.policy import Policy
from pinfold.runs.plan import Plan
from pinfold.runs.states import Bounds
from pinfold.runs.stdio import PIPE, StdioPlan
from pinfold.spawn.steps import compose
from pinfold.typed import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from datetime import timedelta
    from typing import IO, Any, Final, Literal, TypeAlias

    from pinfold.limits import Limits

Argument: TypeAlias = "str | bytes | os.PathLike[Any]"
Target: TypeAlias = "int | str | os.PathLike[Any] | IO[Any] | None"
Span: TypeAlias = "float | str | timedelta | None"


class Options(TypedDict, total=False):
    """The keyword arguments of `run` and `start`.

    timeout, idle_timeout, cpu_timeout: limits on wall-clock time, on time without output, and on CPU time. Seconds,
        a timedelta, or text such as "1min 30s"; None and "infinity" mean no limit, 0 ends it at once.
    grace: how long after `stop_signal` the kill comes. 0: at once, and no signal is sent.
    limits, policy: a Limits, a Policy, or a mapping of their fields.
    input: bytes (text in text mode) for stdin. stdin, stdout, stderr: None (ours), PIPE, DEVNULL, a file, an fd, or a
        path, which is opened anew; stderr also STDOUT. capture_output: both of them PIPE.
    output_limit: most bytes to keep of each stream, half of them its head and half its tail; all are counted.
    output_exceeded: at that limit "truncate" (the command runs on; what is over is counted and dropped) or "kill".
    text, encoding: give and take text; undecodable bytes become surrogate escapes.
    env, cwd, user, group: of the command. A user brings the groups of the user database.
    umask: of the command, 0o022 by default; None: ours. core_files: whether it may leave core files.
    start_new_session: a session of its own (the default); else ours, for programs on a terminal.
    pass_fds: descriptors above 2 that it gets, with their numbers.
    keep_ignored: signals that stay ignored for it if they are ignored here; all others are reset.
    strays: "kill" what is left when the main process ends, or "wait" for it, up to the timeout.
    stall_timeout: how long it may be stuck at its memory limit, all its processes waiting for memory; then it is
        `oom_killed`.
    labels: words for `pinfold ps` and `pinfold kill` to know it by, such as {"step": "link"}.
    unit: a systemd scope of its own by this name, with its limits as properties (backend systemd).
    """

    timeout: Span
    grace: Span
    idle_timeout: Span
    cpu_timeout: Span
    stop_signal: int | str
    limits: Limits | Mapping[str, Any] | None
    policy: Policy | Mapping[str, Any] | None
    input: bytes | str | None
    stdin: Target
    stdout: Target
    stderr: Target
    capture_output: bool
    output_limit: int | str | None
    output_exceeded: Literal["truncate", "kill"]
    text: bool | None
    encoding: str | None
    env: Mapping[Any, Any] | None
    cwd: Argument | None
    user: str | int | None
    group: str | int | None
    umask: int | None
    core_files: bool
    start_new_session: bool
    pass_fds: Iterable[int]
    keep_ignored: Iterable[int]
    strays: Literal["kill", "wait"]
    stall_timeout: Span
    unit: str | None
    labels: Mapping[str, str] | None


_SIMPLE: Final = frozenset({type(None), bool, int, float, str, bytes})
_LOOKED_UP: Final = frozenset({"user", "group"})  # in a database, which may change
_last: tuple[Any, Plan] | None = None


def plan_again(argv: Sequence[Argument], options: Mapping[str, Any]) -> Plan:
    """As `plan(argv, **options)`. What was asked for the last time, in the same environment, is known to be right."""
    global _last
    if type(argv) is not list or not _LOOKED_UP.isdisjoint(options):
        return plan(argv, **options)
    values = (*argv, *options.values())
    kinds = tuple(map(type, values))  # as 1 equals True
    if not _SIMPLE.issuperset(kinds):
        return plan(argv, **options)
    key, last = (values, kinds, tuple(options)), _last
    if last is not None and last[0] == key and last[1].command.env is own_environment():
        return last[1]
    wanted = plan(argv, **options)
    _last = key, wanted
    return wanted


def plan(
    argv: Sequence[Argument],
    *,
    manual: bool = False,
    timeout: Span = None,
    grace: Span = 0,
    idle_timeout: Span = None,
    cpu_timeout: Span = None,
    stop_signal: int | str = 15,
    limits: Limits | Mapping[str, Any] | None = None,
    policy: Policy | Mapping[str, Any] | None = None,
    input: bytes | str | None = None,
    stdin: Target = None,
    stdout: Target = None,
    stderr: Target = None,
    capture_output: bool = False,
    output_limit: int | str | None = None,
    output_exceeded: Literal["truncate", "kill"] = "truncate",
    text: bool | None = None,
    encoding: str | None = None,
    env: Mapping[Any, Any] | None = None,
    cwd: Argument | None = None,
    user: str | int | None = None,
    group: str | int | None = None,
    umask: int | None = 0o022,
    core_files: bool = False,
    start_new_session: bool = True,
    pass_fds: Iterable[int] = (),
    keep_ignored: Iterable[int] = (),
    strays: Literal["kill", "wait"] = "kill",
    stall_timeout: Span = None,
    unit: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Plan:
    """Check the arguments of a run, and decide all that follows from them. `manual`: PIPE gives streams.

    Raises UsageError or Unsupported; nothing has been made then.
    """
    if strays not in ("kill", "wait"):
        raise UsageError(f"strays {strays!r}: must be 'kill' or 'wait'")
    if output_exceeded not in ("truncate", "kill"):
        raise UsageError(f"output_exceeded {output_exceeded!r}: must be 'truncate' or 'kill'")
    asked_limits = None if limits is None else _limits(limits)
    if capture_output:
        if stdout is not None or stderr is not None:
            raise UsageError("capture_output says PIPE for stdout and stderr: give one or the other")
        stdout = stderr = PIPE
    if text or encoding is not None:
        encoding = _encoding(encoding)
    if input is not None:
        if stdin is not None and stdin != PIPE:
            raise UsageError("input goes to stdin: give one or the other")
        stdin = PIPE
    cap = None if output_limit is None else units.size(output_limit, "output_limit")
    bounds = Bounds(
        units.INFINITY if timeout is None else units.span(timeout, "timeout"),
        0.0 if grace is None else units.span(grace, "grace"),
        units.INFINITY if idle_timeout is None else units.span(idle_timeout, "idle_timeout"),
        units.INFINITY if cpu_timeout is None else units.span(cpu_timeout, "cpu_timeout"),
        units.signal_number(stop_signal, "stop_signal"),
        units.INFINITY if stall_timeout is None else units.span(stall_timeout, "stall_timeout"),
    )
    watched = idle_timeout is not None or cap is not None
    if manual and watched and PIPE in (stdout, stderr):
        raise UsageError("idle_timeout and output_limit need the output to pass through us; with PIPE you read it")
    attributes = PLAIN
    if not (umask == PLAIN.umask and start_new_session and not core_files and pass_fds == () and keep_ignored == ()):
        attributes = _attributes(umask, pass_fds, keep_ignored, core=core_files, session=start_new_session)
    command = Command.of(argv, env=env, cwd=cwd, user=user, group=group, attributes=attributes)
    confined = _PLAIN if policy is None else _of(Policy, policy, "policy", Policy._fields)
    rlimits = () if asked_limits is None else tuple((name, *both) for name, both in asked_limits.rlimits().items())
    return Plan(
        argv,
        command,
        confined,
        compose(attributes, command.cwd, rlimits, command.identity, no_new_privs=confined.no_new_privs),
        bounds,
        StdioPlan(stdin, stdout, stderr, None if input is None else _input(input, encoding), cap, watched, manual),
        strays == "wait",
        encoding,
        _asked(asked_limits, unit, command.argv, stall=stall_timeout is not None),
        checked_labels(labels),
        output_exceeded == "kill",
    )


def _attributes(umask: int | None, pass_fds: Iterable[int], keep_ignored: Iterable[int], *, core: bool,
                session: bool) -> Attributes:  # fmt: skip
    if umask is not None and not (type(umask) is int and 0 <= umask <= 0o777):
        raise UsageError(f"umask {umask!r}: must be between 0 and 0777")
    fds = sorted(set(pass_fds))
    for fd in fds:
        if type(fd) is not int or fd < 0:
            raise UsageError(f"pass_fds has {fd!r}: must be open descriptors")
        try:
            os.fstat(fd)
        except (OSError, OverflowError) as error:
            raise UsageError(f"pass_fds has {fd}: is not an open descriptor") from error
    return Attributes(
        new_session=session,
        umask=umask,
        core_files=core,
        keep_ignored=tuple(units.signal_number(number, "keep_ignored") for number in keep_ignored),
        keep_fds=tuple(fd for fd in fds if fd > 2),
    )


def _encoding(encoding: str | None) -> str:
    if encoding is None:
        with late.lock:
            import locale

        encoding = locale.getencoding()
    try:
        b"".decode(encoding)
        "".encode(encoding)
    except (LookupError, TypeError, ValueError):
        raise UsageError(f"encoding {encoding!r}: no such text encoding") from None
    return encoding


_PLAIN = Policy()
_NOTHING_ASKED = ScopeRequest()


def _limits(value: Limits | Mapping[str, Any]) -> Limits:
    with late.lock:
        from pinfold.limits import Limits

    if isinstance(value, Limits):
        return value
    if not isinstance(value, Mapping):
        raise UsageError(f"limits is {type(value).__name__}: must be a Limits or a mapping of its fields")
    return Limits.of(value)


def _asked(limits: Limits | None, unit: str | None, argv: list[bytes], *, stall: bool) -> ScopeRequest:
    if limits is None and unit is None and not stall:
        return _NOTHING_ASKED
    controllers: frozenset[str] = (
        frozenset() if limits is None else frozenset(setting.controller for setting in limits.settings())
    )
    if stall:
        controllers |= {"memory"}
    return ScopeRequest(limits, controllers, unit, _described(argv))


def _described(argv: list[bytes]) -> str:
    """The command in one line, for the list of units."""
    words = b" ".join(argv[:8]).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else "?" for c in words)[:120]


def _of(kind: Any, value: Any, what: str, known: tuple[str, ...]) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise UsageError(f"{what} is {type(value).__name__}: must be a {kind.__name__} or a mapping of its fields")
    if unknown := [str(name) for name in value if name not in known]:
        raise UsageError(f"{what}: {', '.join(unknown)} is unknown; known are {', '.join(known)}")
    return kind(**value)


def _input(data: bytes | str, encoding: str | None) -> bytes:
    if isinstance(data, str):
        if encoding is None:
            raise UsageError("input is text: say text=True or encoding=")
        try:
            return data.encode(encoding, "surrogateescape")
        except UnicodeEncodeError as error:
            raise UsageError(f"input: cannot be encoded as {encoding}: {error}") from error
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise UsageError(f"input is {type(data).__name__}: must be bytes, or text with text=True")
