"""One command at a time: how long until its result is there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator

import pinfold
from bench import floor, ground
from bench.cases import loops
from bench.rounds import State, interleaved
from bench.words import Case, Goal, Measured, Missing, Variant

TRUE_ARGV = ["/bin/true"]
ECHO_ARGV = ["/bin/sh", "-c", "echo out; echo err >&2"]

STANDARD = "subprocess.run"
SPAWN = "os.posix_spawn, wait"
OURS = "pinfold.run, timeout"
STANDARD_READ, OURS_READ = "subprocess.run(capture_output)", "pinfold.run(capture_output), timeout"
BARE = "C floor, no cgroup"
FRESH = "C floor, fresh cgroup"

_SLEEPERS = 1000
_OPEN = 19_000
_HEAP = 1 << 30


def _spawn(argv: list[str]) -> None:
    _pid, status = os.waitpid(os.posix_spawn(argv[0], argv, os.environ), 0)
    assert status == 0


def _spawn_and_read(argv: list[str]) -> None:
    """The least that gets both streams: enough for a few bytes, not for a command that fills the second one first."""
    ends = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
    redirect = [(os.POSIX_SPAWN_DUP2, write, fd) for fd, (_read, write) in enumerate(ends, 1)]
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=redirect)
    for _read, write in ends:
        os.close(write)
    for read, _write in ends:
        while os.read(read, 65536):
            pass
        os.close(read)
    os.waitpid(pid, 0)


async def _asyncio(argv: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(*argv)
    async with asyncio.timeout(5):
        await process.wait()


async def _asyncio_and_read(argv: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(5):
        await process.communicate()


def _simple() -> dict[str, Variant]:
    return {
        STANDARD: lambda: subprocess.run(TRUE_ARGV, check=True),
        SPAWN: lambda: _spawn(TRUE_ARGV),
        OURS: _ours,
    }


def _ours() -> None:
    assert pinfold.run(TRUE_ARGV, timeout=5).returncode == 0


def _add_floor(stack: contextlib.ExitStack, variants: dict[str, Variant], skipped: dict[str, str], what: str) -> None:
    try:
        ask = stack.enter_context(floor.serving())
    except Missing as why:
        skipped["C floor"] = str(why)
        return
    variants[BARE] = lambda: ask(f"bare {what}")
    variants[FRESH] = lambda: ask(f"fresh {what}")


def _true(rounds: int) -> Measured:
    found = Measured({})
    with contextlib.ExitStack() as stack:
        loop = stack.enter_context(loops.pidfd_loop())
        variants = _simple()
        variants["subprocess.run, timeout"] = lambda: subprocess.run(TRUE_ARGV, check=True, timeout=5)
        variants["asyncio, timeout"] = lambda: loop.run_until_complete(_asyncio(TRUE_ARGV))
        _add_floor(stack, variants, found.skipped, "true")
        found.samples = interleaved(variants, rounds)
    return found


def _echo(rounds: int) -> Measured:
    found = Measured({})
    with contextlib.ExitStack() as stack:
        loop = stack.enter_context(loops.pidfd_loop())
        variants: dict[str, Variant] = {
            STANDARD_READ: lambda: subprocess.run(ECHO_ARGV, check=True, capture_output=True),
            f"{STANDARD_READ}, timeout": lambda: subprocess.run(ECHO_ARGV, check=True, capture_output=True, timeout=5),
            SPAWN + ", read": lambda: _spawn_and_read(ECHO_ARGV),
            "asyncio, communicate, timeout": lambda: loop.run_until_complete(_asyncio_and_read(ECHO_ARGV)),
            OURS_READ: lambda: pinfold.run(ECHO_ARGV, capture_output=True, timeout=5),
        }
        _add_floor(stack, variants, found.skipped, "echo")
        found.samples = interleaved(variants, rounds)
    return found


def _idle(rounds: int) -> Measured:
    found = Measured({})
    with contextlib.ExitStack() as stack:
        variants = _simple()
        _add_floor(stack, variants, found.skipped, "true")
        found.samples = interleaved(variants, rounds, block=2, gap=0.06)
    return found


def _heap(rounds: int) -> Measured:
    heap = bytearray(_HEAP)
    heap[::4096] = b"x" * len(heap[::4096])  # touched, so that there are pages
    return Measured(interleaved(_simple(), rounds))


@contextlib.contextmanager
def _sleepers() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(pinfold.start(["/bin/sleep", "600"])) for _ in range(_SLEEPERS)]
        try:
            yield
        finally:
            for run in runs:
                run.kill()


def _live(rounds: int) -> Measured:
    ground.need_descriptors(20_000)
    states: dict[str, State] = {"none live": contextlib.nullcontext, f"{_SLEEPERS} live": _sleepers}
    # A second's storm of starts and kills goes before each block: the kernel is given some calls to clear up after it.
    return Measured(interleaved(_simple(), rounds, block=20, drop=20, states=states))


@contextlib.contextmanager
def _many_open() -> Iterator[None]:
    first = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    opened = [first, *(os.dup(first) for _ in range(_OPEN - 1))]
    try:
        yield
    finally:
        for fd in opened:  # what others opened meanwhile lies between them
            os.close(fd)


def _descriptors(rounds: int) -> Measured:
    ground.need_descriptors(_OPEN + 500)
    pinfold.run(TRUE_ARGV)  # what it keeps open is opened below the many
    states: dict[str, State] = {"few open": contextlib.nullcontext, f"{_OPEN} open": _many_open}
    return Measured(interleaved(_simple(), rounds, block=5, states=states))


TRUE = Case(
    "true", "`true`, in a fresh cgroup, with a timeout", STANDARD, _true,
    (Goal("`run(true)` / `subprocess.run(true)`", OURS, STANDARD, 1.10, 0.95),),
)  # fmt: skip
ECHO = Case(
    "echo", "`echo` to both streams, with a timeout", STANDARD_READ, _echo,
    (Goal("`run(echo)`, both streams / `subprocess.run(capture_output)`",
          OURS_READ, STANDARD_READ, 1.05, 0.95),),
)  # fmt: skip
IDLE = Case(
    "idle", "`true`, each after 60 ms idle", STANDARD, _idle,
    (Goal("`run(true)` after 60 ms idle / `subprocess.run(true)` likewise", OURS, STANDARD, 1.15, 1.00),),
    share=0.3,
)  # fmt: skip
HEAP = Case(
    "heap", "`true`, with a heap of 1 GiB", STANDARD, _heap,
    (Goal("`run(true)` with a heap of 1 GiB / `subprocess.run(true)` likewise", OURS, STANDARD, 1.10, 1.00),),
)  # fmt: skip
LIVE = Case(
    "live", f"`true`, beside {_SLEEPERS} live runs of the same process", f"{STANDARD}, none live", _live,
    (Goal(f"`run(true)` beside {_SLEEPERS} live runs / none live",
          f"{OURS}, {_SLEEPERS} live", f"{OURS}, none live", 1.15, 1.05),),
    share=0.08,
)  # fmt: skip
DESCRIPTORS = Case(
    "descriptors", f"`true`, with {_OPEN} descriptors open in the parent", f"{STANDARD}, few open", _descriptors,
    (Goal(f"`run(true)` beside {_OPEN} open descriptors / few open",
          f"{OURS}, {_OPEN} open", f"{OURS}, few open", 1.10, 1.00),),
    share=0.3,
)  # fmt: skip
