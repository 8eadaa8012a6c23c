"""A login session: the one place from where a user has to move into the scope, and who does that and who does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pinfold.cgroup import places

OWN = "from pinfold.cgroup.places import own_place\nown = lambda: own_place().path"
CLI = Path(sys.executable).with_name("pinfold")


@pytest.fixture(autouse=True)
def _session(booted):
    """Skips outside of a login session's scope; a test's own processes are moved, never this one."""
    path = places.own_place().path
    if os.geteuid() == 0 or "/session-" not in path:
        pytest.skip(f"needs a user in a login session (session-N.scope), not {path}")


def program(code):
    return subprocess.run(
        [sys.executable, "-c", f"import pinfold\n{OWN}\n{code}"],
        env={**os.environ, "PINFOLD_BACKEND": "auto"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def command_line(*arguments):
    return subprocess.run(
        [CLI, *arguments], env={**os.environ, "PINFOLD_BACKEND": "auto"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_command_line_moves_itself_and_runs_in_a_scope(tmp_path):
    result = tmp_path / "result"
    done = command_line("run", "--result", result, "--", "sh", "-c", "setsid sleep 60 & cat /proc/self/cgroup")
    assert (done.returncode, "killed 1 stray" in done.stderr) == (0, True), done.stderr
    assert f"/user@{os.geteuid()}.service/pinfold.slice/pinfold-" in done.stdout
    placement = json.loads(result.read_text())["placement"]
    assert (placement["backend"], placement["entry"]) == ("systemd", "clone3")


def test_a_named_unit_works_from_there_too():
    done = command_line("run", "--unit", f"pinfold-login-{os.getpid()}", "--", "cat", "/proc/self/cgroup")
    assert done.returncode == 0, done.stderr
    assert f"/pinfold.slice/pinfold-login-{os.getpid()}.scope/" in done.stdout


def test_the_library_moves_nobody_behind_their_back():
    done = program(
        "before = own()\n"
        "try:\n    pinfold.run(['true'])\n"
        "except pinfold.NotDelegated as error:\n    print(error)\n"
        "assert own() == before"
    )
    assert done.returncode == 0, done.stderr
    assert "outside user@.service" in done.stdout
    assert "systemd-run --user --scope -p Delegate=yes" in done.stdout


def test_a_program_that_says_so_is_moved_once_and_runs_in_its_scope():
    done = program(
        "fold = pinfold.default_fold(move_caller=True)\n"
        "print(own())\n"
        "for _ in range(3):\n"
        "    print(pinfold.run(['sh', '-c', 'setsid sleep 60 &']).receipt.strays)\n"
        "print(own())"
    )
    assert done.returncode == 0, done.stderr
    first, *strays, last = done.stdout.splitlines()
    assert first.endswith("/caller")
    assert strays == ["1", "1", "1"]
    assert last == first


def test_the_doctor_says_where_we_are_and_works():
    done = command_line("doctor", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["works"]) == (0, True), done.stdout
    assert any("login session" in check["found"] for check in found["checks"])
