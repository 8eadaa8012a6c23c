"""Each controller: whether a limit that takes it could be kept by the backend in use, or where it stops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pinfold.cgroup import delegation
from pinfold.cgroup.controllers import available, bound_to_v1, given, holds_processes, is_root, missing
from pinfold.cgroup.places import Place, ancestors
from pinfold.cli.checks import Check

CONTROLLERS: Final = ("cpu", "memory", "pids", "io", "cpuset", "hugetlb")
# What is not to be had without it.
_WITHOUT: Final = {
    "cpu": "no limit; times are known all the same",
    "memory": "no limit, and nothing is measured",
    "pids": "no limit, and nothing is measured",
    "io": "no limit, and nothing is measured",
}


def controllers(place: Place) -> Iterator[Check]:
    """Those of the runs in `place`, which a backend has made."""
    for name in CONTROLLERS:
        found = standing(name, place)
        if found is not None:
            yield Check(f"controller {name}", True, found)
        else:
            why, fix = missing(name, place)
            yield Check(f"controller {name}", False, f"{why} ({_WITHOUT.get(name, 'no limit')})", fix=fix)


def standing(controller: str, place: Place) -> str | None:
    """How runs in `place` come to a controller; None: they do not."""
    if controller in given(place.directory):
        return "runs have it"
    if controller in available(place.directory):
        return "runs are given it when a limit asks for it"
    parent = next(ancestors(place), None)
    if parent is None or controller not in available(parent.directory):
        return None
    if is_root(parent.directory) or not holds_processes(parent.directory):
        return "runs are given it when a limit asks for it"
    if delegation.is_delegated(parent):
        return f"runs are given it when a limit asks for it, and `pinfold run` moves what is in {parent.path} to a leaf"
    return None


def version_1() -> Iterator[Check]:
    """What cgroup v1 holds back from v2."""
    bound = bound_to_v1()
    if bound:
        yield Check("cgroup v1", False, f"holds {' '.join(bound)}", fix="boot with cgroup_no_v1=all")
    else:
        yield Check("cgroup v1", True, "holds no controller")
