"""1 GiB of output."""

from __future__ import annotations

from bench import worker
from bench.rounds import interleaved
from bench.words import Case, Goal, Measured, Variant

_STANDARD, _WHOLE, _CAPPED = (
    "subprocess.run(capture_output)",
    "pinfold.run(capture_output)",
    "pinfold.run, output_limit 1M",
)


def _flood(how: str) -> Variant:
    return lambda: worker.ask("flood", how)


def _measure(rounds: int) -> Measured:
    """Each in an interpreter of its own: one that has held 1 GiB before may find the memory still mapped."""
    variants = {_STANDARD: _flood("standard"), _WHOLE: _flood("whole"), _CAPPED: _flood("capped")}
    return Measured(interleaved(variants, rounds, block=1, drop=0, warm=0))


OUTPUT = Case(
    "output", "1 GiB of output", _STANDARD, _measure,
    (
        Goal("1 GiB of output, whole / `capture_output`", _WHOLE, _STANDARD, 0.35, 0.25),
        Goal("1 GiB of output, capped / `capture_output`", _CAPPED, _STANDARD, 0.18, 0.10),
    ),
    share=0.1,
)  # fmt: skip
