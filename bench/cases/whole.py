"""Whole programs, from their start to their end: the command line, the import, and the peers."""

from __future__ import annotations

import subprocess
import sys

from bench import ground, peers
from bench.rounds import interleaved, times
from bench.words import Case, Goal, Measured, Missing, Variant

_PYTHON, _COMMAND, _IMPORT = "python -I -c pass", "pinfold run -- true", "python -I -c 'import pinfold'"


def _program(argv: list[str]) -> Variant:
    environment = ground.environment()
    return lambda: subprocess.run(argv, check=True, env=environment)


def _command_line(rounds: int) -> Measured:
    pinfold = ground.program("pinfold")
    if pinfold is None:
        raise Missing("no `pinfold` beside this interpreter (pip install -e .)")
    variants = {
        _PYTHON: _program([sys.executable, "-I", "-c", "pass"]),
        _COMMAND: _program([pinfold, "run", "--", "/bin/true"]),
    }
    return Measured(times(interleaved(variants, rounds, block=2)))


def _import(rounds: int) -> Measured:
    variants = {
        _PYTHON: _program([sys.executable, "-I", "-c", "pass"]),
        _IMPORT: _program([sys.executable, "-I", "-c", "import pinfold"]),
    }
    samples = interleaved(variants, rounds, block=2)
    in_ms = {name: [[value * 1e3 for value in values] for values in found] for name, found in samples["time"].items()}
    return Measured({"milliseconds": in_ms})


COMMAND_LINE = Case(
    "command-line", "the command line", _PYTHON, _command_line,
    (Goal("`pinfold run -- true` / `python -I -c pass`", _COMMAND, _PYTHON, 3.0, 1.5),),
    share=0.3,
)  # fmt: skip
IMPORT = Case(
    "import", "`import pinfold`", _PYTHON, _import,
    (Goal("`import pinfold` above a bare Python, ms", _IMPORT, _PYTHON, 12, 6, quantity="milliseconds", above=True),),
    share=0.3,
)  # fmt: skip
PEERS = Case("peers", "one `true` by others, whole programs", peers.REFERENCE, peers.measure, share=0.2)
