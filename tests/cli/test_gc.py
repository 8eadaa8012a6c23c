"""`pinfold gc`: what dead folds have left goes, and nothing else."""

from __future__ import annotations

import errno
import json
import os

import pytest

from pinfold.errors import CgroupError
from pinfold.lease import find

TREE = ["sh", "-c", "trap '' TERM; setsid sleep 60 & sleep 60 & echo ready; wait; sleep 60"]
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


def swept(ended):
    facts = json.loads(ended.stdout)
    assert facts["schema"] == 1
    return facts["swept"]


def test_nothing_to_do_is_nothing_said(ask):
    ended = ask("gc")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert swept(ask("gc", "--json")) == []


def test_a_dead_fold_is_removed_and_a_live_one_is_not_touched(executor, ask):
    live, dead = executor([[TREE, {}]]), executor([[TREE, {}]])
    dead.die()
    assert find.processes(dead.place)  # the negative control: without a guard and a gc they stay
    ended = ask("gc")
    why = f"its owner, process {dead.process.pid}, is gone"
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"removed {dead.fold} ({why}): killed 3 processes\n"
    assert not os.path.exists(dead.place.directory)
    assert len(find.processes(live.place)) == 3
    assert ask("gc").stdout == ""


def test_a_dry_run_changes_nothing(executor, ask):
    dead = executor([[TREE, {}]])
    dead.die()
    there = sorted(find.processes(dead.place))
    ended = ask("gc", "--dry-run")
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"would remove {dead.fold} (")
    assert ended.stdout.endswith("would kill 3 processes\n")
    facts = json.loads(ask("gc", "--dry-run", "--json").stdout)
    assert facts["dry_run"] is True
    [found] = facts["swept"]
    assert (found["cgroup"], found["what"], found["action"]) == (dead.fold, "fold", "would remove")
    assert (sorted(found["pids"]), found["left"]) == (there, [])
    assert sorted(find.processes(dead.place)) == there
    [found] = swept(ask("gc", "--json"))
    assert (found["action"], sorted(found["pids"])) == ("removed", there)


@pytest.mark.parametrize("record", [b"{}", b"\x1b[2J", b'{"schema":2}'])
def test_a_malformed_record_is_reported_and_its_cgroup_not_touched(ask, cgroup2, record):
    base = cgroup2 / "pinfold-0123456789ab"
    base.mkdir()
    try:
        os.setxattr(base, "user.pinfold.owner", record)
        ended = ask("gc")
        [found] = swept(ask("gc", "--json"))
    finally:
        base.rmdir()  # it is still there
    assert ended.returncode == 0
    assert ended.stdout.startswith("not touched: ")
    assert ended.stdout.isascii()
    assert "\x1b" not in ended.stdout
    assert found["action"] == "foreign"
    assert "cannot be read" in found["why"]


def test_what_was_made_and_never_signed_is_removed(ask, cgroup2):
    base = cgroup2 / "pinfold-0123456789ab"
    base.mkdir()
    [found] = swept(ask("gc", "--json"))
    assert (found["what"], found["action"]) == ("cgroup", "removed")
    assert not base.exists()


@pytest.mark.parametrize("refused", [False, True])
def test_what_cannot_be_removed_is_said_and_the_next_is_swept_all_the_same(executor, ask_here, monkeypatch, refused):
    dead = [executor([[TREE, {}]]) for _ in range(2)]
    for each in dead:
        each.die()
    from pinfold.cgroup import kill

    end_all, held = kill.end_all, []

    def hold_the_first(cgroup, bound):
        """As a tracer or a broken driver does."""
        if not held:
            held.append(cgroup.path)
            if refused:
                raise CgroupError("write", f"{cgroup.path}/cgroup.kill", PermissionError(errno.EPERM, "no"), "1")
        return cgroup.path not in held and end_all(cgroup, bound)

    with monkeypatch.context() as patched:
        patched.setattr(kill, "end_all", hold_the_first)
        status, out, _ = ask_here("gc", "--json")
    found = {each["cgroup"]: each for each in json.loads(out)["swept"]}
    assert status == 1
    assert found.keys() == {each.fold for each in dead}
    left = found.pop(held[0])
    assert (left["action"], len(left["left"])) == ("left", 0 if refused else 3)
    assert ("cgroup.kill=1: no" in left["why"]) == refused
    assert [each["action"] for each in found.values()] == ["removed"]
    assert ask_here("gc")[0] == 0


@ROOT_ONLY
def test_a_user_sweeps_his_own_and_root_everybodys(delegated, executor, ask):
    of_root, of_nobody = executor([[TREE, {}]]), executor([[TREE, {}]], nobody=delegated)
    of_root.die()
    of_nobody.die()
    ended = ask("gc", "--json", nobody=delegated)
    assert {each["cgroup"]: each["action"] for each in swept(ended)} == {
        of_root.fold: "foreign", of_nobody.fold: "removed"
    }  # fmt: skip
    assert ended.returncode == 0
    assert len(find.processes(of_root.place)) == 3
    assert {each["cgroup"]: each["action"] for each in swept(ask("gc", "--json"))} == {of_root.fold: "removed"}


def test_a_process_that_proc_does_not_show_is_not_taken_for_dead(monkeypatch):
    """hidepid=, and no CAP_SYS_PTRACE: there /proc/PID is missing, and kill(2) knows better."""
    from pinfold.lease import owner

    pid = os.getppid()
    assert not owner._is_hidden(pid)
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != f"/proc/{pid}/stat" and exists(path))
    assert owner._is_hidden(pid)
    assert not owner._is_hidden(2**22 + 1)
