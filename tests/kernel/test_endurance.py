"""Many runs: nothing grows, nothing is lost."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import pinfold

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def figures(directory: Path) -> dict[str, int]:
    """What this process holds."""
    return {
        "fds": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": len(psutil.Process().children(recursive=True)),
        "cgroups": sum(len(dirs) for _root, dirs, _files in os.walk(directory)),
    }


def test_ten_thousand_runs_leave_everything_as_it_was(cgroup2):
    process = psutil.Process()
    before = figures(cgroup2)
    failed: list[str] = []

    def one(number: int) -> None:
        capture = number % 4 == 0
        result = fold.run(["/bin/true"] if not capture else ["/bin/echo", "x"], capture_output=capture, timeout=20)
        if not (result.ok and result.receipt.removed and result.stdout == (b"x\n" if capture else None)):
            failed.append(repr(result))

    def many(count: int) -> None:
        """Eight at a time, by loops: a pool's queue of 9000 futures would be the growth that is measured."""
        threads = [threading.Thread(target=lambda: [one(at) for at in range(count // 8)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(200)
        assert not any(thread.is_alive() for thread in threads)

    begin = time.monotonic()
    with pinfold.Fold() as fold:
        many(1000)
        small = process.memory_info().rss
        many(9000)
        grown = process.memory_info().rss - small
        during = figures(cgroup2)
    print(f"\n10000 runs in {time.monotonic() - begin:.1f} s, {grown >> 10} KiB more, {during} at the end")
    assert failed == []
    assert during["children"] == before["children"]
    assert figures(cgroup2) == before
    assert grown < 4 << 20


def expected(pattern: bytes, size: int) -> bytes:
    """What the villain both_streams writes."""
    return (pattern * (size // len(pattern) + 1))[:size]


def test_both_streams_arrive_byte_for_byte_whatever_their_sizes(cgroup2, villain):
    """300 runs of 0 B to 16 MiB on both streams at once."""
    draw = random.Random(42)
    pattern = bytes(range(251))
    edges = [0, 1, 4095, 4096, 65535, 65536, 65537, 1 << 20]
    sizes = [(out, err) for out in edges for err in edges]
    sizes += [(int(2 ** draw.uniform(0, 22)), int(2 ** draw.uniform(0, 22))) for _ in range(298 - len(sizes))]
    sizes += [(16 << 20, 16 << 20), (16 << 20, 0)]
    total = 0

    def one(pair: tuple[int, int]) -> tuple[int, str | None]:
        out, err = pair
        result = pinfold.run(villain("both_streams", out, err), capture_output=True, timeout=60)
        good = result.ok and result.stdout == expected(pattern, out) and result.stderr == expected(pattern[::-1], err)
        counted = (result.stdout_stream.bytes, result.stderr_stream.bytes) == pair
        return out + err, None if good and counted else f"{pair}: {result.outcome} {len(result.stdout)}"

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(one, sizes))
    total = sum(size for size, _ in found)
    print(f"\n{len(found)} runs, {total >> 20} MiB")
    assert [wrong for _, wrong in found if wrong] == []
    assert len(found) == 300


def test_thirty_two_threads_of_a_hundred_runs_mix_nothing_up(cgroup2):
    wrong: list[str] = []

    def work(number: int) -> None:
        for at in range(100):
            word = f"{number}-{at}"
            result = pinfold.run(["/bin/echo", word], capture_output=True, timeout=60)
            if result.stdout != f"{word}\n".encode() or not result.receipt.removed or result.receipt.pipe_held:
                wrong.append(f"{word}: {result}")

    begin = time.monotonic()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    print(f"\n3200 runs from 32 threads in {time.monotonic() - begin:.1f} s")
    assert wrong == []
