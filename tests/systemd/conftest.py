"""The tests' own look at systemd, by systemctl(1), and the check that no unit of ours is left."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from pinfold.backend.manager import Manager
from pinfold.runs import fold

USER = os.geteuid() != 0
DEADLINE = 5.0 * float(os.environ.get("SLOWNESS", "1"))


def _systemctl(*arguments: str, check: bool = True) -> str:
    argv = ["systemctl", *(["--user"] if USER else []), "--no-pager", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    if check and done.returncode:
        pytest.fail(f"{' '.join(argv)}: {done.stderr}")
    return done.stdout.strip()


def _stop_the_slice_that_systemd_left() -> None:
    """A slice that nobody needs is stopped at most 16 times in 10 s (systemd, auto_start_stop_ratelimit of a unit).

    Tests are quicker than that. One in which there still is a scope has not been left by systemd, but by us.
    """
    end = time.monotonic() + 1
    while _units() and time.monotonic() < end:
        time.sleep(0.02)
    if [line.split()[0] for line in _units()] == ["pinfold.slice"]:
        _systemctl("stop", "pinfold.slice", check=False)


def _units() -> list[str]:
    return _systemctl("list-units", "--all", "--plain", "--no-legend", "pinfold*").splitlines()


@pytest.fixture(scope="session")
def booted():
    """Skips where systemd is not the init, as sd_booted(3) finds out."""
    if not os.path.isdir("/run/systemd/system"):
        pytest.skip("needs a system that was booted with systemd")


@pytest.fixture
def systemctl(booted):
    """Run systemctl(1) for our manager, and return what it says: `systemctl("show", unit, check=False)`."""
    return _systemctl


@pytest.fixture
def manager(booted):
    """A connection to our manager: the system's for root, the user's for others."""
    with Manager.connect(user=USER) as manager:
        yield manager


@pytest.fixture
def units(booted):
    """Our units, as `systemctl list-units --all 'pinfold*'` has them: a line each."""
    return _units


@pytest.fixture
def scopes(booted):
    """Those of them that are scopes."""
    return lambda: [line for line in _units() if ".scope" in line]


@pytest.fixture
def show(systemctl):
    """One property of a unit."""
    return lambda unit, name: systemctl("show", "--property", name, "--value", unit)


@pytest.fixture(autouse=True)
def no_units_left(no_leaks):
    """After each test: no unit of ours, not even a failed one. systemd collects them on its own time."""
    yield
    if not os.path.isdir("/run/systemd/system"):
        return
    if fold._default is not None:
        fold._default.close()
        fold._default = None
    end = time.monotonic() + DEADLINE
    _stop_the_slice_that_systemd_left()
    while left := _units():
        names = [line.split()[0] for line in left]
        if time.monotonic() > end:
            _systemctl("kill", "--signal=KILL", *names, check=False)
            _systemctl("reset-failed", *names, check=False)
            pytest.fail(f"units left behind: {left}")
