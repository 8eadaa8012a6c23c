"""pinfold-gc.service and its timer, as a host would install them; the slice that systemd leaves."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pinfold
from pinfold.backend import idle_slice
from pinfold.cgroup import places
from pinfold.lease import find, sweep

UNITS = Path(__file__).parent.parent.parent / "systemd"
INSTALLED = Path("/run/systemd/system")
CLI = Path(sys.executable).with_name("pinfold")
SLICE = "pinfold.slice"
# An executor that says where its runs are and who guards them, and waits to be killed.
EXECUTOR = """
import time
import pinfold

fold = pinfold.Fold(backend="systemd")
run = fold.start(["sh", "-c", "setsid sleep 60 & sleep 60"])
print(fold.guard, fold.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def dead_fold(booted, wait_until):
    """The base cgroup of a fold whose owner and guard have been killed."""
    process = subprocess.Popen([sys.executable, "-c", EXECUTOR], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 30)[0], "the executor said nothing"
    guard, path = process.stdout.readline().decode().split()
    place = places.place_at(path)
    wait_until(lambda: len(find.processes(place)) >= 2, "the run of the fold")
    process.send_signal(signal.SIGSTOP)  # it would see the end of its guard
    os.kill(int(guard), signal.SIGKILL)
    process.kill()
    process.wait(30)
    process.stdout.close()
    yield place
    list(sweep.sweep(places.place_at(os.path.dirname(path)) if os.path.isdir(place.directory) else place))


@pytest.fixture
def installed(booted, systemctl):
    """The service and the timer, installed until the next boot, with the pinfold of these tests."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to install a unit")
    files = [INSTALLED / "pinfold-gc.service", INSTALLED / "pinfold-gc.timer"]
    if any(file.exists() for file in files):
        pytest.skip("this host has a pinfold-gc.service in /run")
    for file in files:
        text = (UNITS / file.name).read_text()
        assert ("ExecStart=/usr/bin/pinfold gc\n" in text) == (file.suffix == ".service")
        text = text.replace("ExecStart=/usr/bin/pinfold", f'ExecStart="{CLI}"')
        for private in ("ProtectHome", "PrivateTmp"):  # where a checkout may be
            text = text.replace(f"{private}=yes", f"{private}=no")
        file.write_text(text)
    systemctl("daemon-reload")
    yield files
    for file in reversed(files):
        systemctl("stop", file.name, check=False)
        file.unlink()
    systemctl("daemon-reload")
    systemctl("reset-failed", "pinfold-gc.service", check=False)


def collect(systemctl, show):
    """Start the service, and return what it said; systemctl waits for its end."""
    systemctl("start", "pinfold-gc.service", check=False)
    said = systemctl("status", "--full", "--lines=100", "pinfold-gc.service", check=False)
    assert show("pinfold-gc.service", "Result") == "success", said
    return said


def test_the_units_are_without_fault(installed):
    done = subprocess.run(
        ["systemd-analyze", "verify", *installed], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "pinfold-gc" in line]) == (0, [])


def test_the_service_sweeps_a_dead_fold_hardened_as_it_is(installed, dead_fold, systemctl, show, wait_until):
    assert os.path.isdir(dead_fold.directory)
    said = collect(systemctl, show)
    assert f"removed {dead_fold.path} (its owner, process" in said
    assert not os.path.exists(dead_fold.directory)
    wait_until(lambda: not os.path.exists(os.path.dirname(dead_fold.directory)), "the end of its scope")


def test_the_service_leaves_a_live_fold_of_another_user(installed, systemctl, show, wait_until):
    """Whom /proc would not show, were it not for ProtectProc=default."""
    own = places.own_place()
    home = Path(own.directory) / f"for-nobody-{os.getpid()}"
    home.mkdir()
    for path in (home, home / "cgroup.procs"):
        os.chown(path, 65534, 65534)
    code = """
import os, sys
import pinfold.backend.cgroupfs, pinfold.lease.sweep, pinfold.runs.run, pinfold.limits
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
fold = pinfold.Fold(backend="cgroupfs", spare=False)
run = fold.start(["sleep", "60"])
print(fold.path, flush=True)
sys.stdin.read()
run.kill()
assert run.wait(10).outcome == "canceled"
fold.close()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", text=True
    )
    try:
        assert select.select([process.stdout], [], [], 30)[0]
        path = process.stdout.readline().strip()
        assert os.path.isdir(places.place_at(path).directory)
        collect(systemctl, show)
        assert find.processes(places.place_at(path))
    finally:
        process.communicate("", timeout=30)
        wait_until(lambda: not find.below(places.Place(str(home), "", own.hierarchy)), "the end of the fold")
        home.rmdir()
    assert process.returncode == 0


def test_a_slice_that_systemd_left_is_stopped(booted, show, wait_until):
    manager = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
    call = ["StartTransientUnit", "ssa(sv)a(sa(sv))", SLICE, "fail", "0", "0"]
    whose = ["--user"] if os.geteuid() else []
    subprocess.run(["busctl", *whose, "call", *manager, *call], check=True, timeout=30, stdout=subprocess.DEVNULL)
    wait_until(lambda: show(SLICE, "ActiveState") == "active", "the slice")
    top = find.top()
    [found] = idle_slice.sweep(top, dry_run=True)
    assert (found.what, found.action, found.cgroup[-13:]) == ("slice", "would remove", SLICE)
    assert show(SLICE, "ActiveState") == "active"
    [found] = idle_slice.sweep(top, dry_run=False)
    assert found.action == "removed"
    assert show(SLICE, "ActiveState") == "inactive"
    assert list(idle_slice.sweep(top, dry_run=False)) == []


def test_a_slice_in_use_is_not_stopped(booted, wait_until):
    with pinfold.Fold(backend="systemd") as fold:
        assert fold.run(["true"]).ok
        assert list(idle_slice.sweep(find.top(), dry_run=False)) == []
        assert fold.run(["true"]).ok
