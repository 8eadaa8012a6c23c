"""The records on our cgroups: who made a fold, and what a run is.

They are extended attributes (cgroup v2 takes user.* ones since Linux 5.7), so they are there exactly as long as the
cgroup. Anybody who may write the cgroup can write them: whoever reads them believes nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from pinfold import late
from pinfold.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any, Final, Self


SCHEMA: Final = 1
OWNER: Final = "user.pinfold.owner"
RUN: Final = "user.pinfold.run"
CANCELED: Final = "user.pinfold.canceled"  # on a run: somebody has asked for its end from outside
_ESCAPES: Final = {ord(c): f"\\u{ord(c):04x}" for c in (*map(chr, range(32)), '"', "\\")}  # of JSON (RFC 8259, 7)
_NOT_TAKEN: Final = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)


class MalformedError(ValueError):
    """A record that is none of ours, or of a release that we do not know; says why."""


class OwnerRecord(NamedTuple):
    """The process that opened a fold.

    `start_time`: in clock ticks since boot (proc_pid_stat(5)); with the pid it is unique in one `boot_id`.
    `pid_ns`, `time_ns`: the namespaces in which these two are counted (inode numbers, namespaces(7)).
    `opened`: seconds since 1970. `guard`: the pid of the fold's guard, in the same namespace. `closed`: the fold was
    closed, and something of it could not be removed.
    """

    pid: int
    start_time: int
    boot_id: str
    pid_ns: int
    time_ns: int
    uid: int
    opened: float
    guard: int | None = None
    labels: Mapping[str, str] = {}  # never changed
    closed: bool = False

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """From the attribute's value. Raises MalformedError."""
        found = _parsed(data, cls._fields)
        _require(found, {"pid": int, "start_time": int, "boot_id": str, "pid_ns": int, "time_ns": int, "uid": int})
        _require(found, {"opened": (int, float)})
        _require_optional(found, {"guard": int, "closed": bool})
        _require_pids(found, "pid", "guard")
        return cls(**found)


class RunRecord(NamedTuple):
    """A run. `started`: seconds since 1970. `quarantined`: it is over, and could not be emptied."""

    pid: int | None
    started: float
    labels: Mapping[str, str] = {}  # never changed
    quarantined: bool = False

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """From the attribute's value. Raises MalformedError."""
        found = _parsed(data, cls._fields)
        _require(found, {"started": (int, float)})
        _require_optional(found, {"pid": int, "quarantined": bool})
        _require_pids(found, "pid")
        return cls(**{"pid": None, **found})


def _parsed(data: bytes, fields: tuple[str, ...]) -> dict[str, Any]:
    """What is known to this release of a record; what a later one of the same schema adds is no harm."""
    with late.lock:
        import json

    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedError("it is no JSON") from error
    if not isinstance(found, dict):
        raise MalformedError("it is no JSON object")
    if found.get("schema") != SCHEMA or isinstance(found["schema"], bool):
        raise MalformedError(f"its schema is {found.get('schema')!r:.40}, known is {SCHEMA}")
    labels = found.get("labels", {})
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise MalformedError("its labels are no texts")
    return {name: found[name] for name in fields if found.get(name) is not None}


def _require(found: dict[str, Any], kinds: dict[str, Any]) -> None:
    for name, kind in kinds.items():
        value = found.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise MalformedError(f"its {name} is {value!r:.40}")
        if not isinstance(value, str) and not 0 <= value < 2**63:  # NaN too
            raise MalformedError(f"its {name} is {value!r:.40}")


def _require_optional(found: dict[str, Any], kinds: dict[str, type]) -> None:
    for name, kind in kinds.items():
        value = found.get(name)
        if value is not None and type(value) is not kind:
            raise MalformedError(f"its {name} is {value!r:.40}")


def _require_pids(found: dict[str, Any], *names: str) -> None:
    for name in names:
        if not 0 < found.get(name, 1) < 2**63:  # 0 and -1 are everybody to kill(2)
            raise MalformedError(f"its {name} is {found[name]!r:.40}, which is no process'")


def _json(value: Any) -> str:
    """What json.dumps makes of such a value. Every `pinfold run` writes one, and json takes a millisecond to load."""
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_json(name)}:{_json(each)}" for name, each in value.items()) + "}"
    return "null" if value is None else repr(value).lower() if isinstance(value, bool) else repr(value)


def write(directory: int, attribute: str, record: OwnerRecord | RunRecord) -> bool:
    """Write a record on a held cgroup directory. False: this kernel takes no user attributes there. Raises OSError."""
    text = _json({"schema": SCHEMA, **record._asdict()})
    return set_attribute(directory, attribute, text.encode())


def set_attribute(directory: int, attribute: str, value: bytes) -> bool:
    """As `write`, with any value."""
    try:
        os.setxattr(directory, attribute, value)
    except OSError as error:
        if error.errno in _NOT_TAKEN:
            return False
        raise
    return True


def attribute(directory: int | str, name: str) -> bytes | None:
    """The value of an attribute, or None if there is none. Raises OSError where even that cannot be told."""
    try:
        return os.getxattr(directory, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOENT, errno.ENODEV, *_NOT_TAKEN):
            return None
        raise
