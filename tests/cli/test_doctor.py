"""`pinfold doctor`: right about this host, and about hosts that lack something; never a traceback, nothing left."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pinfold.cgroup import delegation, places

CLI = Path(sys.executable).with_name("pinfold")
HOSTS = Path(__file__).parent.parent / "kernel"
CONTROLLERS = ["cpu", "memory", "pids", "io", "cpuset", "hugetlb"]
HOST = ["kernel", "python", "container", "cgroup v2"]
RUNS = ["a run with limits", "a run"]
# What each host is asked about; `systemd` may add where we are, and what its bus answers.
ALL = [
    *HOST, "systemd", "backend", "delegation", "place of folds", *[f"controller {name}" for name in CONTROLLERS],
    "cgroup v1", "cgroup.kill", "cgroup.freeze", "memory.peak", "memory.events.local", "memory.oom.group",
    "memory.swap.peak", "pids.peak", "clone3 into a cgroup", "user.* attributes", "pidfd_open", "PIDFD_GET_INFO",
    "pressure (PSI)", "nsdelegate", "memory_recursiveprot", "fork during kill", "threads without leader",
    "rmdir after populated 0", "user namespaces", "bubblewrap", "Landlock", "seccomp", "no_new_privs", "guard",
    "leftovers", *RUNS,
]  # fmt: skip
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
# Where a look has a fault of its own.
FAULTY_LOOK = """
from pinfold.cli.checks import features
from pinfold.cli.main import main

def pidfds():
    raise TypeError("x")

features.pidfds = pidfds
main(["doctor"])
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
        assert set(check) == {"name", "ok", "found", "needed", "fix", "since", "group"}
        assert check["group"]
        assert "could not be looked at" not in check["found"]
        assert isinstance(check["found"], str)
        assert check["found"]
        assert bool(check["fix"]) or check["ok"] or not check["needed"]
    checks = {check["name"]: check for check in said["checks"]}
    assert len(checks) == len(said["checks"])
    assert said["works"] == all(check["ok"] for check in said["checks"] if check["needed"])
    return both[0].returncode, checks, text


def of_any_host(checks):
    """The names of the checks that there are on all hosts, in their order."""
    return [name for name in checks if name not in ("whereabouts", "bus", "no_new_privs")]


def each_mount(line):
    """A shell line for each cgroup2 mount of this host."""
    points = [mount.point for mount in places.mounts(Path("/proc/self/mountinfo").read_text())]
    return "; ".join(line.format(shlex.quote(point)) for point in points)


def after(script):
    """The argv of doctor in a mount namespace of its own, in which a shell script has run."""
    return ["unshare", "-m", "sh", "-c", f'set -e; {script}; exec "$0" "$@"', CLI, "doctor"]


UNMOUNT = each_mount("umount -l {}")


def test_this_host_works(cgroup2):
    code, checks, text = examined()
    assert code == 0
    assert of_any_host(checks) == of_any_host(ALL)
    assert checks["kernel"]["found"].startswith(os.uname().release)
    if os.environ["PINFOLD_BACKEND"] == "cgroupfs":
        assert str(cgroup2) in checks["delegation"]["found"]
    assert checks["a run"]["ok"]
    assert text.endswith("pinfold works here\n")


def test_each_check_is_a_line_and_each_fix_another_below_the_name_of_its_group(cgroup2):
    _code, checks, text = examined()
    lines = [line for line in text.splitlines()[:-1] if not line.strip().startswith("fix: ")]
    groups = list(dict.fromkeys(check["group"] for check in checks.values()))
    assert [line[:-1] for line in lines if line in [f"{group}:" for group in groups]] == groups
    said = [line for line in lines if line[:-1] not in groups]
    assert [line[8:32].strip() for line in said] == list(checks)
    assert [line[:8].strip() for line in said] == ["ok" if check["ok"] else "-" for check in checks.values()]
    fixes = [line.strip().removeprefix("fix: ") for line in text.splitlines() if line.strip().startswith("fix: ")]
    assert fixes == [check["fix"] for check in checks.values() if check["fix"]]


def test_features_of_the_kernel_have_their_first_release(cgroup2):
    _code, checks, text = examined()
    named = {name: check["since"] for name, check in checks.items() if check["since"]}
    assert named["cgroup.kill"] == "5.14"
    assert set(named) >= {name for name, check in checks.items() if check["group"] == "kernel"}
    assert "\nok      cgroup.kill             there (Linux 5.14)\n" in text


def test_it_takes_less_than_two_seconds(cgroup2, slowness):
    start = time.monotonic()
    subprocess.run([CLI, "doctor"], stdout=subprocess.DEVNULL, timeout=60, check=True)
    assert time.monotonic() - start < 2 * slowness


def test_the_backend_is_the_one_that_was_asked_for_or_is_missing(cgroup2):
    _code, checks, _text = examined(env={**os.environ, "PINFOLD_BACKEND": "cgroupfs"})
    assert checks["backend"]["found"] == "cgroupfs (PINFOLD_BACKEND=cgroupfs says so)"
    code, checks, _text = examined(env={**os.environ, "PINFOLD_BACKEND": "none"})
    assert (code, checks["backend"]["ok"]) == (1, False)
    assert "known are auto, cgroupfs and systemd" in checks["backend"]["found"]
    assert checks["backend"]["fix"] == "unset PINFOLD_BACKEND"


def test_auto_is_told_with_its_reason_and_no_scope_stays(cgroup2, wait_until):
    _code, checks, _text = examined(env={**os.environ, "PINFOLD_BACKEND": ""})
    expected = "auto: systemd is the manager here" if delegation.systemd_is_running() else "auto: not systemd, as "
    assert expected in checks["backend"]["found"]
    tops = [Path(mount.point) for mount in places.mounts(Path("/proc/self/mountinfo").read_text())]
    wait_until(lambda: not any(list(top.glob("**/pinfold.slice/*.scope")) for top in tops), "scopes were collected")


def test_controllers_that_runs_have_are_tried_with_a_limit(cgroup2):
    _code, checks, _text = examined()
    tried = "memory_max 268435456" in checks["a run with limits"]["found"]
    assert checks["a run with limits"]["ok"] == tried
    assert tried == (checks["controller memory"]["found"] == "runs have it")
    for name in CONTROLLERS:
        check = checks[f"controller {name}"]
        assert check["ok"] or check["fix"]


@root_only
def test_the_fix_of_a_mount_option_keeps_the_others(cgroup2):
    """It is not carried out: the options are the whole host's."""
    _code, checks, _text = examined()
    fix = checks["nsdelegate"]["fix"] or checks["memory_recursiveprot"]["fix"]
    if fix is None:
        assert checks["nsdelegate"]["ok"]
        return
    options = fix.removeprefix("as root on the host: mount -o ").split()[0].split(",")
    assert {"remount", "nsdelegate", "memory_recursiveprot"} <= set(options)
    assert not {"rw", "ro"} & set(options)


def test_a_look_that_fails_itself_is_a_line_and_no_obstacle(cgroup2):
    ended = subprocess.run(
        [sys.executable, "-c", FAULTY_LOOK], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\n-       kernel: pidfds          could not be looked at: TypeError: x\n" in ended.stdout
    assert ended.stdout.endswith("pinfold works here\n")


@pytest.mark.parametrize("path", [None, "/nonexistent"])
def test_it_looks_at_the_host_and_not_at_the_path_of_the_caller(cgroup2, path):
    env = {name: value for name, value in os.environ.items() if name != "PATH"}
    assert examined(env=env if path is None else env | {"PATH": path})[0] == 0


def test_a_caller_who_ignores_the_end_of_children_changes_nothing(cgroup2):
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    usual = examined()[1]
    found = examined(sys.executable, "-c", code, CLI, "doctor")[1]
    assert {name: check["ok"] for name, check in found.items()} == {name: check["ok"] for name, check in usual.items()}


@pytest.mark.parametrize("number", ["ENOSYS", "EPERM"])
def test_clone3_refused_is_said_and_is_no_obstacle(cgroup2, number, monkeypatch):
    monkeypatch.setenv("PINFOLD_BACKEND", "cgroupfs")
    code, checks, text = examined(sys.executable, "-c", WITHOUT_CLONE3, HOSTS, number)
    assert code == 0
    assert not checks["clone3 into a cgroup"]["ok"]
    assert "seccomp" in checks["clone3 into a cgroup"]["fix"]
    assert "\n-       clone3 into a cgroup    refused" in text


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
        assert [name for name, check in checks.items() if check["needed"] and not check["ok"]] == ["cgroup v2"]
        assert not {"backend", *RUNS} & set(checks)
        assert found in checks["cgroup v2"]["found"]
        read_only = "read-only" in found
        fix = "as root: mount -o remount,rw /" if read_only else "mount it: mount -t cgroup2 none /sys/fs/cgroup"
        assert checks["cgroup v2"]["fix"].startswith(fix)
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
        assert not checks["cgroup v2"]["ok"]

    def test_without_proc_nothing_can_be_told_and_the_fix_mends_it(self, cgroup2):
        without = "mount -t tmpfs none /proc"
        code, checks, _text = examined(*after(without))
        assert code == 1
        assert checks["cgroup v2"]["fix"] == "mount proc: mount -t proc proc /proc"
        assert examined(*after(f"{without}; mount -t proc proc /proc"))[0] == 0

    def test_names_of_mounts_are_made_harmless(self, cgroup2, tmp_path):
        odd = os.fsencode(tmp_path) + b"/\x1b[31m\n\xff"
        os.mkdir(odd)
        mount = 'mount -t cgroup2 none "$PINFOLD_TEST"'
        code, checks, text = examined(*after(f"{UNMOUNT}; {mount}"), env={**os.environb, b"PINFOLD_TEST": odd})
        assert code == 0
        assert "\x1b[31m\n\udcff" in checks["delegation"]["found"]
        assert text.replace("\n", "").isprintable()


@root_only
def test_without_delegation_the_fix_is_named_and_mends_it(cgroup2, tmp_path, monkeypatch):
    directory = cgroup2 / f"for-nobody-{tmp_path.name}"
    directory.mkdir()
    try:
        monkeypatch.setenv("PINFOLD_BACKEND", "cgroupfs")
        nobody = (sys.executable, "-c", AS_NOBODY, directory)
        code, checks, text = examined(*nobody)
        assert code == 1
        missing = [name for name, check in checks.items() if check["needed"] and not check["ok"]]
        assert missing == ["backend", "delegation"]
        assert checks["delegation"]["found"] == f"uid 65534 may not make cgroups in {directory} or above"
        assert "\nMISSING delegation " in text
        fix = re.search(r"as root: (chown .*) for a cgroup DIR", checks["delegation"]["fix"])
        assert fix
        subprocess.run(["sh", "-c", fix[1].replace("DIR", str(directory))], check=True, timeout=20)
        code, checks, _text = examined(*nobody)
        assert code == 0
        assert of_any_host(checks) == of_any_host(ALL)
        assert checks["delegation"]["found"].startswith(f"uid 65534 may make cgroups in {directory}")
    finally:
        directory.rmdir()


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_output_that_cannot_be_written_is_no_traceback(cgroup2, option):
    with open("/dev/full", "wb") as full:
        ended = subprocess.run([CLI, "doctor", *option], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"pinfold: ")
    assert ended.stderr.count(b"\n") == 1
