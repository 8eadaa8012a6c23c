"""The steps of a child between clone and exec, in the format that steps.c reads (struct step of steps.h).

A list of steps is bytes: each step's packed form, one after the other. They are carried out in this order, and the
first that fails ends the child with an error that names it.
"""

from __future__ import annotations

import resource
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache

from pinfold.command import Attributes, Identity
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


INHERIT: Final = -1  # a descriptor: ours, of the same number

_HEAD: Final = struct.Struct("=IIqq")
_THREE: Final = struct.Struct("=3i")
_LIMIT: Final = struct.Struct("=3Q")
# enum op of steps.h
_FDS, _CLOSE, _SIGNALS, _SESSION, _GROUP, _CWD, _UMASK, _RLIMIT, _GROUPS, _GID, _UID, _NO_NEW_PRIVS = range(2, 14)
_EVERY_SIGNAL: Final = 2**64 - 1


def _step(op: int, a: int = 0, b: int = 0, data: bytes = b"") -> bytes:
    return _HEAD.pack(op, len(data), a, b) + data + bytes(-len(data) % 8)


def _signed(mask: int) -> int:
    return mask - 2**64 if mask >= 2**63 else mask


@lru_cache(maxsize=64)
def descriptors(stdin: int, stdout: int, stderr: int) -> bytes:
    """What becomes 0, 1 and 2. Comes first."""
    return _step(_FDS, data=_THREE.pack(stdin, stdout, stderr))


def reset_signals(but: Iterable[int] = (), *, keep_mask: bool = False) -> bytes:
    """Every signal as at boot, `but` those that stay ignored if they are so here; unblocked, or as the caller's."""
    mask = _EVERY_SIGNAL
    for number in but:
        mask &= ~(1 << (number - 1))
    return _step(_SIGNALS, _signed(mask), int(keep_mask))


def restore_signals(*, reset: Iterable[int]) -> bytes:
    """Only these signals as at boot; the others stay ignored if they are, and blocked if they are."""
    return _step(_SIGNALS, _signed(sum(1 << (number - 1) for number in reset)), 1)


def rlimit(name: int, soft: int, hard: int) -> bytes:
    """A resource limit, set and read back."""
    # RLIM_INFINITY is -1 here and all ones there.
    return _step(_RLIMIT, data=_LIMIT.pack(name, soft % 2**64, hard % 2**64))


def identity(who: Identity) -> bytes:
    """Another user. Groups first: the others take away the right to set them."""
    groups = b"" if who.groups is None else _step(_GROUPS, data=struct.pack(f"={len(who.groups)}I", *who.groups))
    gid = b"" if who.gid is None else _step(_GID, who.gid)
    return groups + gid + (b"" if who.uid is None else _step(_UID, who.uid))


@lru_cache(maxsize=256)
def compose(attributes: Attributes, cwd: bytes | None, rlimits: tuple[tuple[int, int, int], ...], who: Identity, *,
            no_new_privs: bool) -> bytes:  # fmt: skip
    """All steps but the descriptors. What can take long, or hang, comes after the closing of descriptors."""
    out = []
    if attributes.keep_fds is not None:
        out.append(_step(_CLOSE, data=struct.pack(f"={len(attributes.keep_fds)}i", *attributes.keep_fds)))
    if attributes.reset_signals is None:
        out.append(reset_signals(attributes.keep_ignored))
    else:
        out.append(restore_signals(reset=attributes.reset_signals))
    if attributes.new_session:
        out.append(_step(_SESSION))
    if attributes.process_group is not None:
        out.append(_step(_GROUP, attributes.process_group))
    if cwd is not None:
        out.append(_step(_CWD, data=cwd + b"\0"))
    if attributes.umask is not None:
        out.append(_step(_UMASK, attributes.umask))
    limits: Mapping[int, tuple[int, int]] = {name: (soft, hard) for name, soft, hard in rlimits}
    if not attributes.core_files and resource.RLIMIT_CORE not in limits:
        limits = {resource.RLIMIT_CORE: (0, 0), **limits}
    out += [rlimit(name, soft, hard) for name, (soft, hard) in limits.items()]
    out.append(identity(who))
    if no_new_privs:
        out.append(_step(_NO_NEW_PRIVS))
    return b"".join(out)


HELPER: Final = (
    _step(_CLOSE) + reset_signals() + _step(_CWD, data=b"/\0") + rlimit(resource.RLIMIT_CORE, 0, 0)
    + _step(_NO_NEW_PRIVS)
)  # fmt: skip
"""Those of a process of our own beside the runs, but the descriptors."""
