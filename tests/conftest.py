"""What every test stands on: a cgroup of our own to run in, and the check that a test leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from pinfold.cgroup import controllers, delegation, names, places
from pinfold.errors import NoCgroup2, NotDelegated

# What `auto` means to the tests. With "systemd" they run in scopes of pinfold.slice, which systemd collects.
BACKEND = os.environ.setdefault("PINFOLD_BACKEND", "cgroupfs")

# How many times longer than usual this machine takes to start programs: an emulated one may need a 4. What a test waits
# for, or allows, is stretched by it; what it asserts is not.
SLOWNESS = float(os.environ.get("SLOWNESS", "1"))
DEADLINE = 5.0 * SLOWNESS  # seconds for anything that must settle by itself


def _place() -> places.Place | None:
    try:
        return places.delegated_place()
    except (NoCgroup2, NotDelegated):
        return None


@pytest.fixture(scope="session")
def session_cgroup():
    """A cgroup that holds the test process and everything it makes itself; its directory, or None without cgroup2."""
    place = _place()
    if place is None:
        yield None
        return
    home = Path(place.directory)
    own = home / f"pinfold-tests-{os.getpid()}"
    own.mkdir()
    before = places.own_place().directory
    seat = _seat(place, own)
    (seat / "cgroup.procs").write_text("0")
    yield own
    back = Path(before) / "cgroup.procs" if seat == own else home / names.LEAF / "cgroup.procs"
    back.write_text("0")
    end = time.monotonic() + DEADLINE
    while True:
        try:
            if seat != own:
                with contextlib.suppress(FileNotFoundError):
                    seat.rmdir()
            own.rmdir()
            return
        except OSError:
            if time.monotonic() > end:
                raise


def _seat(place: places.Place, own: Path) -> Path:
    """Where the test process sits: in `own`, or in a leaf below it where `own` has controllers to give to the runs."""
    if controllers.is_root(place.directory) or not controllers.available(place.directory) & controllers.ACCOUNTING:
        return own
    delegation.move_to_leaf(place)  # the shell that started us
    given = controllers.give(place, controllers.ACCOUNTING | {"cpuset"})
    controllers.give(places.Place(str(own), f"{place.path}/{own.name}", place.hierarchy), given)
    seat = own / "seat"
    seat.mkdir()
    return seat


def slice_directory() -> Path | None:
    """The cgroup of pinfold.slice, whether it is there or not; None without systemd."""
    if not delegation.systemd_is_running():
        return None
    own = places.own_place()
    top = Path(own.directory.removesuffix(own.path))
    return top / names.slice_path(os.geteuid())


@pytest.fixture
def cgroup2(session_cgroup):
    """The directory that runs' cgroups appear below; skips where there is no writable cgroup2."""
    if session_cgroup is None:
        pytest.skip("needs a writable cgroup v2")
    return session_cgroup


@pytest.fixture
def place2(cgroup2):
    """The Place of `cgroup2`."""
    own = places.own_place()
    return next(place for place in (own, *places.ancestors(own)) if place.directory == str(cgroup2))


@pytest.fixture
def delegated(cgroup2):
    """A cgroup that belongs to uid 65534, as cgroup-v2.rst has it under "Delegation"."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a cgroup to uid 65534 and become it")
    directory = cgroup2 / f"delegated-{time.monotonic_ns()}"
    directory.mkdir()
    for path in (directory, *(directory / f"cgroup.{name}" for name in ("procs", "threads", "subtree_control"))):
        os.chown(path, 65534, 65534)
    yield directory
    end = time.monotonic() + DEADLINE
    while directory.exists() and time.monotonic() < end:
        with contextlib.suppress(OSError):
            directory.rmdir()
    assert not directory.exists()


def cgroups_below(directory: Path | None) -> set[str]:
    """Every cgroup below a directory."""
    if directory is None:
        return set()
    return {root for root, _dirs, _files in os.walk(directory) if root != str(directory)}


def processes_below(directory: Path) -> set[int]:
    """Every process in a cgroup below a directory, not in the directory itself."""
    found: set[int] = set()
    for cgroup in cgroups_below(directory):
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in Path(cgroup, "cgroup.procs").read_text().split()}
    return found


def open_fds() -> dict[int, str]:
    """What is open in this process, by number."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return {fd: target for fd, target in found.items() if not target.startswith("/proc/")}


def _snapshot(directory: Path | None):
    return (
        open_fds(),
        {p.pid for p in psutil.Process().children(recursive=True)},
        {t.name for t in threading.enumerate()},
        cgroups_below(directory) | (cgroups_below(slice_directory()) if directory else set()),
    )


@pytest.fixture(autouse=True)
def no_leaks(session_cgroup):
    """After each test: no new fd, child, thread or cgroup. The default fold, if the test opened it, is closed first."""
    from pinfold.runs import fold

    before = _snapshot(session_cgroup)
    yield
    if fold._default is not None:
        fold._default.close()
        fold._default = None
    end = time.monotonic() + DEADLINE
    while True:
        after = _snapshot(session_cgroup)
        leaks = {
            what: sorted(new - old)
            for what, old, new in (
                ("fds", set(before[0].items()), set(after[0].items())),
                ("children", before[1], after[1]),
                ("threads", before[2], after[2]),
                ("cgroups", before[3], after[3]),
            )
            if new - old
        }
        if not leaks:
            return
        if time.monotonic() > end:
            pytest.fail(f"left behind: {leaks}")


@pytest.fixture(scope="session")
def slowness():
    """The factor for times that depend on the machine."""
    return SLOWNESS


@pytest.fixture
def wait_until():
    """Wait for a condition with a deadline: `wait_until(lambda: …, "what should come")`."""

    def wait(condition, what: str, deadline: float = DEADLINE):
        end = time.monotonic() + deadline
        while not (value := condition()):
            if time.monotonic() > end:
                pytest.fail(f"never came within {deadline} s: {what}")
            os.sched_yield()
        return value

    return wait
