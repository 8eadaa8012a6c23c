"""A scope of its own for a run: seen in systemctl with its name, description, slice and limits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pinfold

CLI = Path(sys.executable).with_name("pinfold")
USER = os.geteuid() != 0


def pinfold_run(*arguments, **environment):
    return subprocess.run(
        [CLI, "run", *arguments], env={**os.environ, "PINFOLD_BACKEND": "auto", **environment},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def name():
    return f"pinfold-test-{os.getpid()}.scope"


def test_a_run_with_a_unit_is_seen_under_its_name(booted, name, show, systemctl):
    with pinfold.Fold(backend="systemd", slice="jobs-tenant.slice") as fold:
        run = fold.start(["sh", "-c", "sleep 60; :", "one\ntwo"], unit=name)
        with run:
            assert show(name, "ActiveState") == "active"
            assert show(name, "Description") == "sh -c sleep 60; : one?two"
            assert show(name, "Slice") == "jobs-tenant.slice"
            assert f'{run.pid} sh -c "sleep 60; :"' in systemctl("status", "--full", name)
            run.kill()
        assert run.wait().placement.unit == name
    systemctl("stop", "jobs.slice")  # with the one below; slices stay when they are empty


def test_its_limits_are_properties_of_the_unit_and_in_force(booted, name, show):
    limits = {"memory_max": "64M", "pids_max": 32, "cpu_max": 0.5, "cpu_weight": 50, "requirement": "best_effort"}
    with pinfold.Fold(backend="systemd", scope_per_run=True) as fold:
        run = fold.start(["sleep", "60"], unit=name, limits=limits)
        with run:
            assert show(name, "MemoryMax") == str(64 << 20)
            assert show(name, "TasksMax") == "32"
            assert show(name, "CPUQuotaPerSecUSec") == "500ms"
            assert show(name, "CPUWeight") == "50"
            run.kill()
    result = run.wait()
    controllers = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    if "memory" in controllers:
        assert result.limits["applied"] == {
            "memory_max": 64 << 20, "memory_oom_group": True, "pids_max": 32, "cpu_max": 0.5, "cpu_weight": 50,
        }  # fmt: skip
    else:  # systemd takes what it cannot keep; we say what is not in force
        assert set(result.limits["missing"]) == {"memory_max", "pids_max", "cpu_max", "cpu_weight"}


def test_a_unit_that_is_there_is_refused_and_not_touched(booted, name, units, show):
    with pinfold.Fold(backend="systemd") as fold:
        run = fold.start(["sleep", "60"], unit=name)
        with run:
            with pytest.raises(pinfold.UnitError, match="UnitExists"):
                fold.run(["true"], unit=name)
            assert show(name, "ActiveState") == "active"
            run.kill()
        assert run.wait().outcome == "canceled"
        assert fold.run(["true"]).ok


@pytest.mark.parametrize("bad", ["a b", "x/y.scope", "x.service", "", ".scope", "a" * 300])
def test_a_name_that_no_unit_can_have_is_refused(booted, bad):
    with pinfold.Fold(backend="systemd") as fold, pytest.raises(pinfold.UsageError, match="scope"):
        fold.run(["true"], unit=bad)


def test_the_command_line_runs_in_the_named_unit(booted, name):
    done = pinfold_run("--unit", name, "--", "cat", "/proc/self/cgroup")
    assert done.returncode == 0, done.stderr
    assert f"/pinfold.slice/{name}/" in done.stdout


def test_the_command_line_refuses_units_where_systemd_is_not_used(booted, name):
    done = pinfold_run("--backend", "cgroupfs", "--unit", name, "--", "true")
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "systemd" in done.stderr


def test_thirty_runs_in_scopes_of_their_own_leave_no_unit(booted, scopes, wait_until):
    with pinfold.Fold(backend="systemd", scope_per_run=True) as fold:
        results = [fold.run(["sh", "-c", "setsid sleep 60 &"]) for _ in range(30)]
    assert {result.placement.unit for result in results}.__len__() == 30
    assert all(result.receipt.strays == 1 and result.receipt.removed for result in results)
    wait_until(lambda: not scopes(), "the collection of the scopes")


def test_a_run_within_a_run_stays_within_its_limits(booted):
    """Its own scope would be beside the outer one, and free of what that is held to."""
    outer = ["--", CLI, "run", "--", "cat", "/proc/self/cgroup"]
    done = pinfold_run(*outer)
    assert done.returncode == 0, done.stderr
    path = next(line for line in done.stdout.splitlines() if line.startswith("0::"))
    assert path.count("/run-") == 2
    assert path.count(".scope") == 1
