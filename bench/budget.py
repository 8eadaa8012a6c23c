"""Where the time of one run goes: what the kernel takes, what Python takes. Differences between medians of one case."""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.cases import latency

Data = dict[str, Any]


class Budget(NamedTuple):
    """One case's time by parts, in seconds."""

    title: str
    bare: float  # start, exec, end and wait in C
    cgroup: float  # what a fresh cgroup adds to that
    rest: float  # what pinfold adds to both
    whole: float
    standard: float  # what the standard library adds to `bare`


def budgets(data: Data) -> list[Budget]:
    """Those of the cases that have a C floor."""
    found = []
    for case in data["cases"]:
        times = case["quantities"].get("time", {})
        ours = next((name for name in times if name in {latency.OURS, latency.OURS_READ}), None)
        if ours is None or latency.FRESH not in times:
            continue
        bare, fresh, whole, standard = (
            times[name]["median"] for name in (latency.BARE, latency.FRESH, ours, case["reference"])
        )
        found.append(Budget(case["title"], bare, fresh - bare, whole - fresh, whole, standard - bare))
    return found


def rows(found: list[Budget]) -> list[list[str]]:
    """As the rows of a table, a column for each case."""
    parts = {
        "the kernel: start, exec, end, wait (C floor, no cgroup)": [f"{of.bare * 1e6:.0f}" for of in found],
        "the kernel: a fresh cgroup, from mkdir to rmdir (C floor)": [f"{of.cgroup * 1e6:+.0f}" for of in found],
        "pinfold and Python: all the rest": [f"{of.rest * 1e6:+.0f}" for of in found],
        "`pinfold.run`": [f"{of.whole * 1e6:.0f}" for of in found],
        "beside it: `subprocess` and Python, above the C floor without a cgroup": [
            f"{of.standard * 1e6:+.0f}" for of in found
        ],
    }
    return [[part, *cells] for part, cells in parts.items()]
