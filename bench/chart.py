"""The picture: each goal as a bar against its mark, and the peers by their time. Text made by hand, no library."""

from __future__ import annotations

import math
from typing import Any
from xml.sax.saxutils import escape

from bench.report import amount, figure, number

Data = dict[str, Any]

_WIDTH, _LEFT, _RIGHT = 1060, 490, 850  # the bars lie between the last two
_ROW, _BAR = 26, 12
_MOST = 2.0  # a goal's axis ends at twice what is allowed

_STYLE = """
text { font-family: system-ui, "DejaVu Sans", Verdana, sans-serif; font-size: 13px; fill: #1f2328; }
.title { font-size: 16px; font-weight: 600; }
.dim { fill: #59636e; font-size: 12px; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.back { fill: #ffffff; } .grid { stroke: #d1d9e0; } .must { stroke: #1f2328; stroke-width: 1.5; }
.aim { fill: #1f2328; } .span { stroke: #1f2328; stroke-opacity: .55; stroke-width: 1.5; }
.good { fill: #2da44e; } .fair { fill: #4a90d9; } .bad { fill: #d1453b; } .plain { fill: #9aa4af; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .dim { fill: #9198a1; } .back { fill: #0d1117; } .grid { stroke: #30363d; }
  .must { stroke: #e6edf3; } .aim { fill: #e6edf3; } .span { stroke: #e6edf3; }
  .good { fill: #3fb950; } .fair { fill: #58a6ff; } .bad { fill: #f85149; } .plain { fill: #6e7681; }
}
"""

_COLOURS = {"aim met": "good", "met": "fair", "MISSED": "bad"}


def svg(data: Data) -> str:
    """The picture of a report."""
    y, parts = 0.0, []
    for section in (_goals(data), _peers(data)):
        height, drawn = section
        if drawn:
            parts.append(f'<g transform="translate(0 {y:.0f})">{"".join(drawn)}</g>')
            y += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y:.0f}" width="{_WIDTH}" height="{y:.0f}" '
        f'role="img" aria-label="pinfold: figures against their marks">\n<style>{_STYLE}</style>\n'
        f'<rect class="back" width="{_WIDTH}" height="{y:.0f}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, content: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(content)}</text>\n'


def _bar(x: float, y: float, width: float, kind: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{_BAR}" rx="2" class="{kind}"/>\n'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>\n'


# --- Goals ---


def share(goal: Data, value: float) -> float:
    """How much of what is allowed a value is: at most 1 if the goal is met, whichever way is better."""
    if goal["higher"]:
        return float(goal["must"] / value) if value else math.inf
    if goal["must"]:
        return float(max(value, 0.0) / goal["must"])
    return 0.0 if value <= 0 else math.inf


def _goals(data: Data) -> tuple[float, list[str]]:
    goals = [goal for case in data["cases"] for goal in case["goals"] if goal["must"] is not None]
    if not goals:
        return 0, []
    top = 84
    bottom = top + _ROW * len(goals)

    def at(part: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * min(part, _MOST) / _MOST

    drawn = [
        _text(20, 30, "Goals: each bar is the share of what is allowed", "title"),
        _legend(20, 50),
        *(
            _line(at(mark), top - 6, at(mark), bottom, "must" if mark == 1 else "grid")
            + _text(at(mark), top - 12, "must" if mark == 1 else f"{mark:.0%}", "dim middle")
            for mark in (0, 0.5, 1, 1.5, 2)
        ),
    ]
    for row, goal in enumerate(goals):
        drawn.append(_goal(goal, top + _ROW * row, at))
    return bottom + 20, drawn


def _legend(x: float, y: float) -> str:
    drawn = ""
    for kind, words, width in (("good", "aim met", 80), ("fair", "must met", 90), ("bad", "missed", 80)):
        drawn += f'<rect x="{x}" y="{y - 10}" width="11" height="11" rx="2" class="{kind}"/>\n'
        drawn += _text(x + 16, y, words, "dim")
        x += width
    return drawn + _diamond(x + 5, y - 4.5) + _text(x + 16, y, "aim", "dim")


def _diamond(x: float, y: float) -> str:
    return f'<path d="M{x:.1f} {y - 5:.1f}l4.5 5l-4.5 5l-4.5-5z" class="aim"/>\n'


def _goal(goal: Data, y: float, at: Any) -> str:
    middle = y + _ROW / 2
    drawn = _text(_LEFT - 12, middle + 4.5, goal["title"].replace("`", ""), "end")
    value = goal["value"]
    if value is None:
        return drawn + _text(_LEFT + 8, middle + 4.5, "skipped", "dim")
    part = share(goal, value)
    drawn += _bar(_LEFT, middle - _BAR / 2, at(part) - _LEFT, _COLOURS[goal["verdict"]])
    if goal["low"] is not None and part < _MOST:
        drawn += _line(at(share(goal, goal["low"])), middle, at(share(goal, goal["high"])), middle, "span")
    if goal["aim"] is not None:
        drawn += _diamond(at(share(goal, goal["aim"])), middle)
    if part > _MOST:  # the bar ends, the value does not
        drawn += f'<path d="M{_RIGHT + 2} {middle - 6}l7 6l-7 6z" class="bad"/>\n'
    marks = f"must {goal['must']:g}" + ("" if goal["aim"] is None else f", aim {goal['aim']:g}")
    drawn += _text(_RIGHT + 56, middle + 4.5, figure(goal), "end")
    return drawn + _text(_RIGHT + 66, middle + 4.5, marks, "dim")


# --- Peers ---


def _peers(data: Data) -> tuple[float, list[str]]:
    found = next((case for case in data["cases"] if case["name"] == "peers" and case["quantities"]), None)
    if found is None:
        return 0, []
    times = sorted(found["quantities"]["time"].items(), key=lambda item: item[1]["median"])
    top = 64
    bottom = top + _ROW * len(times)
    first = math.floor(math.log10(times[0][1]["median"]))
    last = math.ceil(math.log10(max(of["p90"] for _name, of in times)))

    def at(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (math.log10(value) - first) / (last - first)

    drawn = [
        _text(
            20, 30, "One `true`, from start to end: median, and a line to the 90th percentile".replace("`", ""), "title"
        )
    ]
    for power in range(first, last + 1):
        drawn += [
            _line(at(10**power), top - 6, at(10**power), bottom, "grid"),
            _text(
                at(10**power), top - 12, amount(10**power, "time").replace(".00", "").replace(".0", ""), "dim middle"
            ),
        ]
    for row, (name, of) in enumerate(times):
        middle = top + _ROW * row + _ROW / 2
        drawn += [
            _text(_LEFT - 12, middle + 4.5, name, "end"),
            _bar(_LEFT, middle - _BAR / 2, at(of["median"]) - _LEFT, "fair" if name.startswith("pinfold") else "plain"),
            _line(at(of["median"]), middle, at(of["p90"]), middle, "span"),
            _text(_RIGHT + 66, middle + 4.5, f"{amount(of['median'], 'time')}  ({number(of['ratio'])})", "dim"),
        ]
    return bottom + 20, drawn
