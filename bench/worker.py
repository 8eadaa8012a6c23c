"""What has to be measured in an interpreter of its own: `python -m bench.worker WHAT ARGUMENT…` prints it as JSON."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections import deque
from typing import Any

import pinfold
from bench import ground

_FLOOD = ["/usr/bin/head", "-c", str(1 << 30), "/dev/zero"]


def ask(what: str, *arguments: str) -> Any:
    """Do it there."""
    argv = [sys.executable, "-m", "bench.worker", what, *arguments]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, cwd=ground.ROOT, env=ground.environment())
    return json.loads(done.stdout)


def flood(how: str) -> dict[str, float]:
    """A command that writes 1 GiB, its output kept."""
    pinfold.run(["/bin/true"])  # the fold is open when the time begins
    cpu, start = time.process_time(), time.perf_counter()
    if how == "standard":
        kept = subprocess.run(_FLOOD, check=True, capture_output=True).stdout
    elif how == "whole":
        kept = pinfold.run(_FLOOD, check=True, capture_output=True).stdout
    else:
        kept = pinfold.run(_FLOOD, check=True, capture_output=True, output_limit="1M").stdout
    took = {"time": time.perf_counter() - start, "parent's CPU": time.process_time() - cpu}
    assert len(kept) == 1 << 30 if how != "capped" else len(kept) < 1 << 21
    return took


def soak(runs: str, live: str) -> dict[str, tuple[float, float]]:
    """What this process and its fold hold before and after many runs."""
    cgroup = pinfold.run(["/bin/true"]).placement.cgroup
    fold = ground.mount() + os.path.dirname(cgroup)
    _many(500, int(live))  # what is made once is there
    before = _held(fold)
    _many(int(runs), int(live))
    return {
        quantity: (value, after) for (quantity, value), after in zip(before.items(), _held(fold).values(), strict=True)
    }


def _many(runs: int, window: int) -> None:
    live: deque[pinfold.Run] = deque()
    for _ in range(runs):
        if len(live) == window:
            live.popleft().wait()
        live.append(pinfold.start(["/bin/true"], timeout=30))
    while live:
        live.popleft().wait()


def _held(fold: str) -> dict[str, float]:
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "cgroups": ground.below(fold),
    }


if __name__ == "__main__":
    json.dump(flood(*sys.argv[2:]) if sys.argv[1] == "flood" else soak(*sys.argv[2:]), sys.stdout)
