"""Sizes, spans of time and signals: from what people write to numbers, and back.

Sizes follow systemd and the kernel's memparse(): K M G T P E are powers of 1024. Spans follow systemd.time(7) and
timeout(1). Where two conventions read the same text differently, it is refused and both readings are named.
"""

from __future__ import annotations

import signal

from pinfold import late
from pinfold.errors import UsageError
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


INFINITY: Final = float("inf")
_MAX_SECONDS: Final = 1e10  # 317 years; more is a slip of the pen

_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
# Patterns are texts here, as most runs need none of them: `re` takes a millisecond to load.
_SIZE: Final = r"(?a)(\d+(?:\.\d+)?)\s*([KMGTPE]?)(iB)?"
_DECIMAL_SIZE: Final = r"(?a)(\d+(?:\.\d+)?)\s*([kKMGTPE])B"

_SPAN_UNITS: Final = {
    **dict.fromkeys(("us", "usec"), 1e-6),
    **dict.fromkeys(("ms", "msec"), 1e-3),
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 604800.0),
}
_SPAN_PART: Final = r"(?a)\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)"


def size(value: object, what: str = "size") -> int:
    """Bytes from an int or from text such as "64M" or "1.5GiB". Refuses "64MB", which has two readings."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise UsageError(f"{what} {value}: must not be negative")
        if value >= 2**63:
            raise UsageError(f"{what}: more than the kernel can count (2^63 - 1 bytes)")
        return value
    if not isinstance(value, str):
        raise UsageError(f"{what} {value!r}: must be bytes as an int, or text such as '64M'")
    text = value.strip()
    with late.lock:
        import re

    if match := re.fullmatch(_SIZE, text):
        number, unit, binary = match.groups()
        if len(number) > 40:
            raise UsageError(f"{what} {value!r}: more than the kernel can count (2^63 - 1 bytes)")
        if unit or not binary:
            # Exact for integers of any length; a float would round above 2**53.
            scale = int(1024 ** _POWERS[unit])
            result = int(number) * scale if number.isdigit() else int(float(number) * scale)
            if result >= 2**63:
                raise UsageError(f"{what} {value!r}: more than the kernel can count (2^63 - 1 bytes)")
            return result
    if match := re.fullmatch(_DECIMAL_SIZE, text):
        number, unit = match.group(1), match.group(2).upper()
        power = _POWERS[unit]
        if number.isdigit():
            readings = f"{int(number) * 1024**power} bytes ({number}{unit}) or {int(number) * 1000**power} bytes"
        else:
            readings = f"a power of 1024 ({number}{unit}) or of 1000 (say it in bytes)"
        raise UsageError(f"{what} {value!r} has two readings: {readings}; say which")
    raise UsageError(f"{what} {value!r}: expected a number with K, M, G, T, P or E (powers of 1024), such as 64M")


def span(value: object, what: str = "time") -> float:
    """Seconds from a number, a timedelta, or text such as "90", "500ms", "1min 30s". "infinity" is math.inf."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # An int can be larger than any float; it is refused below all the same.
        seconds = (
            (2 * _MAX_SECONDS if value > 0 else -2 * _MAX_SECONDS)
            if _MAX_SECONDS < abs(value) < INFINITY
            else float(value)
        )
    elif isinstance(value, str):
        seconds = _span_of_text(value, what)
    elif hasattr(value, "total_seconds"):  # a timedelta; its module takes longer to import than a run
        seconds = float(value.total_seconds())
    else:
        raise UsageError(f"{what} {value!r}: must be seconds, a timedelta, or text such as '1min 30s'")
    if seconds != seconds:  # noqa: PLR0124  # NaN
        raise UsageError(f"{what} {value!r}: not a number")
    if seconds < 0:
        raise UsageError(f"{what} {value!r}: must not be negative")
    if _MAX_SECONDS < seconds < INFINITY:
        raise UsageError(
            f"{what} {seconds if isinstance(value, int) else value}: longer than 300 years; say 'infinity' for no limit"
        )
    return seconds


def _span_of_text(value: str, what: str) -> float:
    text = value.strip()
    if text in ("infinity", "inf"):
        return INFINITY
    if _is_whole(text):
        return float(text)
    with late.lock:
        import re

    total, at, part = 0.0, 0, re.compile(_SPAN_PART)
    while at < len(text):
        match = part.match(text, at)
        if not match:
            break
        number, unit = match.groups()
        if unit == "M":
            raise UsageError(
                f"{what} {value!r} has two readings: {number} minutes ({number}m) or {number} months; say which"
            )
        if unit not in _SPAN_UNITS:
            raise UsageError(f"{what} {value!r}: unknown unit {unit!r}; known are us ms s m (min) h d w")
        total += min(float(number) * _SPAN_UNITS[unit], 2 * _MAX_SECONDS)
        at = match.end()
    if at < len(text) or not text:
        raise UsageError(f"{what} {value!r}: expected seconds or a span such as '5', '500ms', '1min 30s'")
    return total


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def signal_number(value: object, what: str = "signal") -> int:
    """A signal's number from its number or name, with or without SIG: 15, "15", "TERM", "SIGTERM", "RTMIN+1"."""
    if type(value) is int and 1 <= value < signal.SIGRTMIN:
        return value
    text = str(value).strip().upper()
    if isinstance(value, int) and not isinstance(value, bool):
        number = int(value)
    elif _is_whole(text):
        number = int(text)
    elif "RTMIN+" in text and _is_whole(above := text.removeprefix("SIG").removeprefix("RTMIN+")):
        number = signal.SIGRTMIN + int(above)
    else:
        name = text if text.startswith("SIG") else "SIG" + text
        if name not in signal.Signals.__members__:
            raise UsageError(f"{what} {value!r}: no such signal")
        number = signal.Signals[name].value
    if not 1 <= number <= signal.SIGRTMAX:
        raise UsageError(f"{what} {value!r}: signals are 1 to {int(signal.SIGRTMAX)}")
    return number


def signal_name(number: int) -> str:
    """SIGTERM for 15; SIGRTMIN+3 for those without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number > signal.SIGRTMIN else f"signal {number}"


def readable_size(n: int) -> str:
    """17 B, 4.0 KiB, 1.5 GiB."""
    value, units = float(n), ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    for unit in units:
        if round(value, 1) < 1024 or unit == units[-1]:  # as it will be written: 1023.96 would become 1024.0
            return f"{n} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def readable_span(seconds: float) -> str:
    """0.4 ms, 1.25 s, 2 min 5 s."""
    if seconds == INFINITY:
        return "infinity"
    if round(seconds * 1000, 1) < 1000:  # as it will be written: 999.96 would become 1000.0
        return f"{seconds * 1000:.1f} ms"
    if round(seconds, 2) < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
