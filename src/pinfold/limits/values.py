"""The values of limits: from what people write to numbers, one function per kind. math.inf is "no limit"."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pinfold import units
from pinfold.errors import UsageError
from pinfold.units import INFINITY

Amount = int | float  # a whole number, or INFINITY
Rlimit = Amount | tuple[Amount, Amount]  # one for both, or soft and hard

PAGE: Final = os.sysconf("SC_PAGESIZE")
DEFAULT_PERIOD_USEC: Final = 100_000
# cgroup v2's bounds of a period and least quota (kernel/sched/core.c, max_cfs_quota_period, min_cfs_quota_period).
MIN_PERIOD_USEC: Final = 1_000
MIN_QUOTA_USEC: Final = 1_000
MAX_PERIOD_USEC: Final = 1_000_000
_MIN_CPUS: Final = MIN_QUOTA_USEC / MAX_PERIOD_USEC
_MAX_CPUS: Final = 1e6
# PID_MAX_LIMIT of 64-bit kernels; pids.max refuses more (kernel/cgroup/pids.c, Linux 4.3).
_MAX_PIDS: Final = 4_194_304
# More than any kernel is built for (NR_CPUS is at most 8192); "0-999999999999" must not become a set of so many.
_MAX_INDEX: Final = 65_535
_UINT32_MAX: Final = 2**32 - 1

_NO_LIMIT: Final = ("max", "infinity")  # the kernel's word and systemd's
_WHOLE: Final = re.compile(r"[0-9]{1,18}")
_PERCENT: Final = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,2}))?%")
_DECIMAL: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")
_QUOTA_AND_PERIOD: Final = re.compile(r"([0-9]{1,15}|max) +([0-9]{1,15})")
_FLAGS: Final = {**dict.fromkeys(("yes", "true", "on", "1"), True), **dict.fromkeys(("no", "false", "off", "0"), False)}


def _unlimited(value: object) -> bool:
    return (isinstance(value, float) and value == INFINITY) or (isinstance(value, str) and value.strip() in _NO_LIMIT)


def permyriad(text: str) -> int | None:
    """Hundredths of a percent in "12.5%" (1250); None if it is no percentage of at most two decimals."""
    match = _PERCENT.fullmatch(text.strip())
    return int(match[1]) * 100 + int((match[2] or "").ljust(2, "0")) if match else None


def _share(text: str, whole: int, what: str) -> int | None:
    """That percentage of a whole, rounded as systemd does (physical_memory_scale() in limits-util.c); None: no %."""
    if "%" not in text:
        return None
    hundredths = permyriad(text)
    if hundredths is None or hundredths > 10_000:
        raise UsageError(f"{what} {text!r}: expected a percentage up to 100% with at most two decimals, such as 12.5%")
    scale = (hundredths * _UINT32_MAX + 5_000) // 10_000
    return whole * scale // _UINT32_MAX


def memory(value: object, what: str, *, least: int = 0) -> Amount:
    """Bytes of memory from an int, "64M", "50%" of physical memory, "max" or "infinity"."""
    if _unlimited(value):
        return INFINITY
    if isinstance(value, str) and "%" in value:
        pages = _share(value, os.sysconf("SC_PHYS_PAGES"), what)
        assert pages is not None
        number = pages * PAGE
    else:
        number = units.size(value, what)
    if number < least:
        # The kernel counts in pages and rounds down: what is less than one is 0, and kills or stops all at once.
        raise UsageError(
            f"{what} {short(value)}: less than a page ({least} bytes) lets nothing run; say more, or 'max'"
        )
    return number


def count(value: object, what: str, *, least: int = 1, most: int = 2**63 - 1) -> int:
    """A whole number from an int or digits."""
    number = value if type(value) is int else None
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        number = int(value)
    if number is None:
        raise UsageError(f"{what} {short(value)}: must be a whole number")
    if not least <= number <= most:
        raise UsageError(f"{what} {short(number)}: must be between {least} and {most}")
    return number


def short(value: object) -> str:
    """A value as an error message shows it: cut, and whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # an int of more than 4300 digits somewhere in it
        text = f"(a huge {type(value).__name__})"
    return text if len(text) <= 80 else text[:77] + "..."


def tasks(value: object, what: str) -> Amount:
    """Processes and threads from an int, "100", "10%" of what the system can have, "max" or "infinity"."""
    if _unlimited(value):
        return INFINITY
    if isinstance(value, str) and (share := _share(value, _system_tasks(), what) if "%" in value else None) is not None:
        value = share
    return count(value, what, most=_MAX_PIDS)


def _system_tasks() -> int:
    """The most tasks of this system: kernel.threads-max, or kernel.pid_max less one (pid 0 is nobody's).

    systemd's system_tasks_max() also asks the root cgroup's pids.max, which only a container with a cgroup namespace
    has; there systemd itself is in the container too.
    """
    with open("/proc/sys/kernel/threads-max", encoding="utf-8") as file:
        threads = int(file.read())
    with open("/proc/sys/kernel/pid_max", encoding="utf-8") as file:
        return min(threads, int(file.read()) - 1)


def cpus(value: object, what: str) -> tuple[float, int | None]:
    """CPUs' worth of time, and the period in microseconds where the text says one ("150000 100000", cpu.max's own)."""
    if _unlimited(value):
        return INFINITY, None
    number, period = math.nan, None
    if isinstance(value, str):
        text = value.strip()
        if match := _QUOTA_AND_PERIOD.fullmatch(text):
            period = cpu_period(match[2], f"{what} {value!r}: the period")
            number = INFINITY if match[1] == "max" else int(match[1]) / period
        elif (hundredths := permyriad(text)) is not None:
            number = hundredths / 10_000
        elif _DECIMAL.fullmatch(text):
            number = float(text)
    elif type(value) in (int, float):
        number = float(min(value, 2 * _MAX_CPUS))  # type: ignore[call-overload]  # an int can exceed any float
    if math.isnan(number):
        raise UsageError(f"{what} {short(value)}: expected a number of CPUs, such as 1.5, '150%' or 'max'")
    if not _MIN_CPUS <= number < _MAX_CPUS and number != INFINITY:
        raise UsageError(f"{what} {short(value)}: must be at least {_MIN_CPUS} CPUs (1 ms in a second) and below 1e6")
    return number, period


def cpu_period(value: object, what: str) -> int:
    """Microseconds of a period of cpu.max."""
    return count(value, what, least=MIN_PERIOD_USEC, most=MAX_PERIOD_USEC)


def flag(value: object, what: str) -> bool:
    """A bool from one, or from yes/no, true/false, on/off, 1/0."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and (known := _FLAGS.get(value.strip().lower())) is not None:
        return known
    raise UsageError(f"{what} {short(value)}: must be True or False, or yes/no, true/false, on/off, 1/0 as text")


def index_list(value: object, what: str) -> str:
    """CPUs or memory nodes in the kernel's list format, sorted ("0-3,8"), from such text or from ints."""
    return as_list(indices(value, what))


def indices(value: object, what: str) -> set[int]:
    """The numbers in "0-3,8", "0 1 2", or a sequence of ints; never empty."""
    numbers: set[int] = set()
    if isinstance(value, str):
        for part in value.replace(",", " ").split():
            first, dash, last = part.partition("-")
            if not (_WHOLE.fullmatch(first) and (_WHOLE.fullmatch(last) or not dash)):
                raise UsageError(f"{what} {short(value)}: expected numbers and ranges, such as '0-3,8'")
            low, high = int(first), int(last if dash else first)
            if low > high:
                raise UsageError(f"{what} {short(value)}: the range {part} is reversed; say {last}-{first}")
            if high > _MAX_INDEX:
                raise UsageError(f"{what} {short(value)}: {high} is more than any kernel has ({_MAX_INDEX} at most)")
            numbers.update(range(low, high + 1))
    elif isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, Mapping)):
        for number in value:
            numbers.add(count(number, what, least=0, most=_MAX_INDEX))
    else:
        raise UsageError(f"{what} {short(value)}: must be text such as '0-3,8', or a sequence of ints")
    if not numbers:
        raise UsageError(f"{what} {short(value)}: is empty; name at least one, or leave it out")
    return numbers


def as_list(numbers: Iterable[int]) -> str:
    """The kernel's list format of them (bitmap_print_list), sorted: "0-3,8"."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in ranges)


def rlimit(value: object, what: str, *, counted: bool) -> Rlimit:
    """One number for both limits, or (soft, hard), from ints, "1024", "1024:4096", "64M", "infinity" or a pair.

    `counted`: a count, which takes no suffixes; else bytes.
    """
    pair: Any = value
    if isinstance(value, str) and ":" in value:
        pair = value.split(":")
    if isinstance(pair, (list, tuple)):
        if len(pair) != 2:
            raise UsageError(f"{what} {short(value)}: expected one value, or a soft and a hard one")
        soft, hard = (_one_rlimit(each, what, counted=counted) for each in pair)
        if soft > hard:
            raise UsageError(f"{what} {short(value)}: the soft limit is above the hard one; swap them?")
        return soft if soft == hard else (soft, hard)
    return _one_rlimit(value, what, counted=counted)


def _one_rlimit(value: object, what: str, *, counted: bool) -> Amount:
    if _unlimited(value):
        return INFINITY
    # 2^63 - 1 and more is RLIM_INFINITY to setrlimit(2) of some C libraries: it is "infinity", and has a word.
    return count(value, what, least=0, most=2**63 - 2) if counted else units.size(value, what)


def plain(value: Any) -> Any:
    """The JSON-able form of a value: "max" for no limit, lists and dicts for the tuples that a Limits keeps."""
    if value == INFINITY:
        return "max"
    return [plain(each) for each in value] if isinstance(value, tuple) else value
