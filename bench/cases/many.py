"""Many commands at once: how many in a second, and what the parent pays for each."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

import pinfold
from bench import ground
from bench.cases import loops
from bench.rounds import interleaved
from bench.words import Case, Goal, Measured, Sample

_ARGV = ["/bin/sleep", "0.2"]
_TOTAL = 1024
_WINDOW = 512

OURS, THEIRS = "pinfold.start, wait", "asyncio, pidfd watcher"


def in_flight(argv: list[str], total: int, window: int) -> None:
    """`total` runs, `window` of them at a time: the one thing to change when there is a better verb for it."""
    live: deque[pinfold.Run] = deque()
    for _ in range(total):
        if len(live) == window:
            live.popleft().wait()
        live.append(pinfold.start(argv, timeout=30))
    while live:
        live.popleft().wait()


async def asyncio_in_flight(argv: list[str], total: int, window: int) -> None:
    """The same by asyncio."""
    room = asyncio.Semaphore(window)

    async def one() -> None:
        async with room:
            process = await asyncio.create_subprocess_exec(*argv)
            async with asyncio.timeout(30):
                await process.wait()

    await asyncio.gather(*(one() for _ in range(total)))


def _timed(work: Callable[[], object]) -> Sample:
    cpu, start = time.process_time(), time.perf_counter()
    work()
    return {
        "rate": _TOTAL / (time.perf_counter() - start),
        "parent's CPU": (time.process_time() - cpu) / _TOTAL,
    }


def _measure(rounds: int) -> Measured:
    ground.need_descriptors(16 * _WINDOW)
    with contextlib.ExitStack() as stack:
        loop = stack.enter_context(loops.pidfd_loop())
        variants = {
            THEIRS: lambda: _timed(lambda: loop.run_until_complete(asyncio_in_flight(_ARGV, _TOTAL, _WINDOW))),
            OURS: lambda: _timed(lambda: in_flight(_ARGV, _TOTAL, _WINDOW)),
        }
        return Measured(interleaved(variants, rounds, block=1, drop=0))


IN_FLIGHT = Case(
    "in-flight", f"`sleep 0.2`, {_WINDOW} in flight, each with a timeout", THEIRS, _measure,
    (
        Goal(f"{_WINDOW} in flight: commands a second / asyncio (higher is better)",
             OURS, THEIRS, 1.3, 2.0, quantity="rate", higher=True),
        Goal(f"{_WINDOW} in flight: parent's CPU for each / asyncio", OURS, THEIRS, 1.0, 0.6, quantity="parent's CPU"),
    ),
    share=0.07,
)  # fmt: skip
