"""Limits: ceilings for one run, under the names of the kernel's cgroup files."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Final

from pinfold import units
from pinfold.errors import Unsupported, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Ceilings for a run and all its descendants; None is "not asked for".

    The fields are the files of cgroup-v2.rst with `_` for `.`. `memory_*` are bytes or text such as "64M",
    `pids_max` a count, `cpu_max` the CPUs' worth of time it may use (1.5 is 150 % of one CPU).
    """

    memory_max: int | None = None
    memory_high: int | None = None
    memory_swap_max: int | None = None
    pids_max: int | None = None
    cpu_max: float | None = None
    cpu_weight: int | None = None

    def __post_init__(self) -> None:
        for name in ("memory_max", "memory_high", "memory_swap_max"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, units.size(value, name))
        for name in ("pids_max", "cpu_weight"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _count(value, name))
        if self.cpu_weight is not None and self.cpu_weight > 10000:
            raise UsageError(f"cpu_weight {self.cpu_weight}: must be at most 10000")
        if self.cpu_max is not None and not (type(self.cpu_max) in (int, float) and 0 < self.cpu_max < 1e6):
            raise UsageError(f"cpu_max {self.cpu_max}: must be a positive number of CPUs")

    def asked(self) -> dict[str, int | float]:
        """Those that were asked for, by name."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}

    def require_none(self) -> None:
        """Refuse what this release cannot enforce yet, rather than run without it."""
        for name, value in self.asked().items():
            raise Unsupported(
                f"limit {name}={value}", "limits are not available yet", "run without it, or wait for the next release"
            )


def _count(value: object, what: str) -> int:
    text = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,18}", text):
        raise UsageError(f"{what} {value!r}: must be a whole number")
    number = int(text)
    if number < 1:
        raise UsageError(f"{what} {number}: must be at least 1")
    return number


def _cpus(value: object, what: str) -> float:
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)%", str(value).strip()):
        return float(match.group(1)) / 100
    raise UsageError(f"{what} {value!r}: expected a percentage of one CPU, such as 150%")


# systemd's names (systemd.resource-control(5)) for `-p NAME=VALUE`.
_PROPERTIES: Final = {
    "MemoryMax": ("memory_max", units.size),
    "MemoryHigh": ("memory_high", units.size),
    "MemorySwapMax": ("memory_swap_max", units.size),
    "TasksMax": ("pids_max", _count),
    "CPUQuota": ("cpu_max", _cpus),
    "CPUWeight": ("cpu_weight", _count),
}


def from_properties(properties: list[str]) -> dict[str, Any]:
    """Limits from `NAME=VALUE` texts in systemd's spelling. The last of a name wins, as in unit files."""
    out: dict[str, Any] = {}
    for text in properties:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"property {text!r}: expected NAME=VALUE")
        if name not in _PROPERTIES:
            raise UsageError(f"property {name!r} is unknown; known are {', '.join(_PROPERTIES)}")
        field, parse = _PROPERTIES[name]
        out[field] = parse(value, name)
    return out
