"""Every program of the corpus: its outcome, its output, its time, and nothing left of it."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROUNDS = int(os.environ.get("ROUNDS", "5"))
MANIFEST = tomllib.loads((Path(__file__).parent / "corpus" / "manifest.toml").read_text())
OUTCOMES = {
    "exited": "exited",
    "signaled": "signaled",
    "timeout": "timed_out",
    "output-limit": "output_exceeded",
    "memory-limit": "oom_killed",
    "pids-limit": "exited",  # a refused fork is the program's affair
    "spawn-error": "spawn_failed",
}
BY_LIMIT = {"timed_out": 124, "output_exceeded": 137, "oom_killed": 137, "spawn_failed": 126}
HEAVY = {"out_forkbomb"}  # its time bound holds on an idle machine
AT_ONCE = 5


def options_of(program) -> list[str]:
    options = ["--timeout", str(program["timeout_s"])]
    if "output_limit" in program:
        options += ["--output-limit", str(program["output_limit"])]
    return options


def problems(program, ending) -> list[str]:
    """Everything about an ending that is not as the manifest wants it."""
    result = ending.result or {}
    receipt, outcome = result.get("receipt", {}), result.get("outcome")
    expected = BY_LIMIT.get(outcome, 128 + program["signal"] if "signal" in program else program.get("exit_code"))
    wrong = {
        "outcome": outcome not in {OUTCOMES[word] for word in program["outcome"]},
        "exit code": ending.code != expected,
        "too long": ending.wall > program["max_wall_s"],
        "too short": ending.wall < program.get("min_wall_s", 0),
        "processes left": ending.processes,
        "cgroups left": ending.cgroups,
        "streams held": ending.unfinished,
        "caller's descriptors are non-blocking": ending.nonblocking,
        "core file": [name for name in ending.work_dir if name.startswith("core")],
        "guarantee": result.get("guarantee") != "cooperative",
        "not emptied": not receipt.get("emptied"),
        "not removed": not receipt.get("removed"),
        "stuck": receipt.get("stuck_pids"),
        "stdout": program.get("stdout_contains", "").encode() not in ending.out,
        "stdout sha256": program.get("stdout_sha256", _sha(ending.out)) != _sha(ending.out),
        "stderr sha256": program.get("stderr_sha256", _sha(ending.err)) != _sha(ending.err),
        "traceback": b"Traceback" in ending.err and program["name"] != "mt_log_injection",
    }
    if problem := {what: value for what, value in wrong.items() if value}:
        return [f"{problem} (exit {ending.code}, {ending.wall:.2f} s, {json.dumps(result)}, {ending.err[-500:]!r})"]
    return []


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("program", MANIFEST["program"], ids=lambda program: program["name"])
def test_program_ends_as_it_should_and_leaves_nothing(program, caller, compiled, tally):
    argv, stdin = compiled(program["file"]), bytes(program.get("stdin_bytes", 0))

    def trial(_round: int) -> list[str]:
        found = problems(program, caller.run(argv, *options_of(program), stdin=stdin))
        tally(program["name"], caller.name, not found)
        return found

    with ThreadPoolExecutor(1 if program["name"] in HEAVY else AT_ONCE) as pool:
        found = [problem for round_ in pool.map(trial, range(ROUNDS)) for problem in round_]
    assert not found, "\n".join(found)
