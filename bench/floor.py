"""The C floor (floor.c): built when it is needed, and asked for one measurement at a time, between those of others."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator

from bench import ground
from bench.words import Missing, Sample

Ask = Callable[[str], Sample]

_SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "floor.c")


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="pinfold-bench-")  # goes with this process


@functools.cache
def build() -> str:
    """The program's path."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Missing("no C compiler (Debian: gcc libc6-dev)")
    path = os.path.join(_scratch().name, "floor")
    built = subprocess.run([compiler, "-O2", "-Wall", "-o", path, _SOURCE], check=False, capture_output=True, text=True)
    if built.returncode:
        raise Missing(f"floor.c cannot be built: {built.stderr.strip().splitlines()[0]}")
    return path


@contextlib.contextmanager
def serving() -> Iterator[Ask]:
    """The floor's own process, with a cgroup to work in: `ask("fresh true")` is the time that it took."""
    program = build()
    with (
        ground.cgroup() as cgroup,
        subprocess.Popen(
            [program, "serve", cgroup], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server,
    ):

        def ask(what: str) -> Sample:
            assert server.stdin is not None
            assert server.stdout is not None
            print(what, file=server.stdin, flush=True)
            answer = server.stdout.readline()
            if not answer:
                raise RuntimeError(f"the C floor has ended at {what!r}; its message is above")
            return {"time": int(answer) / 1e9}

        yield ask
