"""Accounts: which files of a cgroup tell what its processes used, and what they say."""

from __future__ import annotations

from typing import Final

from pinfold.cgroup.files import flat_keyed, nested_keyed, number, stall_usec
from pinfold.result import Pressure, Usage

_ALWAYS: Final = ("cpu.stat", "cpu.pressure", "memory.pressure", "io.pressure")  # PSI: Linux 4.20
_OF_CONTROLLERS: Final = {"memory": "memory.peak", "pids": "pids.peak", "io": "io.stat"}  # 5.19, 6.1, 4.5


def files(controllers: frozenset[str]) -> tuple[str, ...]:
    """The names of the files to read where these controllers are enabled; an older kernel may not have them all."""
    if not controllers:
        return _ALWAYS
    return (*_ALWAYS, *(file for controller, file in _OF_CONTROLLERS.items() if controller in controllers))


def usage(texts: dict[str, str]) -> Usage:
    """What the texts of these files say. Each figure that this kernel or this cgroup does not have is None."""
    cpu, io = flat_keyed(texts.get("cpu.stat", "")), texts.get("io.stat")
    devices = None if io is None else nested_keyed(io).values()
    return Usage(
        cpu.get("usage_usec"),
        cpu.get("user_usec"),
        cpu.get("system_usec"),
        number(texts.get("memory.peak")),
        number(texts.get("pids.peak")),
        None if devices is None else sum(number(device.get("rbytes")) or 0 for device in devices),
        None if devices is None else sum(number(device.get("wbytes")) or 0 for device in devices),
        Pressure(
            stall_usec(texts.get("cpu.pressure"), "some"),
            stall_usec(texts.get("memory.pressure"), "full"),
            stall_usec(texts.get("io.pressure"), "full"),
        ),
    )
