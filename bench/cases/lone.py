"""The end of a thousand daemons, and what ten thousand runs leave behind."""

from __future__ import annotations

import time

import pinfold
from bench import floor, worker
from bench.rounds import interleaved
from bench.words import Case, Goal, Measured, Sample

_DAEMONS = 1000
_SETTLE = 0.02  # as floor.c has it

_OURS, _FLOOR = "pinfold, kill() to Result", "C floor, cgroup.kill to populated 0"


def _kill(program: str) -> Sample:
    with pinfold.start([program, "tree", str(_DAEMONS)], stdout=pinfold.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"up\n"
        time.sleep(_SETTLE)
        start = time.perf_counter()
        run.kill()
        result = run.wait()
        took = time.perf_counter() - start
    assert result.receipt.emptied
    return {"time": took}


def _tree(rounds: int) -> Measured:
    program = floor.build()
    with floor.serving() as ask:
        variants = {_FLOOR: lambda: ask(f"kill {_DAEMONS}"), _OURS: lambda: _kill(program)}
        return Measured(interleaved(variants, rounds, block=1))


_RUNS, _LIVE = 10_000, 10


def _soak(_rounds: int) -> Measured:
    """In an interpreter of its own, whose memory is nobody else's."""
    found = worker.ask("soak", str(_RUNS), str(_LIVE))
    moments = ("before", f"after {_RUNS} runs")
    samples = {
        quantity: {moment: [[value]] for moment, value in zip(moments, values, strict=True)}
        for quantity, values in found.items()
    }
    return Measured(samples)


TREE = Case(
    "tree", f"the end of {_DAEMONS} daemonized processes", _FLOOR, _tree,
    (Goal(f"{_DAEMONS} daemonized: kill to Result / C floor, `cgroup.kill` to empty",
          _OURS, _FLOOR, 1.3, 1.05),),
    share=0.2,
)  # fmt: skip
SOAK = Case(
    "soak", f"{_RUNS} runs, {_LIVE} live at a time", "before", _soak,
    tuple(
        Goal(f"{_RUNS} runs, {_LIVE} at a time: {what} above before", f"after {_RUNS} runs", "before", most,
             quantity=quantity, above=True)
        for what, quantity, most in (
            ("RSS, MiB", "memory", 1.0), ("descriptors", "descriptors", 0.0), ("cgroups", "cgroups", 0.0)
        )
    ),
)  # fmt: skip
