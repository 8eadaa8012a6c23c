"""From the arguments of `run` and `start` to what a run needs: checked before anything exists."""

from __future__ import annotations

import locale
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, Any, Literal, TypedDict

from pinfold import units
from pinfold.command import Command
from pinfold.errors import UsageError
from pinfold.limits import Limits
from pinfold.policy import Policy
from pinfold.run.stdio import PIPE, StdioPlan
from pinfold.run.supervision import Bounds

Argument = str | bytes | os.PathLike[Any]
Target = int | str | os.PathLike[Any] | IO[Any] | None
Span = float | str | timedelta | None


class Options(TypedDict, total=False):
    """The keyword arguments of `run` and `start`.

    timeout, idle_timeout, cpu_timeout: ends of patience for the whole run, for its silence, for its CPU time. Seconds,
        a timedelta, or text such as "1min 30s"; None and "infinity" mean no limit, 0 is over at once.
    grace: how long after `stop_signal` the kill comes. 0: at once, and no signal is sent.
    limits, policy: a Limits, a Policy, or a mapping of their fields.
    input: bytes (text in text mode) for stdin. stdin, stdout, stderr: None (ours), PIPE, DEVNULL, a file, an fd, or a
        path, which is opened anew; stderr also STDOUT. capture_output: both of them PIPE.
    output_limit: most bytes to keep of each stream, its head and its tail by halves; all are counted.
    text, encoding: give and take text; bytes that are none stay as surrogate escapes.
    env, cwd, user, group: of the command. A user brings the groups of the user database.
    strays: "kill" what is left when the main process ends, or "wait" for it, up to the timeout.
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
    text: bool | None
    encoding: str | None
    env: Mapping[Any, Any] | None
    cwd: Argument | None
    user: str | int | None
    group: str | int | None
    strays: Literal["kill", "wait"]


@dataclass(frozen=True, slots=True)
class Request:
    """One run, as asked for."""

    args: Sequence[Any]
    command: Command
    policy: Policy
    bounds: Bounds
    stdio: StdioPlan
    wait: bool
    encoding: str | None

    @classmethod
    def of(
        cls,
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
        text: bool | None = None,
        encoding: str | None = None,
        env: Mapping[Any, Any] | None = None,
        cwd: Argument | None = None,
        user: str | int | None = None,
        group: str | int | None = None,
        strays: Literal["kill", "wait"] = "kill",
    ) -> Request:
        """Check them all. Raises UsageError or Unsupported; nothing has been made then."""
        if strays not in ("kill", "wait"):
            raise UsageError(f"strays {strays!r}: must be 'kill' or 'wait'")
        if limits is not None:
            _of(Limits, limits, "limits").require_none()
        if capture_output:
            if stdout is not None or stderr is not None:
                raise UsageError("capture_output says PIPE for stdout and stderr: give one or the other")
            stdout = stderr = PIPE
        if encoding is None and text:
            encoding = locale.getencoding()
        if encoding is not None:
            _check_encoding(encoding)
        if input is not None:
            if stdin is not None and stdin != PIPE:
                raise UsageError("input goes to stdin: give one or the other")
            stdin = PIPE
        cap = None if output_limit is None else units.size(output_limit, "output_limit")
        bounds = _UNBOUNDED
        if grace is None:
            grace = 0
        stop = units.signal_number(stop_signal, "stop_signal")
        patience = units.span(grace, "grace")
        if not timeout is idle_timeout is cpu_timeout is None or patience:
            bounds = Bounds(
                _bound(timeout, "timeout"),
                patience,
                _bound(idle_timeout, "idle_timeout"),
                _bound(cpu_timeout, "cpu_timeout"),
                stop,
            )
        watched = idle_timeout is not None or cap is not None
        if manual and watched and PIPE in (stdout, stderr):
            raise UsageError("idle_timeout and output_limit need the output to pass through us; with PIPE you read it")
        return cls(
            argv,
            Command.of(argv, env=env, cwd=cwd, user=user, group=group),
            _PLAIN if policy is None else _of(Policy, policy, "policy"),
            bounds,
            StdioPlan(stdin, stdout, stderr, _input(input, encoding), cap, watched, manual),
            strays == "wait",
            encoding,
        )

    def decode(self, data: bytes | None) -> bytes | str | None:
        """Captured bytes as the caller wants them."""
        if data is None or self.encoding is None:
            return data
        try:
            return self._lines(data.decode(self.encoding, "surrogateescape"))
        except UnicodeDecodeError:
            return self._lines(data.decode(self.encoding, "backslashreplace"))

    @staticmethod
    def _lines(text: str) -> str:
        return text.replace("\r\n", "\n").replace("\r", "\n")


_PLAIN = Policy()
_UNBOUNDED = Bounds()


def _check_encoding(encoding: Any) -> None:
    try:
        b"".decode(encoding)
        "".encode(encoding)
    except (LookupError, TypeError, ValueError):
        raise UsageError(f"encoding {encoding!r}: no such text encoding") from None


def _bound(value: Span, what: str) -> float:
    return units.INFINITY if value is None else units.span(value, what)


def _of(kind: Any, value: Any, what: str) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise UsageError(f"{what} is {type(value).__name__}: must be a {kind.__name__} or a mapping of its fields")
    try:
        return kind(**value)
    except TypeError:
        if not {str(name) for name in value} - set(kind.__dataclass_fields__):
            raise
        known = ", ".join(kind.__dataclass_fields__)
        unknown = ", ".join(str(name) for name in value if name not in kind.__dataclass_fields__)
        raise UsageError(f"{what}: {unknown} is unknown; known are {known}") from None


def _input(data: bytes | str | None, encoding: str | None) -> bytes | None:
    if isinstance(data, str):
        if encoding is None:
            raise UsageError("input is text: say text=True or encoding=")
        try:
            return data.encode(encoding, "surrogateescape")
        except UnicodeEncodeError as error:
            raise UsageError(f"input: cannot be encoded as {encoding}: {error}") from error
    if data is None or isinstance(data, (bytes, bytearray, memoryview)):
        return data if data is None else bytes(data)
    raise UsageError(f"input is {type(data).__name__}: must be bytes, or text with text=True")
