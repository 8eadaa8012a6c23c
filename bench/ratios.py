"""From samples to figures: medians, paired ratios with their intervals, verdicts. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.words import Goal, Samples

Rounds = Sequence[Sequence[float]]

_RESAMPLES = 1000
_FEWEST = 3  # rounds from which an interval can be told


class Estimate(NamedTuple):
    """A figure and its 95 % interval; None where there are too few rounds for one."""

    value: float
    low: float | None
    high: float | None


def p90(values: Sequence[float]) -> float:
    """The value that nine tenths do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.9))]


def ratio(ours: Rounds, theirs: Rounds) -> Estimate:
    """The median of the rounds' ratios: each to what the other took in the same round."""
    return _paired(ours, theirs, lambda mine, other: mine / other if other else float("nan"))


def difference(ours: Rounds, theirs: Rounds) -> Estimate:
    """The median of the rounds' differences."""
    return _paired(ours, theirs, lambda mine, other: mine - other)


def _paired(ours: Rounds, theirs: Rounds, compare: Callable[[float, float], float]) -> Estimate:
    pairs = [
        compare(statistics.median(mine), statistics.median(other)) for mine, other in zip(ours, theirs, strict=True)
    ]
    return Estimate(statistics.median(pairs), *bootstrap(pairs))


def bootstrap(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of the median: what medians of as many values drawn from these, with replacement, come to."""
    if len(values) < _FEWEST:
        return None, None
    chance = random.Random(len(values))
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return medians[int(_RESAMPLES * 0.025)], medians[int(_RESAMPLES * 0.975) - 1]


def estimate(goal: Goal, samples: Samples) -> Estimate | None:
    """The goal's figure; None if one of its two variants was not measured."""
    variants = samples.get(goal.quantity, {})
    if goal.ours not in variants or goal.theirs not in variants:
        return None
    return (difference if goal.above else ratio)(variants[goal.ours], variants[goal.theirs])


def verdict(goal: Goal, value: float | None) -> str:
    """One of "aim met", "met", "MISSED"; "skipped" without a figure; "" for a goal that demands nothing."""
    if value is None:
        return "skipped"

    def reached(mark: float) -> bool:
        return value >= mark if goal.higher else value <= mark

    if goal.must is not None and not reached(goal.must):
        return "MISSED"
    if goal.aim is not None and reached(goal.aim):
        return "aim met"
    return "" if goal.must is None else "met"
