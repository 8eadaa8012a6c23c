"""The names of systemd units, as systemd itself judges them (unit-name.c, systemd.unit(5), systemd.slice(5))."""

from __future__ import annotations

import re
from typing import Final

from pinfold.errors import UsageError

NAME_MAX: Final = 255  # bytes, with the suffix; all permitted characters are ASCII
KINDS: Final = ("scope", "slice")
# Those of systemd.unit(5), by which a name may only be another kind of unit.
_OTHERS: Final = ("service", "socket", "device", "mount", "automount", "swap", "target", "path", "timer")
_PERMITTED: Final = re.compile(r"[A-Za-z0-9:_.\\@-]+")


def unit_name(name: str, kind: str = "scope") -> str:
    """The full name of the unit that a user calls `name`: with its suffix, which may be left out.

    `kind`: "scope" or "slice". Nothing is escaped or mended: "a/b.slice" is a mistake, and systemd-escape(1) can tell
    what it would have to be.

    Raises UsageError.
    """
    if kind not in KINDS:
        raise UsageError(f"unit kind {kind!r}: known are {' and '.join(KINDS)}")

    def wrong(why: str) -> UsageError:
        return UsageError(f"{kind} name {name!r}: {why}")

    if not isinstance(name, str):
        raise wrong("must be a str")
    suffix = f".{kind}"
    stem = name.removesuffix(suffix)
    if not stem:
        raise wrong("must not be empty")
    other = stem.rpartition(".")[2]
    if stem == name and "." in stem and other in (*KINDS, *_OTHERS):
        raise wrong(f"ends in .{other}, where {suffix} is asked for")
    if not _PERMITTED.fullmatch(stem):
        raise wrong("may hold ASCII letters, digits and :-_.\\@ only; systemd-escape(1) makes such a name")
    if stem.startswith((".", "@")):
        raise wrong("must not start with a dot or @")
    if len(stem) + len(suffix) > NAME_MAX:
        raise wrong(f"longer than {NAME_MAX} characters with its suffix {suffix}")
    if "@" in stem and (kind == "slice" or stem.endswith("@")):
        # A template has no instance to start, and slices know no templates at all (slice_name_is_valid).
        raise wrong("is a template" if kind == "scope" else "slices cannot be templates")
    # A dash leads from slice to slice: a-b.slice lies in a.slice, and "-" alone is the root.
    if kind == "slice" and (stem.startswith("-") or stem.endswith("-") or "--" in stem):
        raise wrong("a slice must not start or end with a dash, nor hold two in a row: each dash is a step down")
    return stem + suffix
