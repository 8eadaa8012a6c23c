"""Accounts: which files of a cgroup tell what its processes used, and what they say."""

from __future__ import annotations

from collections.abc import Mapping

from pinfold.cgroup.files import flat_keyed, nested_keyed, number, stall_usec
from pinfold.result import Pressure, Usage
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


_ALWAYS: Final = ("cpu.stat",)
_PRESSURE: Final = ("cpu.pressure", "memory.pressure", "io.pressure")  # Linux 4.20
_OF_CONTROLLERS: Final = {
    "memory": ("memory.peak", "memory.events", "memory.events.local", "memory.swap.peak"),  # 5.19, 4.2, 5.2, 6.5
    "pids": ("pids.peak", "pids.events"),  # 6.1, 4.11
    "io": ("io.stat",),  # 4.5
}
_PARTS: Final = ("anon", "file", "shmem", "kernel")  # of memory.stat; `kernel` since 5.18


def files(controllers: frozenset[str], *, pressure: bool) -> tuple[str, ...]:
    """The names of the files to read where these controllers are enabled; an older kernel may not have them all."""
    always = _ALWAYS + _PRESSURE if pressure else _ALWAYS
    if not controllers:
        return always
    of_controllers = (names for controller, names in _OF_CONTROLLERS.items() if controller in controllers)
    return sum(of_controllers, always)


def usage(texts: Mapping[str, str], parts: Mapping[str, int] | None = None) -> Usage:
    """What the texts of these files say. Each figure that this kernel or this cgroup does not have is None.

    `parts`: of its memory, as `memory_parts` saw them while it ran.
    """
    cpu, io = flat_keyed(texts.get("cpu.stat", "")), texts.get("io.stat")
    devices = None if io is None else nested_keyed(io).values()
    parts = parts or {}
    return Usage(
        cpu_usage_usec=cpu.get("usage_usec"),
        cpu_user_usec=cpu.get("user_usec"),
        cpu_system_usec=cpu.get("system_usec"),
        memory_peak=number(texts.get("memory.peak")),
        pids_peak=number(texts.get("pids.peak")),
        io_rbytes=None if devices is None else sum(number(device.get("rbytes")) or 0 for device in devices),
        io_wbytes=None if devices is None else sum(number(device.get("wbytes")) or 0 for device in devices),
        pressure=Pressure(
            cpu_some_usec=stall_usec(texts.get("cpu.pressure"), "some"),
            memory_full_usec=stall_usec(texts.get("memory.pressure"), "full"),
            io_full_usec=stall_usec(texts.get("io.pressure"), "full"),
            memory_some_usec=stall_usec(texts.get("memory.pressure"), "some"),
            io_some_usec=stall_usec(texts.get("io.pressure"), "some"),
        ),
        memory_swap_peak=number(texts.get("memory.swap.peak")),
        memory_anon=parts.get("anon"),
        memory_file=parts.get("file"),
        memory_shmem=parts.get("shmem"),
        memory_kernel=parts.get("kernel"),
        cpu_throttled_usec=cpu.get("throttled_usec"),
        cpu_throttled_periods=cpu.get("nr_throttled"),
    )


def memory_parts(stat: str) -> dict[str, int]:
    """What memory.stat says of the kinds of memory in use, those it knows."""
    found = flat_keyed(stat)
    return {name: found[name] for name in _PARTS if name in found}
