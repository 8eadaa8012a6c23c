"""The figures pinfold is measured by, as ratios against the standard library inside one interleaved run.

    python bench/figures.py [--rounds 100] [--only PART]

In each round, in random order, every variant runs four times in a row and the first is dropped: what a variant leaves
to kernel workers (the release of a cgroup) is then paid by itself. A ratio is median over median. Exit status 1 if a
ratio misses its target.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import pinfold

Variants = dict[str, Callable[[], object]]
MIB = 1 << 20

TRUE = ["/bin/true"]
ECHO = ["/bin/sh", "-c", "echo out; echo err >&2"]


def interleaved(variants: Variants, rounds: int, gap: float = 0.0, block: int = 3) -> dict[str, list[float]]:
    """Seconds of each call, by variant."""
    samples: dict[str, list[float]] = {name: [] for name in variants}
    order, chance = list(variants), random.Random(1)
    for number in range(-2, rounds):
        chance.shuffle(order)
        for name in order:
            for i in range(block + 1):
                if gap:
                    time.sleep(gap)
                start = time.perf_counter()
                variants[name]()
                taken = time.perf_counter() - start
                if number >= 0 and i:
                    samples[name].append(taken)
    return samples


def show(title: str, samples: dict[str, list[float]], ours: str, theirs: str, most: float) -> bool:
    """Print a table and the verdict."""
    print(f"\n## {title}")
    base = statistics.median(samples[theirs])
    for name, values in samples.items():
        values.sort()
        p90 = values[int(len(values) * 0.9)]
        median = statistics.median(values)
        print(f"{name:44} median {median * 1e6:10.1f} us   p90 {p90 * 1e6:10.1f} us   ratio {median / base:5.2f}")
    ratio = statistics.median(samples[ours]) / base
    met = ratio <= most
    print(f"{'met' if met else 'MISSED'}: {ratio:.3f}, at most {most} (n={len(samples[ours])})", flush=True)
    return met


def run_true(rounds: int, gap: float = 0.0) -> dict[str, list[float]]:
    """`true`, with our timeout armed and without theirs."""
    variants: Variants = {
        "subprocess.run(true)": lambda: subprocess.run(TRUE, check=False),
        "pinfold.run(true, timeout=5)": lambda: pinfold.run(TRUE, timeout=5),
    }
    return interleaved(variants, rounds, gap)


def true(rounds: int) -> bool:
    return show("true", run_true(rounds), "pinfold.run(true, timeout=5)", "subprocess.run(true)", 1.2)


def idle(rounds: int) -> bool:
    samples = run_true(max(10, rounds // 3), gap=0.06)
    return show("true, each after 60 ms idle", samples, "pinfold.run(true, timeout=5)", "subprocess.run(true)", 1.2)


def heap(rounds: int) -> bool:
    ballast = bytearray(1024 * MIB)
    ballast[::4096] = b"x" * len(ballast[::4096])
    samples = run_true(rounds)
    del ballast
    return show("true, with a heap of 1 GiB", samples, "pinfold.run(true, timeout=5)", "subprocess.run(true)", 1.2)


def echo(rounds: int) -> bool:
    ours, theirs = "pinfold.run(capture_output, timeout=5)", "subprocess.run(capture_output, timeout=5)"
    variants: Variants = {
        theirs: lambda: subprocess.run(ECHO, check=False, capture_output=True, timeout=5),
        ours: lambda: pinfold.run(ECHO, capture_output=True, timeout=5),
    }
    return show("echo to both streams", interleaved(variants, rounds), ours, theirs, 0.6)


FLOOD = """
import subprocess, sys, time
import pinfold
flood = ["head", "-c", str(1 << 30), "/dev/zero"]
start = time.perf_counter()
{call}
print(time.perf_counter() - start)
"""


def output(rounds: int) -> bool:
    """Each in a fresh interpreter: one that has held 1 GiB before may find the memory still mapped."""
    ours, theirs = "pinfold.run, output_limit 1M", "subprocess.run(capture_output)"
    calls = {
        theirs: "subprocess.run(flood, capture_output=True)",
        "pinfold.run(capture_output)": "pinfold.run(flood, capture_output=True)",
        ours: 'pinfold.run(flood, capture_output=True, output_limit="1M")',
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(3, rounds // 20)):
        for name, call in calls.items():
            program = [sys.executable, "-c", FLOOD.format(call=call)]
            samples[name].append(float(subprocess.run(program, check=True, stdout=subprocess.PIPE).stdout))
    return show("1 GiB of output", samples, ours, theirs, 1 / 8)


def imports(rounds: int) -> bool:
    """What `import pinfold` adds to the start of an interpreter."""
    samples: dict[str, list[float]] = {"pass": [], "import pinfold": []}
    for _ in range(max(10, rounds // 5)):
        for code, taken in samples.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            taken.append(time.perf_counter() - start)
    more = statistics.median(samples["import pinfold"]) - statistics.median(samples["pass"])
    verdict = "met" if more <= 0.04 else "MISSED"
    print(f"\n## import pinfold\n{verdict}: {more * 1000:.1f} ms above a bare Python, at most 40")
    return more <= 0.04


PARTS: dict[str, Callable[[int], bool]] = {
    "true": true, "idle": idle, "heap": heap, "echo": echo, "output": output, "import": imports,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", choices=PARTS, action="append")
    arguments = parser.parse_args()
    print(f"python {sys.version.split()[0]}, kernel {os.uname().release}, {os.cpu_count()} CPUs")
    met = [PARTS[name](arguments.rounds) for name in arguments.only or PARTS]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
