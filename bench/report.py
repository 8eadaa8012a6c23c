"""What was found, as data that JSON can hold; and that as text and as Markdown. Pure, but for what the host is."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pinfold
from bench import budget, ground
from bench.ratios import estimate, p90, ratio, verdict
from bench.words import UNITS, Case, Measured

SCHEMA = 1
BEGIN, END = "<!-- figures: begin (python -m bench --markdown FILE) -->", "<!-- figures: end -->"

Data = dict[str, Any]


def head(rounds: int, backend: str | None = None) -> Data:
    """What the figures were taken of and on."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], check=False, capture_output=True, text=True, cwd=ground.ROOT
    )
    return {
        "schema": SCHEMA,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "pinfold": pinfold.__version__,
        "commit": commit.stdout.strip() or None,
        "backend": backend,
        "rounds": rounds,
        "host": {
            "python": platform.python_version(),
            "kernel": os.uname().release,
            "machine": os.uname().machine,
            "cpus": os.cpu_count(),
            "uid": os.geteuid(),
            "load": os.getloadavg()[0],
        },
        "cases": [],
    }


def case(what: Case, found: Measured, seconds: float, waited: float) -> Data:
    """One case. `waited`: for how long some process was waiting for a CPU meanwhile."""
    return {
        "name": what.name,
        "title": what.title,
        "reference": what.reference,
        "seconds": round(seconds, 2),
        "cpu_waited": None if waited != waited else round(waited / seconds, 3),  # noqa: PLR0124  # nan
        "quantities": {
            quantity: {name: _variant(values, variants.get(what.reference)) for name, values in variants.items()}
            for quantity, variants in found.samples.items()
        },
        "goals": [_goal(what, found, number) for number in range(len(what.goals))],
        "notes": found.notes,
        "skipped": found.skipped,
    }


def _variant(values: list[list[float]], reference: list[list[float]] | None) -> Data:
    flat = list(chain.from_iterable(values))
    known = reference is not None and all(map(any, reference))
    value, low, high = ratio(values, reference) if known and reference else (None, None, None)
    return {
        "median": statistics.median(flat),
        "p90": p90(flat),
        "count": len(flat),
        "ratio": value,
        "low": low,
        "high": high,
    }


def _goal(what: Case, found: Measured, number: int) -> Data:
    goal = what.goals[number]
    told = estimate(goal, found.samples)
    value, low, high = told or (None, None, None)
    return {
        "title": goal.title,
        "ours": goal.ours,
        "theirs": goal.theirs,
        "quantity": goal.quantity,
        "kind": "above" if goal.above else "ratio",
        "higher": goal.higher,
        "must": goal.must,
        "aim": goal.aim,
        "value": value,
        "low": low,
        "high": high,
        "verdict": verdict(goal, value),
    }


def missed(data: Data) -> bool:
    """Whether a `must` is not kept."""
    return any(goal["verdict"] == "MISSED" for case in data["cases"] for goal in case["goals"])


# --- As text ---


def amount(value: float | None, quantity: str) -> str:
    """A value in units that suit it."""
    if value is None:
        return ""
    unit = UNITS.get(quantity, "")
    if unit != "s":
        return f"{value:.0f} {unit}".rstrip() if unit in {"", "/s"} else f"{value:.2f} {unit}"
    factor, short = (1.0, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "µs")
    scaled = value * factor
    return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f} {short}"


def number(value: float | None) -> str:
    """A figure of no unit, such as a ratio."""
    if value is None:
        return ""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def figure(goal: Data) -> str:
    """The figure of a goal: whole where it counts something."""
    counts = goal["value"] is not None and goal["kind"] == "above" and UNITS.get(goal["quantity"]) == ""
    return f"{goal['value']:.0f}" if counts else number(goal["value"])


def interval(of: Data) -> str:
    """Its 95 % interval."""
    return "" if of["low"] is None else f"{number(of['low'])} to {number(of['high'])}"


def about(data: Data) -> str:
    """One line: what was measured, and where."""
    host = data["host"]
    return (
        f"pinfold {data['pinfold']} ({data['commit'] or 'no commit'}, {data['backend']}), Python {host['python']}, "
        f"Linux {host['kernel']}, {host['machine']}, {host['cpus']} CPUs, uid {host['uid']}; "
        f"{data['at']}, {data['rounds']} rounds"
    )


def _blocks(case: Data) -> Iterator[tuple[str, list[list[str]]]]:
    """The tables of a case: their first heading, and rows of variant, median, p90, ratio, interval, count."""
    for quantity, variants in case["quantities"].items():
        rows = [
            [name, amount(of["median"], quantity), amount(of["p90"], quantity), number(of["ratio"]), interval(of),
             str(of["count"])]
            for name, of in variants.items()
        ]  # fmt: skip
        if any(cell for row in rows for cell in row[1:]):
            yield quantity, rows


def _asides(case: Data) -> Iterator[str]:
    yield from case["notes"]
    for what, why in case["skipped"].items():
        yield f"skipped: {what}: {why}"


def text(case: Data) -> str:
    """A case as a table for a terminal."""
    lines = [f"\n## {case['name']}: {case['title'].replace('`', '')}"]
    for quantity, rows in _blocks(case):
        lines.append(f"{quantity:52} {'median':>10} {'p90':>10} {'ratio':>7} {'95 %':>14} {'n':>5}")
        lines += [f"{row[0]:52} {row[1]:>10} {row[2]:>10} {row[3]:>7} {row[4]:>14} {row[5]:>5}" for row in rows]
    lines += _asides(case)
    for goal in case["goals"]:
        span = f" ({interval(goal)})" if interval(goal) else ""
        lines.append(
            f"{goal['verdict'] or 'measured'}: {goal['title'].replace('`', '')}: {figure(goal)}{span}, "
            f"must {_mark(goal['must'])}, aim {_mark(goal['aim'])}"
        )
    waited = "" if case["cpu_waited"] is None else f"; somebody waited for a CPU {case['cpu_waited']:.0%} of the time"
    lines.append(f"[{case['seconds']:.1f} s{waited}]")
    return "\n".join(lines)


def _mark(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def summary(data: Data) -> str:
    """The goals of all cases, for a terminal."""
    lines = [f"\n{'verdict':8} {'value':>7} {'must':>6} {'aim':>6}  goal"]
    lines += [
        f"{goal['verdict']:8} {figure(goal):>7} {_mark(goal['must']):>6} {_mark(goal['aim']):>6}  "
        f"{goal['title'].replace('`', '')}"
        for case in data["cases"]
        for goal in case["goals"]
    ]
    return "\n".join(lines)


# --- As Markdown ---


def _table(heading: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (heading, ["---"] * len(heading), *rows)]


def markdown(data: Data) -> str:
    """Everything, as the part of a document."""
    goals = [
        [goal["title"], _mark(goal["must"]), _mark(goal["aim"]), figure(goal), interval(goal), goal["verdict"]]
        for case in data["cases"]
        for goal in case["goals"]
    ]
    lines = [f"{about(data)}.", "", *_table(["figure", "must", "aim", "measured", "95 %", ""], goals)]
    if found := budget.budgets(data):
        heading = ["µs", *(of.title for of in found)]
        lines += ["", "### Where the time goes", "", *_table(heading, budget.rows(found))]
    for case in data["cases"]:
        lines += ["", f"### {_sentence(case['title'])}", ""]
        for quantity, rows in _blocks(case):
            lines += [*_table([quantity, "median", "p90", "ratio", "95 %", "n"], rows), ""]
        lines += [f"- {aside}" for aside in _asides(case)]
        if lines[-1] == "":
            lines.pop()
    return "\n".join(lines)


def _sentence(title: str) -> str:
    return title[0].upper() + title[1:]


def replaced(document: str, part: str) -> str:
    """The document with the part between its two marks exchanged."""
    before, begin, rest = document.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no place for the figures: {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"
