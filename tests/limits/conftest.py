"""Limits against real controllers: what a host must have for that, and the worker that uses things up by measure."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from pinfold.cgroup import delegation, places
from pinfold.cgroup.controllers import available
from pinfold.errors import NoCgroup2, NotDelegated
from pinfold.runs.fold import Fold

WORKER = Path(__file__).parent / "worker.c"
MIB = 1 << 20
# What auto means is tests/conftest.py's: with "systemd" our own cgroup is left alone, and can give nothing.
BACKEND = os.environ.get("PINFOLD_BACKEND", "cgroupfs")
KINDS = {"cgroupfs": {}, "systemd": {}, "scope-per-run": {"scope_per_run": True}}


@pytest.fixture(autouse=True)
def controllers(session_cgroup):  # from where that one has put us
    """The controllers that runs can have; skips where limits of memory, processes and CPU cannot be real."""
    try:
        place = delegation.place_for_runs()
    except (NoCgroup2, NotDelegated) as error:
        pytest.skip(f"needs a writable cgroup v2: {error}")
    found = available(place.directory)
    if missing := {"cpu", "memory", "pids"} - found:
        pytest.skip(f"needs the controllers {', '.join(sorted(missing))}, which {place.path} does not have")
    return found


@pytest.fixture(scope="session")
def worker(tmp_path_factory):
    """`worker(WORD, NUMBER…)`: the argv of worker.c, compiled; skips where there is no C compiler."""
    cc = shutil.which("cc")
    if cc is None:
        pytest.skip("needs a C compiler (cc)")
    program = tmp_path_factory.mktemp("worker") / "worker"
    subprocess.run([cc, "-O1", "-o", program, WORKER], check=True, timeout=120)
    return lambda *arguments: [str(program), *map(str, arguments)]


def open_fold(kind: str, **options) -> Fold:
    """A fold by the name that a test has for it."""
    if kind != "cgroupfs" and not delegation.systemd_is_running():
        pytest.skip("needs systemd as the manager (/run/systemd/system)")
    if kind == "cgroupfs" and BACKEND == "systemd":
        pytest.skip("needs a cgroup that can give controllers: run with PINFOLD_BACKEND=cgroupfs")
    backend = "cgroupfs" if kind == "cgroupfs" else "systemd"
    return Fold(backend=backend, **KINDS[kind], **options)


@pytest.fixture(params=["cgroupfs", "systemd"])
def fold(request):
    """A fold of each backend."""
    with open_fold(request.param) as fold:
        yield fold


@pytest.fixture(params=KINDS)
def every_fold(request):
    """A fold of each backend, and one whose runs have scopes of their own."""
    with open_fold(request.param) as fold:
        yield fold


@pytest.fixture
def one_fold():
    """A fold of the backend that this session is about, for what takes long and is the kernel's."""
    with open_fold(BACKEND) as fold:
        yield fold


@pytest.fixture
def poll(slowness):
    """Ask now and then, with a deadline: `poll(lambda: …, "what should come")`. It leaves the CPU to the runs."""

    def ask(condition, what: str, deadline: float = 10.0):
        end = time.monotonic() + deadline * slowness
        while not (value := condition()):
            if time.monotonic() > end:
                pytest.fail(f"never came within {deadline * slowness} s: {what}")
            time.sleep(0.02)
        return value

    return ask


@pytest.fixture
def cgroup_of():
    """The directory of the cgroup that a process is in."""
    return lambda pid: Path(places.place_of(pid).directory)


@pytest.fixture(scope="session")
def mount_point():
    """Where cgroup2 is mounted."""
    own = places.own_place()
    return own.directory.removesuffix(own.path.rstrip("/")) if own.path != "/" else own.directory


@pytest.fixture
def files(mount_point):
    """`files(NAME…)`: the argv of a command that prints those files of its own cgroup; `files.read(TEXT)` its dict."""
    return Files(mount_point)


class Files:
    """The cgroup files of a command, read by the command."""

    def __init__(self, mount_point: str) -> None:
        self._script = f'cd "{mount_point}$(sed -n s/^0:://p /proc/self/cgroup)" && grep -s . "$@"; true'

    def __call__(self, *names: str) -> list[str]:
        return ["sh", "-c", self._script, "files", *names, os.devnull]

    @staticmethod
    def read(text: bytes) -> dict[str, str]:
        return dict(line.split(":", 1) for line in text.decode().splitlines())


@pytest.fixture
def report_figure(record_property, capsys):
    """Print a measured figure, whether the test passes or not."""

    def report(what: str, figure: float) -> None:
        record_property(what, figure)
        with capsys.disabled():
            print(f"\n  {what}: {figure:.4f}")

    return report


@pytest.fixture
def opened():
    """`opened(KIND, OPTION…)`: a fold that is closed at the end of the test."""
    folds: list[Fold] = []

    def open_(kind: str, **options) -> Fold:
        folds.append(open_fold(kind, **options))
        return folds[-1]

    yield open_
    for fold in folds:
        fold.close()
