"""The manager against a real systemd: the system's as root, the user's otherwise."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pinfold.backend import manager as manager_module
from pinfold.backend.manager import Manager, bus_address
from pinfold.errors import UnitError

USER = os.geteuid() != 0
SLICE = "app.slice" if USER else "system.slice"  # one that is there anyway
DEADLINE = 5.0 * float(os.environ.get("SLOWNESS", "1"))


@pytest.fixture
def name():
    return f"pinfold-{os.getpid()}-{time.monotonic_ns():x}.scope"


@pytest.fixture
def child():
    """Start a process, by default one that sleeps; killed and reaped at the end."""
    children = []

    def start(*argv, **options):
        process = subprocess.Popen(argv or ["sleep", "60"], **options)
        children.append(process)
        return process

    yield start
    for process in children:
        process.kill()
        process.wait(DEADLINE)
        if process.stdout:
            process.stdout.close()


def properties(pid, *more):
    return [
        ("PIDs", ("au", [pid])),
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("Slice", ("s", SLICE)),
        *more,
    ]


def cgroup_of(pid):
    with open(f"/proc/{pid}/cgroup") as file:
        (path,) = (line[3:].rstrip("\n") for line in file if line.startswith("0::"))
    return path


def test_a_scope_holds_the_process_and_is_collected_at_its_end(manager, child, name, wait_until):
    process = child()
    manager.start_scope(name, properties(process.pid))
    assert cgroup_of(process.pid).endswith(f"/{SLICE}/{name}")
    assert manager.active_state(name) == "active"
    process.kill()
    process.wait(DEADLINE)
    wait_until(lambda: manager.active_state(name) is None, "the scope's collection")


def test_the_properties_are_the_scopes(manager, child, name, systemctl):
    process = child()
    manager.start_scope(name, properties(process.pid, ("Description", ("s", "a test")), ("TasksMax", ("t", 17))))
    shown = systemctl("show", name, "-p", "Delegate,CollectMode,Description,TasksMax,Slice").splitlines()
    assert set(shown) == {
        "Delegate=yes", "CollectMode=inactive-or-failed", "Description=a test", "TasksMax=17", f"Slice={SLICE}",
    }  # fmt: skip


def test_many_scopes_are_started_over_one_connection(manager, child, name):
    processes = [child() for _ in range(10)]
    for number, process in enumerate(processes):
        manager.start_scope(f"pinfold-{number}-{name}", properties(process.pid))
        assert cgroup_of(process.pid).endswith(name)


def test_a_scope_that_is_being_stopped_is_deactivating_and_goes(manager, child, name, systemctl, wait_until):
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    process = child(sys.executable, "-c", code, stdout=subprocess.PIPE)
    process.stdout.readline()
    manager.start_scope(name, properties(process.pid, ("TimeoutStopUSec", ("t", 60_000_000))))
    systemctl("stop", "--no-block", name)
    wait_until(lambda: manager.active_state(name) == "deactivating", "the state deactivating")
    began = time.monotonic()
    manager.stop(name, 0.3)  # the process does not heed: stopping gives up in time
    assert time.monotonic() - began < 2
    assert process.poll() is None
    process.kill()
    process.wait(DEADLINE)
    wait_until(lambda: manager.active_state(name) is None, "the scope's collection")


def test_stopping_ends_the_processes_and_the_scope(manager, child, name):
    process = child()
    manager.start_scope(name, properties(process.pid))
    manager.stop(name, DEADLINE)
    assert process.wait(DEADLINE) == -signal.SIGTERM
    assert manager.active_state(name) in (None, "inactive")


def test_stopping_what_is_not_there_is_nothing(manager, name):
    began = time.monotonic()
    manager.stop(name, DEADLINE)
    assert time.monotonic() - began < DEADLINE
    assert manager.active_state(name) is None


def test_a_unit_that_is_there_is_refused_and_let_alone(manager, child, name):
    first, second = child(), child()
    manager.start_scope(name, properties(first.pid))
    with pytest.raises(UnitError, match="UnitExists") as caught:
        manager.start_scope(name, properties(second.pid))
    assert caught.value.unit == name
    assert manager.active_state(name) == "active"
    assert first.poll() is None
    assert name not in cgroup_of(second.pid)


def test_a_process_that_is_gone_is_refused_and_leaves_nothing(manager, child, name):
    """The check for units that are left is no_units_left."""
    process = child("true")
    process.wait(DEADLINE)
    with pytest.raises(UnitError, match=name):
        manager.start_scope(name, properties(process.pid))
    assert manager.active_state(name) is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("NoSuchProperty", ("b", True)), "PropertyReadOnly|Cannot set property"),
        (("TasksMax", ("s", "many")), "InvalidArgs|Unexpected message contents"),
        (("Slice", ("s", "a--b.slice")), "InvalidArgs|[Ss]lice"),
    ],
    ids=["unknown", "type", "value"],
)
def test_a_property_that_systemd_does_not_take_is_refused_in_its_words(manager, child, name, more, words):
    with pytest.raises(UnitError, match=words):
        manager.start_scope(name, properties(child().pid, more))
    assert manager.active_state(name) is None


@pytest.mark.parametrize("wrong", ["no-suffix", "a b.scope", "pinfold-x.service", "a'b.scope", "/.scope"])
def test_a_name_that_systemd_does_not_take_is_refused(manager, child, wrong):
    with pytest.raises(UnitError):
        manager.start_scope(wrong, properties(child().pid))


@pytest.fixture
def hanging(systemctl):
    """A service that is never up: what waits for it waits for ever."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "systemd/user")
    directory = home if USER else Path("/run/systemd/system")
    directory.mkdir(parents=True, exist_ok=True)
    unit = directory / "pinfold-hangs.service"
    unit.write_text("[Service]\nType=oneshot\nExecStart=sleep infinity\n")
    systemctl("daemon-reload")
    yield unit.name
    systemctl("stop", unit.name)
    systemctl("reset-failed", unit.name, check=False)
    unit.unlink()
    systemctl("daemon-reload")


def test_a_job_that_hangs_ends_in_time_and_leaves_nothing(manager, child, name, hanging):
    process = child()
    began = time.monotonic()
    with pytest.raises(UnitError, match=r"its job has not ended in time \(0.5 s\)"):
        manager.start_scope(
            name, properties(process.pid, ("Requires", ("as", [hanging])), ("After", ("as", [hanging]))), deadline=0.5
        )
    assert 0.5 <= time.monotonic() - began < 0.5 + manager_module.CLEAN_BOUND + DEADLINE / 5
    assert manager.active_state(name) in (None, "inactive")
    assert process.poll() is None
    assert name not in cgroup_of(process.pid)


def test_a_dependency_that_fails_is_told_and_leaves_nothing(manager, child, name, hanging, systemctl):
    unit = systemctl("show", "-P", "FragmentPath", hanging)
    Path(unit).write_text("[Service]\nType=oneshot\nExecStart=false\n")
    systemctl("daemon-reload")
    with pytest.raises(UnitError, match="'dependency'"):
        manager.start_scope(
            name, properties(child().pid, ("Requires", ("as", [hanging])), ("After", ("as", [hanging])))
        )
    assert manager.active_state(name) in (None, "inactive")


def test_a_start_that_is_interrupted_leaves_nothing(manager, child, name, hanging, monkeypatch):
    process = child()

    signal_ = manager_module.Bus.signal

    def interrupt(_bus, _end):
        monkeypatch.setattr(manager_module.Bus, "signal", signal_)
        raise KeyboardInterrupt

    monkeypatch.setattr(manager_module.Bus, "signal", interrupt)
    waiting = properties(process.pid, ("Requires", ("as", [hanging])), ("After", ("as", [hanging])))
    with pytest.raises(KeyboardInterrupt):
        manager.start_scope(name, waiting)
    assert manager.active_state(name) in (None, "inactive")


def test_the_version_is_the_managers(manager):
    assert manager.version()[:3].isdigit()


def test_the_bus_is_found_without_an_environment(booted, monkeypatch):
    for variable in ("DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(variable, raising=False)
    expected = f"/run/user/{os.geteuid()}/bus" if USER else "/run/dbus/system_bus_socket"
    assert bus_address(user=USER) == f"unix:path={expected}"
    with Manager.connect(user=USER) as manager:
        assert manager.version()


def script(code):
    return [sys.executable, "-c", f"from pinfold.backend.manager import *; from pinfold.errors import *\n{code}"]


TRY_TO_CONNECT = f"""
try:
    Manager.connect(user={USER})
except NoSystemd as error:
    print(error.found)
"""


def test_a_bus_outside_of_our_pid_namespace_is_refused(booted):
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare(1)")
    own = ["--user", "--map-current-user"] if USER else []
    argv = ["unshare", *own, "--pid", "--fork", *script(TRY_TO_CONNECT)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"needs a pid namespace: {done.stderr}")
    assert "belongs to another pid namespace" in done.stdout, done.stderr


def test_who_may_not_use_the_system_manager_is_told(booted, name):
    """As nobody, on the system bus: polkit, or systemd without it, refuses."""
    code = f"""
import os
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
with Manager.connect(user=False) as manager:
    assert manager.active_state("-.slice") == "active"
    try:
        manager.start_scope({name!r}, [("PIDs", ("au", [os.getpid()]))])
    except NoSystemd as error:
        print(error)
"""
    done = subprocess.run(script(code), capture_output=True, text=True, timeout=30, check=False)
    assert "may not be used" in done.stdout, done.stderr
    assert "be root" in done.stdout


def test_a_session_bus_without_systemd_is_no_systemd(booted, monkeypatch):
    if shutil.which("dbus-run-session") is None:
        pytest.skip("needs dbus-run-session(1)")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    code = "import pinfold.backend.bus_address as b; b.user_sockets = lambda: []\n" + TRY_TO_CONNECT.replace(
        f"user={USER}", "user=True"
    )
    argv = ["dbus-run-session", "--", *script(code)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert "there is no systemd on the bus" in done.stdout, done.stderr


def test_the_first_client_of_a_bus_waits_for_the_manager_on_it(booted, systemctl, wait_until):
    """The user's bus is started by whoever connects first; only then does the manager connect to it."""
    if not USER:
        pytest.skip("needs a user manager: run as another user than root")
    for _ in range(5):
        # The socket stays; a manager that talks to systemctl over its private socket needs no bus.
        systemctl("stop", "dbus.service")
        with Manager.connect(user=True) as manager:
            assert manager.active_state("dbus.service") in ("activating", "active")
