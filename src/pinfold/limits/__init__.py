"""Limits: ceilings for one run, under the names of the kernel's cgroup files."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Self

from pinfold.errors import UsageError
from pinfold.limits import oci, tables, values
from pinfold.limits.cgroup_files import Setting, settings
from pinfold.limits.tables import Hugetlb, IoMax
from pinfold.limits.values import Amount, Rlimit
from pinfold.units import INFINITY

# Per process, and inherited: what setrlimit(2) knows them by.
RLIMITS: Final = {
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "fsize": resource.RLIMIT_FSIZE,
    "core": resource.RLIMIT_CORE,
    "stack": resource.RLIMIT_STACK,
    "as_": resource.RLIMIT_AS,
}
_COUNTED: Final = ("nofile", "nproc")
_NOT_NOTHING: Final = ("memory_max", "memory_high")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Ceilings for a run and all its descendants; None is "not asked for", math.inf is "no limit".

    The fields up to `hugetlb` are the files of cgroup-v2.rst with `_` for `.`, the rest but `requirement` are
    setrlimit(2)'s, per process; `as_` is called "as" wherever that is no keyword. Values are normalised:

    memory_max, memory_high, memory_low, memory_swap_max: bytes; also "64M", "50%" of physical memory, "max". 0 is
        refused for the first two.
    memory_oom_group: whether an out-of-memory kill takes all of the run. Where `memory_max` is asked for and this is
        not, it does: a job half of which was killed is worse than a dead one.
    pids_max: processes and threads; also "10%" of what the system can have.
    cpu_max: CPUs' worth of time (1.5 is 150 % of one); also "150%" and the kernel's "150000 100000", whose second
        number is then `cpu_period_usec`. The period is 100000 where none is said, and is lengthened up to a second
        where the quota would be under the kernel's least, 1 ms, as systemd does.
    cpu_weight, io_weight: shares against its siblings, 1 to 10000; a cgroup starts with 100.
    cpuset_cpus, cpuset_mems: the kernel's list format, "0-3,8"; also a sequence of ints.
    io_max: rates by device, as a mapping or text (`tables.io_max`). Kept as tuples of pairs.
    hugetlb: bytes by the size of the pages, {"2MB": "64M"} or "2MB=64M". Kept as tuples of pairs.
    nofile, nproc: counts. fsize, core, stack, as_: bytes. One number, or soft and hard: "1024:4096", (1024, 4096).
    requirement: whether a run without one of them, where a host cannot keep it, is "required" not to start.

    Raises UsageError, with the field and the value.
    """

    memory_max: Amount | str | None = None
    memory_high: Amount | str | None = None
    memory_low: Amount | str | None = None
    memory_swap_max: Amount | str | None = None
    memory_oom_group: bool | str | None = None
    pids_max: Amount | str | None = None
    cpu_max: Amount | str | None = None
    cpu_period_usec: int | None = None
    cpu_weight: int | str | None = None
    cpuset_cpus: str | Iterable[int] | None = None
    cpuset_mems: str | Iterable[int] | None = None
    io_max: IoMax | Mapping[str, Mapping[str, Amount | str]] | str | Iterable[str] | None = None
    io_weight: int | str | None = None
    hugetlb: Hugetlb | Mapping[str, Amount | str] | str | Iterable[str] | None = None
    nofile: Rlimit | str | None = None
    nproc: Rlimit | str | None = None
    fsize: Rlimit | str | None = None
    core: Rlimit | str | None = None
    stack: Rlimit | str | None = None
    as_: Rlimit | str | None = None
    requirement: Literal["required", "best_effort"] = "required"

    def __post_init__(self) -> None:
        for name in ("memory_max", "memory_high", "memory_low", "memory_swap_max"):
            self._normalise(name, values.memory, least=values.PAGE if name in _NOT_NOTHING else 0)
        self._normalise("memory_oom_group", values.flag)
        self._normalise("pids_max", values.tasks)
        for name in ("cpu_weight", "io_weight"):
            self._normalise(name, values.count, most=10_000)
        for name in ("cpuset_cpus", "cpuset_mems"):
            self._normalise(name, values.index_list)
        self._normalise("io_max", tables.io_max)
        self._normalise("hugetlb", tables.hugetlb)
        for name in RLIMITS:
            self._normalise(name, values.rlimit, counted=name in _COUNTED)
        self._normalise("cpu_period_usec", values.cpu_period)
        self._normalise_cpu_max()
        if self.requirement not in ("required", "best_effort"):
            raise UsageError(f"requirement {values.short(self.requirement)}: must be 'required' or 'best_effort'")

    def _normalise(self, name: str, parse: Any, **options: Any) -> None:
        if (value := getattr(self, name)) is not None:
            object.__setattr__(self, name, parse(value, _public(name), **options))

    def _normalise_cpu_max(self) -> None:
        if self.cpu_max is None:
            if self.cpu_period_usec is not None:
                raise UsageError(f"cpu_period_usec {self.cpu_period_usec}: needs cpu_max")
            return
        number, period = values.cpus(self.cpu_max, "cpu_max")
        if period is not None:
            if self.cpu_period_usec not in (None, period):
                raise UsageError(
                    f"cpu_max {self.cpu_max!r} and cpu_period_usec {self.cpu_period_usec} say two periods; say one"
                )
            object.__setattr__(self, "cpu_period_usec", period)
        object.__setattr__(self, "cpu_max", number)

    @classmethod
    def of(cls, mapping: Mapping[str, Any]) -> Self:
        """Limits from a mapping of the fields' names, and "as", to their values; what `asked` gives comes back so."""
        known = [_public(each.name) for each in fields(cls)]
        if unknown := [str(name) for name in mapping if name != "as_" and name not in known]:
            raise UsageError(f"limits: {', '.join(unknown)} is unknown; known are {', '.join(known)}")
        if "as" in mapping and "as_" in mapping:
            raise UsageError("limits: as and as_ are the same one; give one or the other")
        return cls(**{"as_" if name == "as" else name: value for name, value in mapping.items()})

    @classmethod
    def from_oci(cls, resources: Mapping[str, Any]) -> Self:
        """Limits from `linux.resources` of an OCI runtime configuration (`oci.fields`)."""
        return cls(**oci.fields(resources))

    def to_oci(self) -> dict[str, Any]:
        """`linux.resources` of an OCI runtime configuration (`oci.resources`). The rlimits have no place in it."""
        return oci.resources(self)

    def asked(self) -> dict[str, Any]:
        """Those that were asked for, by name, as JSON can say them: no limit is "max", a soft and hard one a list."""
        found: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None or each.name == "requirement":
                continue
            if each.name == "io_max":
                value = {device: {key: values.plain(rate) for key, rate in rates} for device, rates in value}
            elif each.name == "hugetlb":
                value = {size: values.plain(limit) for size, limit in value}
            found[_public(each.name)] = values.plain(value)
        return found

    def settings(self) -> list[Setting]:
        """The writes to cgroup files that these are, in their order; see `files`."""
        return settings(self)

    def rlimits(self) -> dict[int, tuple[int, int]]:
        """(soft, hard) by RLIMIT_*, as resource.setrlimit() takes them."""
        found = {}
        for name, number in RLIMITS.items():
            if (value := getattr(self, name)) is not None:
                soft, hard = value if isinstance(value, tuple) else (value, value)
                found[number] = (_rlim(soft), _rlim(hard))
        return found


def _public(name: str) -> str:
    return "as" if name == "as_" else name


def _rlim(value: Amount) -> int:
    return resource.RLIM_INFINITY if value == INFINITY else int(value)
