"""The cgroup files of limits: what to write, what a file says, and whether the kernel took it.

Every controller has the same three: writes, read, agrees. Formats are cgroup-v2.rst's; each file is there since the
release in its comment, and says the same in 5.15, 6.1, 6.6 and 6.12.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pinfold.errors import UsageError
from pinfold.limits import tables, values
from pinfold.limits.values import DEFAULT_PERIOD_USEC, MAX_PERIOD_USEC, MIN_QUOTA_USEC, PAGE, Amount
from pinfold.units import INFINITY

if TYPE_CHECKING:
    from pinfold.limits import Limits

_NUMBER: Final = re.compile(r"[0-9]{1,20}")
_UINT_MAX: Final = 2**32 - 1
# PAGE_COUNTER_MAX of include/linux/page_counter.h, 64-bit: the most pages, which reads back as "max".
_MOST_PAGES: Final = (2**63 - 1) // PAGE


class Setting(NamedTuple):
    """One write to one cgroup file: `text` to `file` of `controller`, for the field `limit` of Limits."""

    limit: str
    controller: str
    file: str
    text: str

    def read(self, text: str) -> Any:
        """What the file's text says, in the units of `Limits.asked`; None if it says nothing of this setting.

        Of a table it is the one entry this is about, {"8:0": {…}} or {"2MB": …}: merge them.
        """
        return _KINDS[self.limit].read(self, text)

    def agrees(self, text: str) -> bool:
        """Whether the file's text is what the kernel says after it took this write, which it may have rounded."""
        return _KINDS[self.limit].agrees(self, text)


def settings(limits: Limits) -> list[Setting]:
    """All writes that the limits are, a controller's together; protection comes before pressure, pressure before kills.

    Setting memory_max brings memory_oom_group along, unless that one is asked for too.
    """
    return [setting for writes in (_memory, _pids, _cpu, _cpuset, _io, _hugetlb) for setting in writes(limits)]


def cpu_max_text(cpus: float, period_usec: int | None) -> str:
    """What to write to cpu.max: quota and period, in microseconds.

    The period grows where the quota would be under 1 ms (cgroup_cpu_adjust_period() of systemd's cgroup.c).
    """
    period = period_usec or DEFAULT_PERIOD_USEC
    if cpus == INFINITY:
        return f"max {period}"
    if _quota(cpus, period) < MIN_QUOTA_USEC:
        least = MIN_QUOTA_USEC * 1_000_000 // round(cpus * 1_000_000)
        period = min(max(period, least), MAX_PERIOD_USEC)
    return f"{max(_quota(cpus, period), MIN_QUOTA_USEC)} {period}"


def _quota(cpus: float, period: int) -> int:
    return math.floor(round(cpus * period, 4))  # rounded first: 0.29 * 100000 is a hair under 29000 as a float


# ---- memory: all since Linux 4.5, memory.oom.group since 4.19 ----


def _memory(limits: Limits) -> Iterator[Setting]:
    for limit in ("memory_low", "memory_high", "memory_max", "memory_swap_max"):
        yield from _one(limits, limit, "memory")
    if limits.memory_oom_group is not None or limits.memory_max not in (None, INFINITY):
        text = "0" if limits.memory_oom_group is False else "1"
        yield Setting("memory_oom_group", "memory", "memory.oom.group", text)


def _agrees_in_pages(setting: Setting, text: str) -> bool:
    """page_counter_memparse() rounds down to pages, and keeps no more than _MOST_PAGES."""
    if setting.text == "max" or int(setting.text) // PAGE >= _MOST_PAGES:
        return text.strip() == "max"
    return _amount(text) == int(setting.text) // PAGE * PAGE


def _read_flag(_: Setting, text: str) -> bool | None:
    return {"0": False, "1": True}.get(text.strip())


# ---- pids: since Linux 4.3 ----


def _pids(limits: Limits) -> Iterator[Setting]:
    yield from _one(limits, "pids_max", "pids")


# ---- cpu: cpu.max and cpu.weight since Linux 4.15 ----


def _cpu(limits: Limits) -> Iterator[Setting]:
    yield from _one(limits, "cpu_weight", "cpu")
    if limits.cpu_max is not None:
        assert not isinstance(limits.cpu_max, str)
        yield Setting("cpu_max", "cpu", "cpu.max", cpu_max_text(limits.cpu_max, limits.cpu_period_usec))


def _read_cpu_max(_: Setting, text: str) -> float | str | None:
    quota, _blank, period = text.strip().partition(" ")
    if not _NUMBER.fullmatch(period) or int(period) == 0:
        return None
    if quota == "max":
        return "max"
    return int(quota) / int(period) if _NUMBER.fullmatch(quota) else None


# ---- cpuset: since Linux 5.0 ----


def _cpuset(limits: Limits) -> Iterator[Setting]:
    for limit in ("cpuset_mems", "cpuset_cpus"):
        yield from _one(limits, limit, "cpuset")


def _read_list(_: Setting, text: str) -> str | None:
    if not text.strip():
        return ""  # nothing of its own: the parent's
    try:
        return values.index_list(text, "")
    except UsageError:
        return None


def _agrees_as_list(setting: Setting, text: str) -> bool:
    return _read_list(setting, text) == _read_list(setting, setting.text)


# ---- io: io.max since Linux 4.5, io.weight with BFQ or iocost only ----


def _io(limits: Limits) -> Iterator[Setting]:
    if limits.io_weight is not None:
        yield Setting("io_weight", "io", "io.weight", f"default {limits.io_weight}")
    for device, rates in tables.io_max(limits.io_max, "io_max") or () if limits.io_max is not None else ():
        line = " ".join(f"{key}={values.plain(rate)}" for key, rate in rates)
        yield Setting("io_max", "io", "io.max", f"{device} {line}")


def _read_io_weight(_: Setting, text: str) -> int | None:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "default" and _NUMBER.fullmatch(words[1]):
            return int(words[1])
    return None


def _rates(text: str, device: str) -> dict[str, Any] | None:
    """Those of that device's line in io.max. The kernel leaves out a device without limits."""
    for line in text.splitlines():
        number, *pairs = line.split()[:5] if line.strip() else [""]
        if number == device:
            found = {key: _amount(rate) for key, _, rate in (pair.partition("=") for pair in pairs)}
            return None if None in found.values() or not found else found
    return None


def _read_io_max(setting: Setting, text: str) -> dict[str, Any] | None:
    device = setting.text.split()[0]
    found = _rates(text, device)
    return None if found is None else {device: found}


def _agrees_in_rates(setting: Setting, text: str) -> bool:
    device = setting.text.split()[0]
    asked = {key: _as_kept(key, rate) for key, rate in (_rates(setting.text, device) or {}).items()}
    if device not in [line.split()[0] for line in text.splitlines() if line.strip()]:
        return all(rate == "max" for rate in asked.values())
    found = _rates(text, device) or {}
    return all(found.get(key) == rate for key, rate in asked.items())


def _as_kept(key: str, rate: Any) -> Any:
    """Operations are kept in 32 bits, all of which are "max" (tg_set_limit() of block/blk-throttle.c)."""
    return "max" if key in ("riops", "wiops") and rate != "max" and rate >= _UINT_MAX else rate


# ---- hugetlb: since Linux 5.6 ----


def _hugetlb(limits: Limits) -> Iterator[Setting]:
    for size, limit in tables.hugetlb(limits.hugetlb, "hugetlb") or () if limits.hugetlb is not None else ():
        yield Setting("hugetlb", "hugetlb", f"hugetlb.{size}.max", str(values.plain(limit)))


def _page_size(setting: Setting) -> str:
    return setting.file.split(".")[1]


def _read_hugetlb(setting: Setting, text: str) -> dict[str, Amount | str] | None:
    found = _amount(text)
    return None if found is None else {_page_size(setting): found}


def _agrees_in_huge_pages(setting: Setting, text: str) -> bool:
    """hugetlb_cgroup_write() rounds down to huge pages; the most of those reads back as "max"."""
    page = tables.huge_page(_page_size(setting))
    most = _MOST_PAGES * PAGE // page * page
    if setting.text == "max" or int(setting.text) // page * page >= most:
        return text.strip() == "max"
    return _amount(text) == int(setting.text) // page * page


# ---- all of them ----


def _one(limits: Limits, limit: str, controller: str) -> Iterator[Setting]:
    """The write of a limit that is one value in the file of its name."""
    if (value := getattr(limits, limit)) is not None:
        yield Setting(limit, controller, limit.replace("_", "."), str(values.plain(value)))


def _amount(text: str) -> int | str | None:
    word = text.strip()
    if word == "max":
        return "max"
    return int(word) if _NUMBER.fullmatch(word) else None


def _read_amount(_: Setting, text: str) -> int | str | None:
    return _amount(text)


def _exact(setting: Setting, text: str) -> bool:
    return text.split() == setting.text.split()


def _agrees_in_weight(setting: Setting, text: str) -> bool:
    return _read_io_weight(setting, text) == _read_io_weight(setting, setting.text)


class _Kind(NamedTuple):
    read: Callable[[Setting, str], Any]
    agrees: Callable[[Setting, str], bool]


_KINDS: Final = {
    **dict.fromkeys(
        ("memory_low", "memory_high", "memory_max", "memory_swap_max"), _Kind(_read_amount, _agrees_in_pages)
    ),
    "memory_oom_group": _Kind(_read_flag, _exact),
    "pids_max": _Kind(_read_amount, _exact),
    "cpu_weight": _Kind(_read_amount, _exact),
    "cpu_max": _Kind(_read_cpu_max, _exact),
    **dict.fromkeys(("cpuset_cpus", "cpuset_mems"), _Kind(_read_list, _agrees_as_list)),
    "io_weight": _Kind(_read_io_weight, _agrees_in_weight),
    "io_max": _Kind(_read_io_max, _agrees_in_rates),
    "hugetlb": _Kind(_read_hugetlb, _agrees_in_huge_pages),
}
