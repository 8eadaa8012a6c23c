"""Limits as `linux.resources` of an OCI runtime configuration (runtime-spec, config-linux.md), both ways.

The specification was written for cgroup v1; conversions to v2 are runc's (libcontainer's fs2). What we do not do is
refused by its key. null, an empty list and an empty object ask for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pinfold.errors import UsageError
from pinfold.limits import cgroup_files, tables, values
from pinfold.limits.values import DEFAULT_PERIOD_USEC, Amount
from pinfold.units import INFINITY

if TYPE_CHECKING:
    from pinfold.limits import Limits

_THROTTLES: Final = {
    "throttleReadBpsDevice": "rbps",
    "throttleWriteBpsDevice": "wbps",
    "throttleReadIOPSDevice": "riops",
    "throttleWriteIOPSDevice": "wiops",
}
_IGNORED: Final = {  # on v2 there is but one hierarchy, and nothing to check in a cgroup that is new
    "memory.useHierarchy": (True, False),
    "memory.checkBeforeUpdate": (True, False),
    "memory.disableOOMKiller": (False,),
    "cpu.burst": (0,),
    "cpu.idle": (0,),
}
_UNIFIED: Final = {
    "memory.max": "memory_max", "memory.high": "memory_high", "memory.low": "memory_low",
    "memory.swap.max": "memory_swap_max", "memory.oom.group": "memory_oom_group", "pids.max": "pids_max",
    "cpu.max": "cpu_max", "cpu.weight": "cpu_weight", "cpuset.cpus": "cpuset_cpus", "cpuset.mems": "cpuset_mems",
    "io.weight": "io_weight", "io.max": "io_max",
}  # fmt: skip


def fields(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Limits from `linux.resources`. Raises UsageError with the key.

    `unified` overrides the others, as in runc. cpu.shares becomes a weight by the linear formula,
    1 + (shares - 2) * 9999 / 262142; runc (since 1.3.2) and crun changed to a curve in 2025, by
    which 1024 shares are a weight of 100 instead of 39. blockIO.weight becomes 1 + (weight - 10) * 9999 / 990.
    """
    parts = _object(resources, "", ("memory", "cpu", "pids", "blockIO", "hugepageLimits", "unified"))
    found = {
        **_memory(_object(parts.get("memory"), "memory", ("limit", "reservation", "swap"))),
        **_cpu(_object(parts.get("cpu"), "cpu", ("shares", "quota", "period", "cpus", "mems"))),
        **_pids(_object(parts.get("pids"), "pids", ("limit",))),
        **_block_io(_object(parts.get("blockIO"), "blockIO", ("weight", *_THROTTLES))),
        **_hugepages(parts.get("hugepageLimits")),
    }
    for file, text in _object(parts.get("unified"), "unified", None).items():
        _unified(file, text, found)
    return found


def _object(value: Any, key: str, known: tuple[str, ...] | None) -> dict[str, Any]:
    """The members of a JSON object that ask for something. `known`: the names it may have; None: any."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"linux.resources: {key or 'it'} is {values.short(value)}: must be an object")
    found = {}
    for name, member in value.items():
        full = f"{key}.{name}" if key else str(name)
        if member is None or (isinstance(member, (Mapping, list, tuple)) and not member):
            continue
        if any(member is each or (type(member) is int and member == each) for each in _IGNORED.get(full, ())):
            continue
        if known is not None and name not in known:
            raise UsageError(f"linux.resources: {full} is no limit of ours; take it out, or use a runtime that has it")
        found[str(name)] = member
    return found


def _whole(value: object, key: str, *, least: int = 0, none: bool = False) -> Amount:
    """An int of at least that; with `none`, -1 is no limit."""
    if none and value == -1 and type(value) is int:
        return INFINITY
    if type(value) is not int or not least <= value < 2**63:
        words = f"a whole number from {least}" + (", or -1 for no limit" if none else "")
        raise UsageError(f"linux.resources: {key} {values.short(value)}: must be {words}")
    return value


def _memory(memory: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "limit" in memory:
        found["memory_max"] = _whole(memory["limit"], "memory.limit", none=True)
    if "reservation" in memory:
        found["memory_low"] = _whole(memory["reservation"], "memory.reservation", none=True)
    if "swap" in memory:
        both, limit = _whole(memory["swap"], "memory.swap", none=True), found.get("memory_max", INFINITY)
        if both != INFINITY and limit == INFINITY:
            raise UsageError(f"linux.resources: memory.swap {both} is memory and swap: it needs a memory.limit")
        if both < limit:
            raise UsageError(f"linux.resources: memory.swap {both} is memory and swap: less than memory.limit {limit}")
        found["memory_swap_max"] = both if both == INFINITY else both - limit
    return found


def _cpu(cpu: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "shares" in cpu:
        shares = _whole(cpu["shares"], "cpu.shares", least=2)
        # cgroup v1 takes more and keeps 262144, its MAX_SHARES (kernel/sched/sched.h)
        found["cpu_weight"] = int(1 + (min(shares, 262_144) - 2) * 9_999 // 262_142)
    if "period" in cpu:
        found["cpu_period_usec"] = values.cpu_period(cpu["period"], "linux.resources: cpu.period")
        found["cpu_max"] = INFINITY  # "max PERIOD", where there is no quota
    if "quota" in cpu:
        quota = _whole(cpu["quota"], "cpu.quota", least=values.MIN_QUOTA_USEC, none=True)
        found["cpu_max"] = quota / found.get("cpu_period_usec", DEFAULT_PERIOD_USEC)
    for key, field in (("cpus", "cpuset_cpus"), ("mems", "cpuset_mems")):
        if cpu.get(key, "") != "":  # its default, "any"
            found[field] = values.index_list(cpu[key], f"linux.resources: cpu.{key}")
    return found


def _pids(pids: dict[str, Any]) -> dict[str, Any]:
    # 0 is the old runtimes' unset, the kernel's "no fork at all", and 1 to systemd.
    return {"pids_max": _whole(pids["limit"], "pids.limit", least=1, none=True)} if "limit" in pids else {}


def _block_io(block_io: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "weight" in block_io:
        weight = values.count(block_io["weight"], "linux.resources: blockIO.weight", least=10, most=1_000)
        found["io_weight"] = 1 + (weight - 10) * 9_999 // 990
    table: dict[str, dict[str, Amount]] = {}
    for key, rate in _THROTTLES.items():
        for each in _list(block_io.get(key), f"blockIO.{key}"):
            entry = _object(each, f"blockIO.{key}", ("major", "minor", "rate"))
            major, minor, value = (
                _whole(entry.get(name), f"blockIO.{key}.{name}") for name in ("major", "minor", "rate")
            )
            if value:  # 0 was v1's way to take a limit away
                table.setdefault(f"{major}:{minor}", {})[rate] = value
    return {**found, "io_max": table} if table else found


def _list(value: Any, key: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"linux.resources: {key} {values.short(value)}: must be a list")
    return value


def _hugepages(limits: Any) -> dict[str, Any]:
    table = {}
    for each in _list(limits, "hugepageLimits"):
        entry = _object(each, "hugepageLimits", ("pageSize", "limit"))
        size = entry.get("pageSize")
        tables.huge_page(size, "linux.resources: hugepageLimits.pageSize")
        table[size] = _whole(entry.get("limit"), "hugepageLimits.limit")
    return {"hugetlb": table} if table else {}


def _unified(file: str, text: Any, found: dict[str, Any]) -> None:
    """One file of the kernel's and the text for it, into the fields."""
    if not isinstance(text, str):
        raise UsageError(f"linux.resources: unified {file} {values.short(text)}: must be text")
    value: Any = text.strip()
    if "%" in value:
        raise UsageError(f"linux.resources: unified {file} {values.short(text)}: the kernel takes no percentage")
    if file.startswith("hugetlb.") and file.endswith(".max") and file.count(".") == 2:
        size = file.split(".")[1]
        tables.huge_page(size, f"linux.resources: unified {file}")
        found["hugetlb"] = {**found.get("hugetlb", {}), size: value}
        return
    if file not in _UNIFIED:
        raise UsageError(f"linux.resources: unified {file} is no limit of ours; known are {', '.join(_UNIFIED)}")
    if file == "cpu.max":
        found.pop("cpu_period_usec", None)
        value = value if " " in value else f"{value} {DEFAULT_PERIOD_USEC}"
    elif file == "io.weight":
        value = value.removeprefix("default ")
    elif file == "io.max":
        value = value.splitlines()
    found[_UNIFIED[file]] = value


def resources(limits: Limits) -> dict[str, Any]:
    """`linux.resources` of what was asked for.

    What it has no exact words for goes to `unified`, in the kernel's: memory.high, memory.oom.group, the weights (whose
    conversion differs from runtime to runtime), swap without a limit of memory. Rates of "max" are left out: a new
    cgroup has them. So are the rlimits, which an OCI configuration has in `process`.
    """
    found: dict[str, dict[str, Any]] = {"memory": {}, "cpu": {}, "pids": {}, "blockIO": {}}
    texts: dict[str, str] = {
        setting.file: setting.text for setting in cgroup_files.settings(limits) if setting.limit != "io_max"
    }
    unified: dict[str, str] = {
        file: texts[file] for file in ("memory.high", "cpu.weight", "io.weight") if file in texts
    }
    if limits.memory_oom_group is not None:
        unified["memory.oom.group"] = texts["memory.oom.group"]
    limit, swap = limits.memory_max, limits.memory_swap_max
    _put(found["memory"], "limit", limit)
    _put(found["memory"], "reservation", limits.memory_low)
    if isinstance(swap, int) and not isinstance(limit, int):
        unified["memory.swap.max"] = texts["memory.swap.max"]
    elif isinstance(swap, int) and isinstance(limit, int):
        found["memory"]["swap"] = swap + limit
    else:
        _put(found["memory"], "swap", swap)
    if "cpu.max" in texts:
        quota, period = texts["cpu.max"].split()
        found["cpu"]["quota"] = -1 if quota == "max" else int(quota)
        if limits.cpu_period_usec is not None or int(period) != DEFAULT_PERIOD_USEC:
            found["cpu"]["period"] = int(period)
    found["cpu"].update({key: texts[f"cpuset.{key}"] for key in ("cpus", "mems") if f"cpuset.{key}" in texts})
    _put(found["pids"], "limit", limits.pids_max)
    found["blockIO"].update(_throttles(limits))
    hugepages = []
    for size, most in tables.hugetlb(limits.hugetlb, "hugetlb") or () if limits.hugetlb is not None else ():
        if most == INFINITY:
            unified[f"hugetlb.{size}.max"] = "max"
        else:
            hugepages.append({"pageSize": size, "limit": most})
    whole: dict[str, Any] = {**found, "hugepageLimits": hugepages, "unified": unified}
    return {key: part for key, part in whole.items() if part}


def _put(part: dict[str, Any], key: str, value: Any) -> None:
    if value is not None:
        part[key] = -1 if value == INFINITY else value


def _throttles(limits: Limits) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for device, rates in tables.io_max(limits.io_max, "io_max") or () if limits.io_max is not None else ():
        major, minor = (int(part) for part in device.split(":"))
        for key, name in _THROTTLES.items():
            if (rate := dict(rates).get(name, INFINITY)) != INFINITY:
                found.setdefault(key, []).append({"major": major, "minor": minor, "rate": rate})
    return found
