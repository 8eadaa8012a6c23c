"""Chaos: executors that die, are starved or told to stop at the worst moments; and what is left then.

python -m tests.chaos [--full] [--seed N] [--below CGROUP] [CASE…]
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.chaos import abort, faults, folds, gc_safety, sigkill, signals
from tests.chaos.ground import BOUND, SLOWNESS, Figures, ground

# name: (what is called with (ground, count, figures, rng), the count of --full, the count for every day)
CASES = {
    "negative-control": (sigkill.negative_control, 20, 2),
    "sigkill": (sigkill.sigkill, 1000, 40),
    "sigkill-guard-first": (sigkill.sigkill_guard_first, 1000, 40),
    "abort": (abort.abort, 50, 1),
    "gc-safety": (gc_safety.gc_safety, 180, 4),  # seconds
    "faults": (faults.faults, 0, 60),
    "folds": (folds.folds, 200, 20),
    "signals": (signals.signals, 200, 6),
}
_LATE = 5 * SLOWNESS  # seconds that a busy machine may take in the everyday run; --full is strict
_SHOWN = 30


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the large counts, and strict about the time it takes")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--below", metavar="CGROUP", help="a directory that is ours to make cgroups in")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    asked = parser.parse_args()
    if unknown := [name for name in asked.cases if name not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}")
    failed = False
    for name in asked.cases or CASES:
        seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(2**31) if asked.full else 1
        figures = run(name, full=asked.full, seed=seed, below=asked.below, count=asked.count)
        failed = failed or bool(figures.failures)
    return int(failed)


def run(name: str, *, full: bool, seed: int, below: str | None, count: int | None = None) -> Figures:
    """One case: its line of figures, and below that what failed."""
    function, large, small = CASES[name]
    figures = Figures(name, BOUND if full else _LATE)
    began = time.monotonic()
    with ground(below) as here:
        function(here, count if count is not None else large if full else small, figures, random.Random(seed))
    print(f"{figures}; seed {seed}; {time.monotonic() - began:.1f} s", flush=True)
    for failure in figures.failures[:_SHOWN]:
        print(f"    {failure}", flush=True)
    return figures


if __name__ == "__main__":
    sys.exit(main())
