"""Folds in scopes: one bus job, nothing moved, nothing left, and one clear error where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import pinfold
from pinfold.backend import manager as manager_module
from pinfold.backend import unit as unit_module

USER = os.geteuid() != 0
BUS = "XDG_RUNTIME_DIR" if USER else "DBUS_SYSTEM_BUS_ADDRESS"


@pytest.fixture
def fold(booted):
    with pinfold.Fold(backend="systemd") as fold:
        yield fold


def cgroup_of(pid):
    return Path(f"/proc/{pid}/cgroup").read_text().partition("0::")[2].strip()


def test_auto_takes_systemd_where_it_runs_and_says_so(booted, monkeypatch):
    monkeypatch.delenv("PINFOLD_BACKEND")
    with pinfold.Fold() as fold:
        placement = fold.run(["true"]).placement
    assert (placement.backend, placement.entry) == ("systemd", "clone3")
    assert placement.why == "auto: systemd is the manager here"
    assert placement.cgroup.startswith(fold.path)


def test_a_command_is_born_in_a_scope_of_pinfold_slice(fold, show):
    result = fold.run(["cat", "/proc/self/cgroup"], capture_output=True, text=True)
    unit = result.placement.unit
    assert f"/pinfold.slice/{unit}/runs/run-{result.run_id}" in result.stdout
    assert result.placement.entry == "clone3"
    assert show(unit, "Slice") == "pinfold.slice"
    assert show(unit, "Delegate") == "yes"
    assert show(unit, "TasksMax") == "infinity"
    assert str(os.getpid()) in show(unit, "Description")


def test_the_scope_is_gone_with_the_fold_and_systemd_knows_that_its_slice_may_go(booted, scopes, show, wait_until):
    with pinfold.Fold(backend="systemd") as fold:
        fold.run(["sh", "-c", "setsid sleep 60 &"])
        assert scopes()
        assert show("pinfold.slice", "StopWhenUnneeded") == "yes"
    wait_until(lambda: not scopes(), "the collection of the scope")


def test_neither_import_nor_open_nor_run_moves_the_caller(booted):
    before = cgroup_of("self")
    with pinfold.Fold(backend="systemd") as fold:
        fold.run(["true"])
        assert cgroup_of("self") == before
    assert cgroup_of("self") == before


def test_the_guard_is_outside_of_what_is_killed_and_small(fold):
    run = fold.start(["sleep", "60"])
    with run:
        guard = fold.guard
        assert cgroup_of(guard).endswith("/guard")
        assert not cgroup_of(guard).startswith(fold.path + "/")
        smaps = Path(f"/proc/{guard}/smaps_rollup").read_text()
        private = sum(int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Private_"))
        assert private <= 1024  # KiB
        run.kill()
        assert run.wait(10).outcome == "canceled"
        assert cgroup_of(guard).endswith("/guard")


def test_two_hundred_runs_are_one_job(fold, show, systemctl, wait_until):
    """`fold` keeps the slice, whose own start would be a job that systemd makes by itself."""
    installed = lambda: int(systemctl("show", "--property", "NInstalledJobs", "--value"))  # noqa: E731
    before = installed()
    with pinfold.Fold(backend="systemd") as busy:
        assert all(busy.run(["true"]).ok for _ in range(200))
    assert installed() - before == 1


@pytest.mark.parametrize("what", ["daemon-reload", "daemon-reexec"])
def test_runs_are_right_while_the_manager_is_reloaded(fold, systemctl, what):
    """Fifty runs for each; a stray in each has to be found in its cgroup whatever systemd does meanwhile."""
    if what == "daemon-reexec" and not USER and "TESTBED" in os.environ:
        pytest.skip("needs a caller that systemd does not wait for: systemd-run --wait ends at a daemon-reexec")
    done, failures = threading.Event(), []

    def reload() -> None:
        try:
            for _ in range(10):
                systemctl(what)
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=reload)
    thread.start()
    runs = 0
    while runs < 50 or not done.is_set():
        result = fold.run(["sh", "-c", "setsid sleep 60 & echo out; exit 3"], capture_output=True, timeout=30)
        assert (result.outcome, result.returncode, result.stdout) == ("exited", 3, b"out\n")
        assert (result.receipt.strays, result.receipt.emptied, result.receipt.removed) == (1, True, True)
        runs += 1
    thread.join(60)
    assert not failures
    with pinfold.Fold(backend="systemd") as another:
        assert another.run(["true"]).ok


def in_a_host(code, **environment):
    """Run a program that has another environment than ours, as the bus address is read from it."""
    return subprocess.run(
        [sys.executable, "-c", f"import pinfold, time\n{code}"],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


TRY = """
began = time.monotonic()
try:
    pinfold.Fold(backend="systemd")
except pinfold.Error as error:
    print(type(error).__name__, "|", error, "|", time.monotonic() - began < 8)
"""


def test_a_bus_that_is_gone_is_one_clear_error(booted, tmp_path):
    gone = str(tmp_path) if USER else f"unix:path={tmp_path}/gone"
    more = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={tmp_path}/gone"} if USER else {}
    code = TRY
    if USER:  # which is looked for in its usual place as well
        code = f"import pinfold.backend.bus_address as b\nb.user_sockets = lambda: ['{tmp_path}/bus']\n" + TRY
    done = in_a_host(code, **{BUS: gone}, **more)
    assert done.stdout.startswith("NoSystemd | "), done.stderr
    assert done.stdout.rstrip().endswith("| True")
    assert str(tmp_path) in done.stdout
    assert done.stdout.count("\n") == 1


def test_auto_says_why_it_is_not_systemd(booted, tmp_path):
    code = f"import pinfold.backend.bus_address as b\nb.user_sockets = lambda: ['{tmp_path}/bus']\n" * USER
    code += "print(pinfold.run(['true']).placement)"
    more = {BUS: str(tmp_path) if USER else f"unix:path={tmp_path}/gone"}
    done = in_a_host(code, **more, DBUS_SESSION_BUS_ADDRESS=f"unix:path={tmp_path}/gone", PINFOLD_BACKEND="auto")
    assert "backend='cgroupfs'" in done.stdout, done.stderr
    assert "auto: not systemd, as " in done.stdout
    assert str(tmp_path) in done.stdout


def test_a_job_that_hangs_ends_in_its_deadline_and_leaves_nothing(booted, monkeypatch, systemctl, scopes, wait_until):
    """A slice that waits for a unit that is never up."""
    directory = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "systemd/user")
    directory = directory if USER else Path("/run/systemd/system")
    directory.mkdir(parents=True, exist_ok=True)
    hangs = directory / "pinfold-hangs.service"
    hangs.write_text("[Service]\nType=oneshot\nExecStart=sleep infinity\n")
    slow = directory / "pinfoldslow.slice"
    slow.write_text("[Unit]\nRequires=pinfold-hangs.service\nAfter=pinfold-hangs.service\n")
    systemctl("daemon-reload")
    monkeypatch.setattr(manager_module.Manager.start_scope, "__defaults__", (1.0,))
    try:
        began = time.monotonic()
        with pytest.raises(pinfold.UnitError, match=r"not ended in time \(1 s\)"):
            pinfold.Fold(backend="systemd", slice="pinfoldslow.slice")
        assert time.monotonic() - began < 1.0 + manager_module.CLEAN_BOUND + 1
        assert not scopes()
    finally:
        systemctl("stop", "pinfold-hangs.service", "pinfoldslow.slice", check=False)
        systemctl("reset-failed", "pinfold-hangs.service", check=False)
        hangs.unlink()
        slow.unlink()
        systemctl("daemon-reload")


@pytest.mark.parametrize("name", ["a b.slice", "x/y.slice", "no.service", "-bad-.slice", "pinfold--x.slice", ""])
def test_a_slice_that_cannot_be_is_refused_before_anything_is_made(booted, name):
    if not name:
        with pinfold.Fold(backend="systemd", slice=None) as fold:
            assert "/pinfold.slice/" in fold.path
        return
    with pytest.raises(pinfold.UsageError, match="slice"):
        pinfold.Fold(backend="systemd", slice=name)


def test_an_exception_while_the_scope_is_settled_leaves_nothing(booted, monkeypatch, scopes, wait_until):
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(unit_module.delegation, "move", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pinfold.Fold(backend="systemd")
    wait_until(lambda: not scopes(), "the collection of the scope")


def test_many_folds_and_threads_at_once(booted):
    found: list[object] = []

    def work() -> None:
        try:
            with pinfold.Fold(backend="systemd") as fold:
                found.extend(fold.run(["true"]).outcome for _ in range(10))
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == ["exited"] * 80


def test_a_forked_child_leaves_the_scope_to_its_parent(fold):
    pid = os.fork()
    if pid == 0:
        fold.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert fold.run(["true"]).ok
