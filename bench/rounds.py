"""Interleaved rounds: whatever slows the machine for a while slows every variant alike."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from bench.words import Sample, Samples, Variant

State = Callable[[], AbstractContextManager[object]]

SEED = 1
_PLAIN: Mapping[str, State] = {"": contextlib.nullcontext}


def interleaved(
    variants: Mapping[str, Variant],
    rounds: int,
    *,
    block: int = 3,
    drop: int = 1,
    gap: float = 0.0,
    warm: int = 1,
    states: Mapping[str, State] = _PLAIN,
) -> Samples:
    """In each round every variant once, in an order that chance (but always the same chance) decides.

    A variant is called `drop + block` times in a row and the first `drop` are thrown away: what it leaves to the
    kernel's workers, such as the release of a cgroup, is then paid by itself and not by the next one. So are the first
    `warm` rounds. `gap`: seconds of sleep before each call.

    states: each is entered once in a round, and every variant measured in it; a name becomes "variant, state".
    """
    samples: Samples = {}
    chance = random.Random(SEED)
    for number in range(-warm, rounds):
        for state in _shuffled(states, chance):
            with states[state]():
                for name in _shuffled(variants, chance):
                    values = [_measure(variants[name], gap) for _ in range(drop + block)][drop:]
                    if number >= 0:
                        _add(samples, _name(name, state), values)
    order = [_name(name, state) for name in variants for state in states]
    return {what: {name: found[name] for name in order if name in found} for what, found in samples.items()}


def times(samples: Samples) -> Samples:
    """The times alone: where the work is done by programs that we only start, our own CPU time says nothing."""
    return {"time": samples["time"]}


def _name(variant: str, state: str) -> str:
    return f"{variant}, {state}" if state else variant


def _shuffled(names: Mapping[str, object], chance: random.Random) -> list[str]:
    order = list(names)
    chance.shuffle(order)
    return order


def _measure(variant: Variant, gap: float) -> Sample:
    if gap:
        time.sleep(gap)
    cpu, start = time.process_time(), time.perf_counter()
    own = variant()
    end = time.perf_counter()
    return own if isinstance(own, dict) else {"time": end - start, "parent's CPU": time.process_time() - cpu}


def _add(samples: Samples, name: str, values: list[Sample]) -> None:
    for quantity in values[0]:
        samples.setdefault(quantity, {}).setdefault(name, []).append([value[quantity] for value in values])
