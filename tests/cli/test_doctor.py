"""`pinfold doctor`: right about this host, and about hosts that lack something; never a traceback, nothing left."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pinfold.cgroup import tree

CLI = Path(sys.executable).with_name("pinfold")
HOSTS = Path(__file__).parent.parent / "kernel"
ALL = ["kernel", "python", "cgroup v2", "delegation", "controllers", "pressure (PSI)", "systemd",
       "clone3 into a cgroup", "owner record", "a run"]  # fmt: skip
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to change mounts and to become others")

# As uid 65534 in the cgroup DIR: `… DIR OPTION…`. What is imported late might not be readable any more.
AS_NOBODY = """
import os, sys
from pinfold.cli.doctor import examine
from pinfold.cli.main import main

list(examine())
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write("0")
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
main(["doctor", *sys.argv[2:]])
"""
# Under a seccomp filter: `… HOSTS ERRNO OPTION…`.
WITHOUT_CLONE3 = """
import errno, sys
sys.path.insert(0, sys.argv[1])
import hosts
from pinfold.cli.main import main

hosts.refuse_clone3(getattr(errno, sys.argv[2]))
main(["doctor", *sys.argv[3:]])
"""
# Where no run can be made.
FAILING = """
import sys
from pinfold.cli.main import main
from pinfold.errors import CgroupError
from pinfold.runs.fold import Fold

def fail(*_arguments, **_options):
    raise ERROR

Fold.run = fail
main(["doctor", *sys.argv[1:]])
"""


def examined(*command, **options):
    """The exit status, the checks by name, and the text of doctor, called once with --json and once without."""
    argv = command or (CLI, "doctor")
    both = [
        subprocess.run([*argv, *more], capture_output=True, timeout=60, check=False, **options)
        for more in ([], ["--json"])
    ]
    assert [ended.stderr for ended in both] == [b"", b""]
    text, said = both[0].stdout.decode(), json.loads(both[1].stdout)
    assert both[0].returncode == both[1].returncode == (0 if said["works"] else 1)
    assert (said["schema"], set(said)) == (1, {"schema", "works", "checks"})
    for check in said["checks"]:
        assert set(check) == {"name", "ok", "found", "needed", "fix"}
        assert isinstance(check["found"], str)
        assert check["found"]
        assert bool(check["fix"]) or check["ok"] or not check["needed"]
    checks = {check["name"]: check for check in said["checks"]}
    assert len(checks) == len(said["checks"])
    assert said["works"] == all(check["ok"] for check in said["checks"] if check["needed"])
    return both[0].returncode, checks, text


def each_mount(line):
    """A shell line for each cgroup2 mount of this host."""
    points = [mount.point for mount in tree.mounts(Path("/proc/self/mountinfo").read_text())]
    return "; ".join(line.format(shlex.quote(point)) for point in points)


def after(script):
    """The argv of doctor in a mount namespace of its own, in which a shell script has run."""
    return ["unshare", "-m", "sh", "-c", f'set -e; {script}; exec "$0" "$@"', CLI, "doctor"]


UNMOUNT = each_mount("umount -l {}")


def test_this_host_works(cgroup2):
    code, checks, text = examined()
    assert code == 0
    assert list(checks) == ALL
    assert checks["kernel"]["found"].startswith(os.uname().release)
    assert str(cgroup2) in checks["delegation"]["found"]
    assert checks["a run"]["ok"]
    assert text.endswith("pinfold works here\n")


def test_each_check_is_a_line_and_each_fix_another(cgroup2):
    _code, checks, text = examined()
    lines = [line for line in text.splitlines()[:-1] if not line.strip().startswith("fix: ")]
    assert [line[8:].split("  ")[0] for line in lines] == list(checks)
    assert [line[:8].strip() for line in lines] == ["ok" if check["ok"] else "-" for check in checks.values()]
    fixes = [line.strip().removeprefix("fix: ") for line in text.splitlines() if line.strip().startswith("fix: ")]
    assert fixes == [check["fix"] for check in checks.values() if check["fix"]]


@pytest.mark.parametrize("path", [None, "/nonexistent"])
def test_it_looks_at_the_host_and_not_at_the_path_of_the_caller(cgroup2, path):
    env = {name: value for name, value in os.environ.items() if name != "PATH"}
    assert examined(env=env if path is None else env | {"PATH": path})[0] == 0


@pytest.mark.parametrize("number", ["ENOSYS", "EPERM"])
def test_clone3_refused_is_said_and_is_no_obstacle(cgroup2, number):
    code, checks, text = examined(sys.executable, "-c", WITHOUT_CLONE3, HOSTS, number)
    assert code == 0
    assert not checks["clone3 into a cgroup"]["ok"]
    assert "seccomp" in checks["clone3 into a cgroup"]["fix"]
    assert "\n-       clone3 into a cgroup  refused" in text


@pytest.mark.parametrize("error", ["OSError(24, 'Too many open files')", "CgroupError('mkdir', 'x', OSError(24, ''))"])
def test_a_run_that_fails_is_a_check_that_failed(cgroup2, error):
    code, checks, text = examined(sys.executable, "-c", FAILING.replace("ERROR", error))
    assert code == 1
    assert list(checks)[-1] == "a run"
    assert not checks["a run"]["ok"]
    assert text.endswith("pinfold does NOT work here\n")


@root_only
class TestWithoutCgroup2:
    @pytest.mark.parametrize(
        ("script", "found"),
        [
            (UNMOUNT, "not mounted"),
            (each_mount('mount -t tmpfs none "$(dirname {})"'), "is not visible in the mount at"),
            (each_mount("mount -o remount,bind,ro {}"), "mounted read-only at"),
        ],
        ids=["not mounted", "covered", "read-only"],
    )
    def test_it_is_missing_and_the_fix_is_named(self, cgroup2, script, found):
        code, checks, text = examined(*after(script))
        assert code == 1
        assert list(checks) == ["kernel", "python", "cgroup v2"]
        assert found in checks["cgroup v2"]["found"]
        assert checks["cgroup v2"]["fix"] == "mount it: mount -t cgroup2 none /sys/fs/cgroup"
        assert "\nMISSING cgroup v2 " in text
        assert text.endswith("pinfold does NOT work here\n")

    def test_the_fix_mends_it(self, cgroup2):
        fix = examined(*after(UNMOUNT))[1]["cgroup v2"]["fix"]
        mount = fix.removeprefix("mount it: ")
        assert examined(*after(f"{UNMOUNT}; {mount}"))[0] == 0

    @pytest.mark.parametrize(
        "cover",
        [
            "mount -t tmpfs none {0}; mkdir -p {0}$(sed -n s/^0:://p /proc/self/cgroup)",
            "mount --bind {0} {0}; mount -o remount,bind,ro {0}",
        ],
        ids=["by tmpfs", "read-only"],
    )
    def test_covered_at_the_very_mount_point(self, cgroup2, cover):
        code, checks, _text = examined(*after(each_mount(cover)))
        assert code == 1
        assert list(checks) == ["kernel", "python", "cgroup v2"]

    def test_without_proc_nothing_can_be_told(self, cgroup2):
        code, checks, _text = examined(*after("umount -l /proc"))
        assert code == 1
        assert checks["cgroup v2"]["fix"] == "mount proc: mount -t proc proc /proc"

    def test_names_of_mounts_are_made_harmless(self, cgroup2, tmp_path):
        odd = os.fsencode(tmp_path) + b"/\x1b[31m\n\xff"
        os.mkdir(odd)
        mount = 'mount -t cgroup2 none "$PINFOLD_TEST"'
        code, checks, text = examined(*after(f"{UNMOUNT}; {mount}"), env={**os.environb, b"PINFOLD_TEST": odd})
        assert code == 0
        assert "\x1b[31m\n\udcff" in checks["delegation"]["found"]
        assert text.replace("\n", "").isprintable()


@root_only
def test_without_delegation_the_fix_is_named_and_mends_it(cgroup2, tmp_path):
    directory = cgroup2 / f"for-nobody-{tmp_path.name}"
    directory.mkdir()
    try:
        nobody = (sys.executable, "-c", AS_NOBODY, directory)
        code, checks, text = examined(*nobody)
        assert code == 1
        assert list(checks) == ["kernel", "python", "cgroup v2", "delegation"]
        assert checks["delegation"]["found"] == f"uid 65534 may not make cgroups in {directory} or above"
        assert "\nMISSING delegation " in text
        fix = re.search(r"as root: (chown .*) for a cgroup DIR", checks["delegation"]["fix"])
        assert fix
        subprocess.run(["sh", "-c", fix[1].replace("DIR", str(directory))], check=True, timeout=20)
        code, checks, _text = examined(*nobody)
        assert (code, list(checks)) == (0, ALL)
        assert checks["delegation"]["found"] == f"uid 65534 may make cgroups in {directory}"
    finally:
        directory.rmdir()


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_output_that_cannot_be_written_is_no_traceback(cgroup2, option):
    with open("/dev/full", "wb") as full:
        ended = subprocess.run([CLI, "doctor", *option], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"pinfold: ")
    assert ended.stderr.count(b"\n") == 1
