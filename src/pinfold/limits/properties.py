"""Limits by systemd's names: `-p NAME=VALUE` as systemd-run(1) takes it, and properties for its D-Bus interface.

Values are those of systemd.resource-control(5), systemd.exec(5) and systemd.service(5). Three are refused that systemd
changes instead: a CPUQuota under 0.1% (it gives more), a CPUQuotaPeriodSec outside 1 ms to 1 s (it takes the nearest),
a TasksMax over what the kernel counts (it sets none).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pinfold import units
from pinfold.errors import UsageError
from pinfold.limits import tables, values
from pinfold.limits.values import Amount
from pinfold.units import INFINITY

if TYPE_CHECKING:
    from pinfold.limits import Limits

_INFINITE: Final = 2**64 - 1  # UINT64_MAX, systemd's infinity on the bus
_THOUSANDS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def _word(value: str, name: str) -> None:
    if value == "max":
        raise UsageError(f"{name}={value}: systemd's word for no limit is infinity; say that")


def _memory(value: str, name: str) -> Amount:
    _word(value, name)
    return values.memory(value, name, least=values.PAGE if name in ("MemoryMax", "MemoryHigh") else 0)


def _tasks(value: str, name: str) -> Amount:
    _word(value, name)
    return values.tasks(value, name)


def _quota(value: str, name: str) -> float:
    if values.permyriad(value) is None:
        raise UsageError(f"{name} {value!r}: expected a percentage of one CPU with at most two decimals, such as 150%")
    return values.cpus(value, name)[0]


def _period(value: str, name: str) -> int:
    seconds = units.span(value, name)
    if not 0.001 <= seconds <= 1:
        raise UsageError(f"{name} {value!r}: must be between 1ms and 1s")
    return round(seconds * 1_000_000)


def _weight(value: str, name: str) -> int:
    if name == "CPUWeight" and value == "idle":
        raise UsageError(f"{name}=idle: cpu.idle is not supported; say CPUWeight=1 for the least weight")
    return values.count(value, name, most=10_000)


def _oom_policy(value: str, name: str) -> bool:
    if value == "stop":
        raise UsageError(f"{name}=stop: has systemd stop the unit afterwards, and there is none; say kill or continue")
    if value not in ("kill", "continue"):
        raise UsageError(f"{name} {value!r}: known are kill and continue")
    return value == "kill"


def _bytes_rlimit(value: str, name: str) -> values.Rlimit:
    return values.rlimit(value, name, counted=False)


def _counted_rlimit(value: str, name: str) -> values.Rlimit:
    return values.rlimit(value, name, counted=True)


def _rate(value: str, name: str) -> Amount:
    """A rate of IO: suffixes are powers of 1000 here, and only here (parse_size() of systemd's parse-util.c)."""
    if value == "infinity":
        return INFINITY
    number, unit = (value[:-1], value[-1]) if value[-1:] in _THOUSANDS else (value, "")
    whole, _, fraction = number.partition(".")
    digits = whole + fraction
    if not (digits.isascii() and digits.isdigit() and whole and len(digits) <= 20) or number.endswith("."):
        raise UsageError(f"{name} {value!r}: expected a number with K, M, G, T, P or E (powers of 1000), such as 10M")
    rate = int(digits) * int(1000 ** _THOUSANDS[unit]) // int(10 ** len(fraction))
    if not 0 < rate < 2**63:
        raise UsageError(f"{name} {value!r}: must be at least 1 and below 2^63")
    return rate


# By systemd's name: the field of Limits, and what reads the value.
_SCALARS: Final[dict[str, tuple[str, Callable[[str, str], Any]]]] = {
    "MemoryMax": ("memory_max", _memory),
    "MemoryHigh": ("memory_high", _memory),
    "MemoryLow": ("memory_low", _memory),
    "MemorySwapMax": ("memory_swap_max", _memory),
    "OOMPolicy": ("memory_oom_group", _oom_policy),
    "TasksMax": ("pids_max", _tasks),
    "CPUQuota": ("cpu_max", _quota),
    "CPUQuotaPeriodSec": ("cpu_period_usec", _period),
    "CPUWeight": ("cpu_weight", _weight),
    "AllowedCPUs": ("cpuset_cpus", values.index_list),
    "AllowedMemoryNodes": ("cpuset_mems", values.index_list),
    "IOWeight": ("io_weight", _weight),
    "LimitNOFILE": ("nofile", _counted_rlimit),
    "LimitNPROC": ("nproc", _counted_rlimit),
    "LimitFSIZE": ("fsize", _bytes_rlimit),
    "LimitCORE": ("core", _bytes_rlimit),
    "LimitSTACK": ("stack", _bytes_rlimit),
    "LimitAS": ("as_", _bytes_rlimit),
}
_RATES: Final = {
    "IOReadBandwidthMax": "rbps",
    "IOWriteBandwidthMax": "wbps",
    "IOReadIOPSMax": "riops",
    "IOWriteIOPSMax": "wiops",
}
_KNOWN: Final = (*_SCALARS, *_RATES)


def from_properties(properties: list[str]) -> dict[str, Any]:
    """Fields of Limits from `NAME=VALUE` texts. The last of a name wins, as in unit files.

    An empty value unsets the name. Those of IO are one per device. Raises UsageError, by systemd's name.
    """
    out: dict[str, Any] = {}
    rates: dict[str, dict[str, Amount]] = {name: {} for name in _RATES}
    for text in properties:
        name, equals, value = text.partition("=")
        value = value.strip()
        if not equals:
            raise UsageError(f"property {text!r}: expected NAME=VALUE")
        if name in _RATES:
            if not value:
                rates[name].clear()
                continue
            device, rate = _device_and_rate(value, name)
            rates[name][tables.device_number(device, name)] = _rate(rate, name)
        elif name in _SCALARS:
            field, parse = _SCALARS[name]
            out[field] = parse(value, name) if value else None
        else:
            raise UsageError(f"property {name!r} is unknown{_near(name)}; known are {', '.join(_KNOWN)}")
    table: dict[str, dict[str, Amount]] = {}
    for name, by_device in rates.items():
        for device, amount in by_device.items():
            table.setdefault(device, {})[_RATES[name]] = amount
    return {field: value for field, value in {**out, "io_max": table or None}.items() if value is not None}


def _device_and_rate(value: str, name: str) -> tuple[str, str]:
    words = value.rsplit(None, 1)
    if len(words) != 2:
        raise UsageError(f"{name} {value!r}: expected a device and a rate, such as '/dev/sda 10M'")
    return words[0].strip('"'), words[1]


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, _KNOWN, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def to_properties(limits: Limits) -> list[tuple[str, tuple[str, Any]]]:
    """(name, (D-Bus signature, value)) of each limit asked for, as StartTransientUnit of systemd's manager takes them.

    Left out: rlimits (a scope starts no process), hugetlb (systemd has nothing for it), and memory_oom_group, which
    only newer releases have for scopes (OOMPolicy, seen in 252).
    """
    found: list[tuple[str, tuple[str, Any]]] = []
    for field, name in (
        ("memory_max", "MemoryMax"), ("memory_high", "MemoryHigh"), ("memory_low", "MemoryLow"),
        ("memory_swap_max", "MemorySwapMax"), ("pids_max", "TasksMax"), ("cpu_period_usec", "CPUQuotaPeriodUSec"),
        ("cpu_weight", "CPUWeight"), ("io_weight", "IOWeight"),
    ):  # fmt: skip
        if (value := getattr(limits, field)) is not None:
            found.append((name, ("t", _uint64(value))))
    if limits.cpu_max is not None:
        assert not isinstance(limits.cpu_max, str)
        per_second = _INFINITE if limits.cpu_max == INFINITY else round(limits.cpu_max * 1_000_000)
        found.append(("CPUQuotaPerSecUSec", ("t", per_second)))
    for field, name in (("cpuset_cpus", "AllowedCPUs"), ("cpuset_mems", "AllowedMemoryNodes")):
        if (value := getattr(limits, field)) is not None:
            found.append((name, ("ay", _bitmap(value))))
    io_max = tables.io_max(limits.io_max, "io_max") if limits.io_max is not None else None
    for name, key in _RATES.items():
        rates = [(f"/dev/block/{device}", _uint64(pairs[key])) for device, pairs in _dicts(io_max) if key in pairs]
        if rates:
            found.append((name, ("a(st)", rates)))
    return found


def _dicts(io_max: tables.IoMax | None) -> list[tuple[str, dict[str, Amount]]]:
    return [(device, dict(rates)) for device, rates in io_max or ()]


def _uint64(value: Amount) -> int:
    return _INFINITE if value == INFINITY else int(value)


def _bitmap(text: str) -> bytes:
    """Bit N of byte N // 8 is the CPU N (cpu_set_to_dbus() of systemd's cpu-set-util.c)."""
    numbers = values.indices(text, "")
    return sum(1 << number for number in numbers).to_bytes(max(numbers) // 8 + 1, "little")
