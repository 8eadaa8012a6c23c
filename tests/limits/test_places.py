"""Places: the executor is never where a limit can kill it, and finds a place that has controllers to give."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pinfold import PIPE
from pinfold.cgroup import places

CLI = Path(sys.executable).with_name("pinfold")
MIB = 1 << 20


def guards() -> dict[int, str]:
    """Our guards' cgroups, by pid."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            argv = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
            if argv[3:4] == [b"pinfold-guard"] and os.stat(f"/proc/{pid}").st_uid == os.geteuid():
                found[int(pid)] = places.place_of(pid).path
        except OSError:
            continue
    return found


def test_neither_the_executor_nor_its_guard_is_in_what_a_limit_kills(every_fold, worker, wait_until):
    # A command line is there a moment after the exec that its parent has seen (setup_arg_pages() of fs/exec.c).
    wait_until(lambda: every_fold.guard is None or every_fold.guard in guards(), "the guard's command line")
    before = guards()
    limits = {"memory_max": "64M", "pids_max": 9}
    with every_fold.start(worker("hold", 1), limits=limits, stdout=PIPE, timeout=60) as run:
        assert run.stdout.readline() == b"held\n"
        group = places.place_of(run.pid)
        ours = places.own_place().path
        of_this_fold = {pid: path for pid, path in guards().items() if pid not in before} or {
            pid: path for pid, path in before.items() if group.path.startswith(path.removesuffix("guard"))
        }
        assert Path(group.directory, "memory.oom.group").read_text() == "1\n"
        assert not f"{ours}/".startswith(f"{group.path}/")
        run.kill()
    result = run.wait()
    if result.placement.backend == "systemd":
        assert result.placement.unit is not None
        assert [path.split("/")[-2:] for path in of_this_fold.values()] == [[result.placement.unit, "guard"]]
    else:
        assert of_this_fold == {}
    # What is above the group and may carry its limits too is not killed as one.
    parent = Path(group.directory).parent
    assert not parent.exists() or (parent / "memory.oom.group").read_text() == "0\n"


# ---- a cgroup that holds processes, and so cannot give controllers as it is ----

HOST = """
    import json, pinfold, sys
    from pinfold.cgroup import places
    found = {"before": places.own_place().path}
    try:
        with pinfold.Fold(backend="cgroupfs", move_caller=sys.argv[1] == "may") as fold:
            result = fold.run(["true"], limits={"memory_max": "32M", "pids_max": 9, "cpu_max": 0.5})
            found["applied"], found["cgroup"] = result.limits["applied"], result.placement.cgroup
    except pinfold.Unsupported as error:
        found["error"], found["fix"] = str(error), error.fix
    found["after"] = places.own_place().path
    print(json.dumps(found))
"""


@pytest.fixture
def box(cgroup2, poll):
    """A cgroup of the test's with all controllers to give, and a limit, so that it is meant to be stayed in."""
    gives = cgroup2 / "cgroup.subtree_control"
    if not gives.exists() or "memory" not in gives.read_text():
        pytest.skip("needs a cgroup that can give controllers: run with PINFOLD_BACKEND=cgroupfs")
    directory = cgroup2 / "box"
    directory.mkdir()
    (directory / "memory.max").write_text(str(512 * MIB))
    yield directory
    (directory / "cgroup.kill").write_text("1")
    poll(lambda: "populated 0" in (directory / "cgroup.events").read_text(), "an empty box")
    for each in sorted(directory.rglob("*/"), reverse=True):
        if each.is_dir():
            each.rmdir()
    directory.rmdir()


@pytest.fixture
def in_the_box(box, slowness):
    """Run a command that sits in the box, and wait for its end."""

    def run(*argv, **options) -> subprocess.CompletedProcess[str]:
        enter = ["sh", "-c", 'echo $$ > "$0"/cgroup.procs; exec "$@"', box]
        return subprocess.run(
            [*enter, *argv], capture_output=True, text=True, timeout=20 * slowness, check=False, **options
        )

    return run


def told_by_host(in_the_box, word: str) -> dict:
    ended = in_the_box(sys.executable, "-c", textwrap.dedent(HOST), word)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_where_processes_are_in_the_way_that_is_said_and_nothing_moves(in_the_box):
    told = told_by_host(in_the_box, "may not")
    assert "/box, which holds processes itself" in told["error"]
    assert "move_caller=True" in told["fix"]
    assert told["after"] == told["before"]


def test_who_may_be_moved_sits_in_a_leaf_and_has_limits(in_the_box):
    told = told_by_host(in_the_box, "may")
    assert told.get("error") is None
    assert told["applied"] == {"memory_max": 32 * MIB, "memory_oom_group": True, "pids_max": 9, "cpu_max": 0.5}
    assert told["after"] == f"{told['before']}/pinfold-leaf"
    assert told["cgroup"].startswith(f"{told['before']}/pinfold-")


def test_the_command_line_moves_itself(in_the_box, box):
    ended = in_the_box(CLI, "run", "--backend=cgroupfs", "--memory=32M", "--", "cat", "/proc/self/cgroup")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "/box/pinfold-" in ended.stdout
    assert (box / "pinfold-leaf").is_dir()


# ---- a container's view: a cgroup namespace of its own, and its own /run ----

CONTAINER = """
    mount -t tmpfs none /run && umount -l "$0"; mount -t cgroup2 none "$0" && {remount} exec "$@"
"""


@pytest.fixture
def in_a_container(in_the_box, mount_point, slowness):
    """Run a command as a container would, with the box as the root of its cgroups."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make namespaces")
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare(1)")

    def run(*argv, remount: str = ""):
        script = CONTAINER.format(remount=remount)
        return in_the_box("unshare", "--cgroup", "--mount", "sh", "-c", script, mount_point, *argv)

    return run


def test_in_a_container_a_limit_is_kept(in_a_container, mount_point):
    script = 'cat /proc/self/cgroup; cat "$0$(sed -n s/^0:://p /proc/self/cgroup)/memory.max"'
    ended = in_a_container(CLI, "run", "--memory=32M", "--", "sh", "-c", script, mount_point)
    assert (ended.returncode, ended.stderr) == (0, "")
    cgroup, limit = ended.stdout.splitlines()[-2:]
    assert cgroup.startswith("0::/pinfold-")
    assert limit == str(32 * MIB)


def test_a_read_only_mount_in_a_container_is_one_clear_error(in_a_container, mount_point):
    ended = in_a_container(CLI, "run", "--memory=32M", "--", "true", remount='mount -o remount,ro,bind "$0" &&')
    assert ended.returncode == 125
    (line,) = ended.stderr.splitlines()
    assert f"mounted read-only at {mount_point}" in line
    assert f"mount -o remount,rw {mount_point}" in line
    assert all(f"{way} " in line for way in ("docker run", "podman run", "Kubernetes", "GitHub Actions"))
