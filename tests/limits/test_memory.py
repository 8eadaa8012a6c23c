"""Memory: who dies at whose limit, and what the Result says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pinfold import Fold
from pinfold.cgroup import delegation

MIB = 1 << 20
LIMIT = 32 * MIB


def log_is_open() -> bool:
    """Whether the kernel's log, which names the victim, can be read."""
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def test_a_memory_hog_dies_at_its_limit_and_the_result_says_whose_it_was(every_fold, worker, slowness):
    result = every_fold.run(worker("hog"), limits={"memory_max": LIMIT}, timeout=20 * slowness)
    events = result.events
    assert (result.outcome, result.returncode) == ("oom_killed", -9)
    assert 0.99 * LIMIT <= result.usage.memory_peak <= LIMIT
    assert events["oom"] >= 1
    assert events["oom_kill"] >= 1
    assert events["oom_by"] == "own"
    assert result.placement.cgroup.startswith(events["oom_cgroup"])
    assert events["oom_process"] == ({"pid": result.pid, "comm": "worker"} if log_is_open() else None)
    assert not events["stall"]
    assert result.receipt.emptied
    assert result.receipt.removed


def test_the_whole_group_dies_with_its_hog(every_fold, worker, slowness):
    script = 'sleep 60 & "$@"; echo survived'
    argv = ["sh", "-c", script, "sh", *worker("hog")]
    result = every_fold.run(argv, limits={"memory_max": LIMIT}, timeout=20 * slowness, capture_output=True)
    assert (result.outcome, result.returncode, result.stdout) == ("oom_killed", -9, b"")
    assert result.events["oom_by"] == "own"
    assert result.limits["applied"]["memory_oom_group"] is True
    assert result.receipt.emptied


def test_without_the_group_the_siblings_live_on_and_the_result_tells_of_the_kill(every_fold, worker, slowness):
    script = 'sleep 60 & "$@"; echo "$?"; kill -0 $! && echo lives; exit 3'
    argv = ["sh", "-c", script, "sh", *worker("hog")]
    limits = {"memory_max": LIMIT, "memory_oom_group": False}
    result = every_fold.run(argv, limits=limits, timeout=20 * slowness, capture_output=True)
    assert (result.outcome, result.returncode) == ("exited", 3)
    assert result.stdout == b"137\nlives\n"
    assert (result.events["oom_kill"], result.events["oom_by"]) == (1, "own")
    assert [stray.comm for stray in result.receipt.stray_processes] == ["sleep"]


def test_a_limit_that_the_command_sets_itself_below_is_told_apart(every_fold, worker, mount_point, slowness):
    script = f"""
        set -e
        cd "{mount_point}$(sed -n s/^0:://p /proc/self/cgroup)"
        mkdir rest tight
        echo $$ > rest/cgroup.procs
        echo +memory > cgroup.subtree_control
        echo {16 * MIB} > tight/memory.max
        set +e
        sh -c 'echo $$ > tight/cgroup.procs; exec "$@"' sh "$@"
        echo "$?"
    """
    argv = ["sh", "-c", script, "sh", *worker("hog")]
    result = every_fold.run(argv, limits={"memory_max": "128M"}, timeout=20 * slowness, capture_output=True)
    assert (result.outcome, result.stdout) == ("exited", b"137\n"), result.stderr
    assert result.events["oom_by"] == "below"
    assert result.events["oom_kill"] == 1
    assert result.usage.memory_peak < 32 * MIB


@pytest.fixture
def tenant_slice():
    """A slice with 48M for all in it, as an operator sets it up."""
    if not delegation.systemd_is_running():
        pytest.skip("needs systemd as the manager (/run/systemd/system)")
    name = f"pinfoldtest-{os.getpid()}.slice"
    systemctl = ["systemctl", *(["--user"] if os.geteuid() else [])]
    subprocess.run([*systemctl, "set-property", "--runtime", name, "MemoryMax=48M"], check=True, timeout=60)
    yield name
    subprocess.run([*systemctl, "stop", name], check=True, timeout=60)
    subprocess.run([*systemctl, "revert", name], check=True, timeout=60, capture_output=True)


@pytest.mark.parametrize("per_run", [False, True])
@pytest.mark.parametrize("limits", [None, {"memory_max": "128M"}])
def test_the_limit_of_the_slice_above_is_told_apart(tenant_slice, worker, slowness, per_run, limits):
    with Fold(backend="systemd", slice=tenant_slice, scope_per_run=per_run) as fold:
        result = fold.run(worker("hog"), limits=limits, timeout=20 * slowness)
        assert (result.outcome, result.returncode) == ("signaled", -9)
        assert result.events["oom_by"] == "ancestor"
        assert result.events["oom_cgroup"].rpartition("/")[2] == tenant_slice
        assert fold.run(["true"]).ok


# In a process of its own, in a cgroup of the test's.
HOST = """
    import json, pinfold, sys
    with pinfold.Fold(backend="cgroupfs") as fold:
        result = fold.run(sys.argv[2:], timeout=float(sys.argv[1]), limits={"memory_max": "512M"})
    print(result.to_json())
"""


@pytest.fixture
def tenant(cgroup2):
    """A cgroup of the test's, with 96M for all in it."""
    if (
        not (cgroup2 / "cgroup.subtree_control").exists()
        or "memory" not in (cgroup2 / "cgroup.subtree_control").read_text()
    ):
        pytest.skip("needs a cgroup that can give controllers: run with PINFOLD_BACKEND=cgroupfs")
    directory = cgroup2 / "tenant"
    directory.mkdir()
    (directory / "memory.max").write_text(str(96 * MIB))
    (directory / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    (directory / "seat").mkdir()
    yield directory
    (directory / "seat").rmdir()
    directory.rmdir()


def test_the_limit_of_a_cgroup_above_is_told_apart(tenant: Path, worker, slowness):
    enter = ["sh", "-c", 'echo $$ > "$0"/cgroup.procs; exec "$@"', tenant / "seat"]
    host = [sys.executable, "-c", textwrap.dedent(HOST), str(20 * slowness)]
    ended = subprocess.run([*enter, *host, *worker("hog")], capture_output=True, timeout=60 * slowness, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert (result["outcome"], result["returncode"]) == ("signaled", -9)
    assert (result["events"]["oom_by"], result["events"]["oom_cgroup"].rpartition("/")[2]) == ("ancestor", "tenant")
