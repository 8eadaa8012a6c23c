"""The manager against a bus that does as it is told: every stage late, closed, mad; and what a caller gets to know."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import shutil
import socket
import tempfile
import threading
import time

import pytest

from pinfold.backend import bus as bus_module
from pinfold.backend import bus_address as bus_address_module
from pinfold.backend import manager as manager_module
from pinfold.backend.bus_address import SYSTEM_SOCKET, sockets
from pinfold.backend.manager import Manager, bus_address
from pinfold.errors import NoSystemd, UnitError

_spec = importlib.util.spec_from_file_location("fakebus", pathlib.Path(__file__).with_name("fakebus.py"))
fakebus = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fakebus)

UNIT = "pinfold-x.scope"
PROPERTIES = [("PIDs", ("au", [1])), ("Delegate", ("b", True)), ("CollectMode", ("s", "inactive-or-failed"))]
SHORT = 0.2  # seconds
SLACK = 0.5 * float(os.environ.get("SLOWNESS", "1"))  # for threads and the machine
CONNECTING = ["AUTH", "Hello", "StartServiceByName"]
STARTING = ["AddMatch", "Subscribe", "StartTransientUnit"]


@pytest.fixture
def directory():
    """A short path: a unix socket's holds 107 bytes."""
    path = tempfile.mkdtemp(prefix="pinfold-")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def bus(directory, monkeypatch):
    path = os.path.join(directory, "bus")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
    monkeypatch.setattr(manager_module, "CLEAN_BOUND", SHORT)
    fake = fakebus.FakeBus(path)
    yield fake
    fake.close()


@pytest.fixture
def manager(bus):
    with Manager.connect(user=False) as manager:
        yield manager


@contextlib.contextmanager
def within(seconds):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds + SLACK


# Starting


def test_a_scope_is_started_though_its_job_ends_before_the_reply(bus, manager):
    manager.start_scope(UNIT, PROPERTIES)
    manager.version()  # everything before it has been read
    assert bus.members() == [*CONNECTING, *STARTING, "RemoveMatch", "Unsubscribe", "Get"]
    name, mode, properties, aux = dict(bus.calls)["StartTransientUnit"]
    assert (name, mode, properties, aux) == (UNIT, "replace", PROPERTIES, [])


def test_only_the_jobs_of_this_unit_are_asked_for_and_no_longer_than_needed(bus, manager):
    manager.start_scope(UNIT, PROPERTIES)
    manager.version()
    (rule,) = dict(bus.calls)["AddMatch"]
    assert f"arg2='{UNIT}'" in rule
    assert "sender='org.freedesktop.systemd1'" in rule
    assert dict(bus.calls)["RemoveMatch"] == (rule,)


def test_a_job_may_end_after_the_reply(bus, manager):
    bus.handlers["StartTransientUnit"] = bus.job_ends_as("done")
    manager.start_scope(UNIT, PROPERTIES)


def test_a_manager_starts_one_scope_after_the_other(bus, manager):
    for number in range(3):
        manager.start_scope(f"pinfold-{number}.scope", PROPERTIES)
    assert bus.members().count("StartTransientUnit") == 3


@pytest.mark.parametrize("result", ["failed", "timeout", "canceled", "dependency", "skipped"])
def test_a_job_that_fails_is_an_error_and_the_unit_is_swept(bus, manager, result):
    bus.handlers["StartTransientUnit"] = bus.job_ends_as(result)
    with pytest.raises(UnitError) as caught:
        manager.start_scope(UNIT, PROPERTIES)
    assert (caught.value.unit, caught.value.op) == (UNIT, "start")
    assert caught.value.found == f"its job ended as {result!r}"
    assert caught.value.fix == f"see journalctl -b -u {UNIT}"
    manager.version()
    assert bus.calls[-5:-3] == [("StopUnit", (UNIT, "replace")), ("ResetFailedUnit", (UNIT,))]


def test_the_ends_of_other_jobs_and_the_word_of_others_do_not_count(bus, manager):
    def handler(message):
        bus.reply(message, "o", (fakebus.JOB,))
        bus.removed(UNIT, "done", sender=":1.666")  # forged: any process may send to us alone
        bus.removed(UNIT, "done", job="/org/freedesktop/systemd1/job/6")
        bus.removed(UNIT, "failed")

    bus.handlers["StartTransientUnit"] = handler
    with pytest.raises(UnitError, match="'failed'"):
        manager.start_scope(UNIT, PROPERTIES)


@pytest.mark.parametrize(
    "name",
    [
        "org.freedesktop.systemd1.UnitExists", "org.freedesktop.systemd1.LoadFailed",
        "org.freedesktop.DBus.Error.InvalidArgs", "org.freedesktop.DBus.Error.LimitsExceeded",
    ],
)  # fmt: skip
def test_a_refusal_is_told_in_the_words_of_the_bus_and_nothing_is_stopped(bus, manager, name):
    """What has the name, if anything, is not ours."""
    bus.handlers["StartTransientUnit"] = bus.error(name, "it cannot be")
    with pytest.raises(UnitError, match="it cannot be") as caught:
        manager.start_scope(UNIT, PROPERTIES)
    assert caught.value.found == f"{name}: it cannot be"
    manager.version()
    assert "StopUnit" not in bus.members()


@pytest.mark.parametrize("kind", ["AccessDenied", "InteractiveAuthorizationRequired", "AuthFailed"])
@pytest.mark.parametrize("stage", STARTING)
def test_who_may_not_is_told_what_to_use_instead(bus, manager, stage, kind):
    bus.handlers[stage] = bus.error(f"org.freedesktop.DBus.Error.{kind}", "denied")
    with pytest.raises(NoSystemd, match="may not be used") as caught:
        manager.start_scope(UNIT, PROPERTIES)
    assert "be root" in caught.value.fix


@pytest.mark.parametrize("kind", ["ServiceUnknown", "NameHasNoOwner", "NoReply", "Spawn.ChildExited"])
def test_a_systemd_that_leaves_the_bus_is_no_systemd(bus, manager, kind):
    bus.handlers["StartTransientUnit"] = bus.error(f"org.freedesktop.DBus.Error.{kind}", "gone")
    with pytest.raises(NoSystemd, match="left the bus"):
        manager.start_scope(UNIT, PROPERTIES)


# Too late


@pytest.mark.parametrize("stage", CONNECTING)
@pytest.mark.parametrize("how", ["hang", "trickle"])
def test_connecting_ends_in_time_when_nothing_comes(bus, stage, how):
    bus.handlers[stage] = getattr(bus, how) if stage != "AUTH" else bus.hang
    with within(SHORT), pytest.raises(NoSystemd, match=r"/bus: .*no answer in time"):
        Manager.connect(user=False, deadline=SHORT)


@pytest.mark.parametrize("stage", STARTING)
@pytest.mark.parametrize("how", ["hang", "trickle"])
def test_starting_ends_in_time_when_nothing_comes(bus, manager, stage, how):
    bus.handlers[stage] = getattr(bus, how)
    with within(2 * SHORT), pytest.raises(UnitError, match=r"no answer in time \(0.2 s\)"):
        manager.start_scope(UNIT, PROPERTIES, deadline=SHORT)


def test_a_job_that_does_not_end_is_canceled_and_swept(bus, manager):
    bus.handlers["StartTransientUnit"] = lambda _message: ("o", (fakebus.JOB,))
    with within(SHORT), pytest.raises(UnitError, match=r"job has not ended in time \(0.2 s\)"):
        manager.start_scope(UNIT, PROPERTIES, deadline=SHORT)
    manager.version()
    assert [call for call in bus.calls if call[0] in ("StopUnit", "ResetFailedUnit")] == [
        ("StopUnit", (UNIT, "replace")),
        ("ResetFailedUnit", (UNIT,)),
    ]


def test_a_reply_that_comes_late_says_that_the_unit_is_ours_to_sweep(bus, manager):
    def late(message):
        threading.Event().wait(1.5 * SHORT)
        bus.reply(message, "o", (fakebus.JOB,))

    bus.handlers["StartTransientUnit"] = late
    with pytest.raises(UnitError, match="no answer in time"):
        manager.start_scope(UNIT, PROPERTIES, deadline=SHORT)
    manager.version()
    assert "StopUnit" in bus.members()


def test_a_refusal_that_comes_late_stops_nothing(bus, manager):
    def late(message):
        threading.Event().wait(1.5 * SHORT)
        bus.error("org.freedesktop.systemd1.UnitExists", "somebody's")(message)

    bus.handlers["StartTransientUnit"] = late
    with pytest.raises(UnitError, match="no answer in time"):
        manager.start_scope(UNIT, PROPERTIES, deadline=SHORT)
    manager.version()
    assert "StopUnit" not in bus.members()


def test_an_answer_that_is_late_is_not_taken_for_the_next_one(bus, manager):
    def late(message):
        threading.Event().wait(1.5 * SHORT)
        bus.reply(message, "v", (("s", "stale"),))
        bus.handlers["Get"] = lambda _message: ("v", (("s", "fresh"),))

    bus.handlers["Get"] = late
    with pytest.raises(UnitError):
        manager.active_state(UNIT, deadline=SHORT)
    assert manager.active_state(UNIT) == "fresh"


def test_a_full_backlog_ends_in_time(directory, monkeypatch):
    path = os.path.join(directory, "full")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        with within(SHORT), pytest.raises(NoSystemd, match="connect: the bus takes no more connections"):
            Manager.connect(user=False, deadline=SHORT)


def test_a_backlog_that_was_full_for_a_moment_is_waited_for(bus, directory, monkeypatch):
    refusals = [BlockingIOError(11, "Resource temporarily unavailable") for _ in range(2)]

    def refuse_twice(sock, address):
        if refusals:
            raise refusals.pop()
        return connect(sock, address)

    connect = socket.socket.connect
    monkeypatch.setattr(bus_module.socket.socket, "connect", refuse_twice, raising=False)
    Manager.connect(user=False).close()
    assert not refusals


def test_a_thread_that_waits_for_its_turn_does_not_wait_for_ever(bus, manager):
    bus.handlers["Get"] = bus.hang
    other = threading.Thread(target=lambda: _quietly(manager.version), name="version")
    other.start()
    while "Get" not in bus.members():
        os.sched_yield()
    with within(SHORT), pytest.raises(UnitError, match="another thread"):
        manager.active_state(UNIT, deadline=SHORT)
    bus.close_connection()
    other.join(5)


def _quietly(function):
    with contextlib.suppress(NoSystemd, UnitError):
        function()


# Closed, and mad


@pytest.mark.parametrize("stage", CONNECTING)
@pytest.mark.parametrize(("how", "words"), [("hang_up", "closed the connection|reset"), ("babble", "")])
def test_connecting_ends_when_the_bus_closes_or_babbles(bus, stage, how, words):
    bus.handlers[stage] = getattr(bus, how)
    with within(SHORT), pytest.raises(NoSystemd, match=f"/bus: .*({words})") as caught:
        Manager.connect(user=False)
    if how == "babble" and stage != "AUTH":
        assert "not D-Bus" in str(caught.value)


@pytest.mark.parametrize("stage", STARTING)
@pytest.mark.parametrize(("how", "words"), [("hang_up", "closed the connection|reset"), ("babble", "not D-Bus")])
def test_starting_ends_when_the_bus_closes_or_babbles(bus, manager, stage, how, words):
    bus.handlers[stage] = getattr(bus, how)
    with within(SHORT), pytest.raises(NoSystemd, match=f"start {UNIT}: the connection to .* was lost: .*({words})"):
        manager.start_scope(UNIT, PROPERTIES)
    with pytest.raises(NoSystemd):
        manager.active_state(UNIT)


def test_a_bus_that_closes_while_the_job_runs_is_noticed(bus, manager):
    def handler(message):
        bus.reply(message, "o", (fakebus.JOB,))
        raise fakebus.Closed

    bus.handlers["StartTransientUnit"] = handler
    with within(SHORT), pytest.raises(NoSystemd, match="lost"):
        manager.start_scope(UNIT, PROPERTIES)


def test_a_message_without_end_is_cut_off(bus, manager):
    def flood(_message):
        bus.raw(b"l\2\1\1" + b"\0\0\0\1" + b"\1\0\0\0" + b"\0\0\0\0")
        while True:
            bus.raw(b"\0" * 65536)

    bus.handlers["Get"] = flood
    with pytest.raises(NoSystemd, match="more than 1048576 bytes"):
        manager.version()


@pytest.mark.parametrize("answer", [("u", (7,)), (None, ()), ("ss", ("a", "b"))])
def test_an_answer_of_another_form_is_no_systemd(bus, manager, answer):
    bus.handlers["GetUnit"] = bus.handlers["Get"] = lambda _message: answer
    with pytest.raises(NoSystemd, match="another form"):
        manager.active_state(UNIT)
    with pytest.raises(NoSystemd, match="another form"):
        manager.version()


def test_who_is_not_let_in_is_told_so(bus):
    bus.handlers["AUTH"] = lambda _line: bus.raw(b"REJECTED EXTERNAL\r\n")
    with pytest.raises(NoSystemd, match=r"authenticate: .*REJECTED EXTERNAL"):
        Manager.connect(user=False)


def test_a_refused_hello_is_no_systemd(bus):
    bus.handlers["Hello"] = bus.error("org.freedesktop.DBus.Error.LimitsExceeded", "too many connections")
    with pytest.raises(NoSystemd, match=r"Hello: .*too many connections"):
        Manager.connect(user=False)


def test_a_bus_without_systemd_is_no_systemd(bus):
    bus.handlers["StartServiceByName"] = bus.error("org.freedesktop.DBus.Error.Spawn.ChildExited", "exited with 1")
    with pytest.raises(NoSystemd, match="no systemd on the bus at /"):
        Manager.connect(user=False)


def test_a_bus_of_another_pid_namespace_is_refused(bus, monkeypatch):
    """With a real namespace: tests/systemd."""
    monkeypatch.setattr(bus_module.Bus, "peer_pid", lambda _self: 0)
    with pytest.raises(NoSystemd, match="another pid namespace"):
        Manager.connect(user=False)


def test_the_process_at_the_other_end_is_known(manager):
    assert manager._bus.peer_pid() == os.getpid()


# Looking and stopping


def test_the_state_of_a_unit_is_told(bus, manager):
    assert manager.active_state(UNIT) == "active"
    assert bus.calls[-2:] == [("GetUnit", (UNIT,)), ("Get", ("org.freedesktop.systemd1.Unit", "ActiveState"))]


@pytest.mark.parametrize("stage", ["GetUnit", "Get"])
@pytest.mark.parametrize("name", ["org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.DBus.Error.UnknownObject"])
def test_a_unit_that_is_not_there_has_no_state(bus, manager, stage, name):
    bus.handlers[stage] = bus.error(name, "not loaded")
    assert manager.active_state(UNIT) is None


def test_another_refusal_is_an_error(bus, manager):
    bus.handlers["GetUnit"] = bus.error("org.freedesktop.DBus.Error.InvalidArgs", "unit name is not valid")
    with pytest.raises(UnitError, match=r"look at x: .*not valid"):
        manager.active_state("x")


@pytest.mark.parametrize("stage", ["AddMatch", "Subscribe", "StopUnit", "ResetFailedUnit"])
@pytest.mark.parametrize("how", ["hang", "hang_up", "babble", "trickle"])
def test_stopping_raises_nothing_and_ends_in_time(bus, manager, stage, how):
    bus.handlers[stage] = getattr(bus, how)
    with within(SHORT):
        manager.stop(UNIT, SHORT)


def test_stopping_waits_for_the_job_and_forgets_the_failure(bus, manager):
    bus.handlers["StopUnit"] = bus.job_ends_as("done")
    manager.stop(UNIT, 5)
    manager.version()
    assert bus.members()[3:7] == ["AddMatch", "Subscribe", "StopUnit", "ResetFailedUnit"]


def test_a_stop_that_takes_too_long_leaves_the_connection_usable(bus, manager):
    """There was no time left for ResetFailedUnit, of which nothing was sent then."""
    bus.handlers["StopUnit"] = lambda _message: ("o", (fakebus.JOB,))
    with within(SHORT):
        manager.stop(UNIT, SHORT)
    assert manager.active_state(UNIT) == "active"
    assert "ResetFailedUnit" not in bus.members()


def test_nobody_who_takes_what_is_sent_ends_in_time_and_ends_the_connection(bus, manager):
    def stand_still(message):
        bus.reply(message)
        bus.released.wait(5)
        raise fakebus.Closed

    bus.handlers["Subscribe"] = stand_still
    more_than_the_socket_holds = [("Description", ("s", "x" * 1_000_000))]
    with within(SHORT), pytest.raises(UnitError, match="nobody takes what is sent"):
        manager.start_scope(UNIT, more_than_the_socket_holds, deadline=SHORT)
    with pytest.raises(NoSystemd, match="by half"):
        manager.version()
    bus.released.set()


def test_stopping_what_is_not_there_still_forgets_its_failure(bus, manager):
    bus.handlers["StopUnit"] = bus.error("org.freedesktop.systemd1.NoSuchUnit", "not loaded")
    with within(0):
        manager.stop(UNIT, 5)
    manager.version()
    assert "ResetFailedUnit" in bus.members()


def test_a_closed_manager_says_so(manager):
    manager.close()
    manager.close()
    manager.stop(UNIT, 1)
    with pytest.raises(NoSystemd, match="the connection is closed"):
        manager.version()


# Addresses


@pytest.fixture
def environment(monkeypatch, directory):
    """No bus at all; sets what is given, and makes sockets (files do) below the directory."""
    monkeypatch.setattr(bus_address_module, "SYSTEM_SOCKET", os.path.join(directory, "none"))
    monkeypatch.setattr(bus_address_module.os, "geteuid", lambda: 4_000_000_000)
    for name in ("DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)

    def set_(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_


@pytest.mark.parametrize("user", [False, True])
def test_where_no_bus_is_there_is_no_address(environment, user):
    assert bus_address(user=user) is None
    with pytest.raises(NoSystemd, match="there is no bus at") as caught:
        Manager.connect(user=user)
    assert ("/run/user/4000000000/bus" if user else SYSTEM_SOCKET) in str(caught.value)


def test_the_system_bus_is_the_one_of_the_environment_or_the_well_known(environment, directory, monkeypatch):
    path = os.path.join(directory, "system")
    pathlib.Path(path).touch()
    monkeypatch.setattr(bus_address_module, "SYSTEM_SOCKET", path)
    assert bus_address(user=False) == f"unix:path={path}"
    environment(DBUS_SYSTEM_BUS_ADDRESS="unix:path=/other")
    assert bus_address(user=False) == "unix:path=/other"


def test_the_user_bus_is_that_of_the_runtime_directory_before_that_of_the_session(environment, directory):
    """A session bus, of dbus-run-session for one, has no systemd on it."""
    environment(DBUS_SESSION_BUS_ADDRESS="unix:abstract=/tmp/dbus-1", XDG_RUNTIME_DIR=directory)
    assert bus_address(user=True) == "unix:abstract=/tmp/dbus-1"
    pathlib.Path(directory, "bus").touch()
    assert bus_address(user=True) == f"unix:path={directory}/bus"


def test_the_user_bus_is_found_without_an_environment(environment, directory, monkeypatch):
    """As in cron jobs; and after su, XDG_RUNTIME_DIR is another user's."""
    home = os.path.join(directory, "own")
    pathlib.Path(home).touch()
    monkeypatch.setattr(bus_address_module, "user_sockets", lambda: [os.path.join(directory, "theirs"), home])
    environment(DBUS_SESSION_BUS_ADDRESS="unix:path=/session")
    assert bus_address(user=True) == f"unix:path={home}"


def test_the_sockets_of_the_user_bus_are_two_places(environment):
    assert bus_address_module.user_sockets() == ["/run/user/4000000000/bus"]
    environment(XDG_RUNTIME_DIR="/run/user/4000000000")
    assert bus_address_module.user_sockets() == ["/run/user/4000000000/bus"]
    environment(XDG_RUNTIME_DIR="/else")
    assert bus_address_module.user_sockets() == ["/else/bus", "/run/user/4000000000/bus"]


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("unix:path=/run/bus", [b"/run/bus"]),
        ("unix:path=/run/bus,guid=0123", [b"/run/bus"]),
        ("unix:guid=0123,abstract=/tmp/x", [b"\0/tmp/x"]),
        ("tcp:host=h,port=1;unix:path=/a;unix:abstract=b", [b"/a", b"\0b"]),
        ("unix:path=/a%20b%c3%a9%2C", ["/a bé,".encode()]),
        ("unix:path=/a\udcff", [b"/a\xff"]),
        ("unix:runtime=yes", []),
        ("unix:path=", []),
        ("unixexec:path=/bin/false", []),
        ("", []), (";;", []), ("unix", []), ("unix:", []), ("nonsense,=;:=", []),
    ],
)  # fmt: skip
def test_an_address_names_sockets(address, found):
    assert sockets(address) == found


def test_a_path_that_needs_it_is_escaped_and_read_again(environment, directory):
    runtime = os.path.join(directory, "a b;é,%")
    os.mkdir(runtime)
    pathlib.Path(runtime, "bus").touch()
    environment(XDG_RUNTIME_DIR=runtime)
    address = bus_address(user=True)
    assert address.isascii()
    assert sockets(address) == [os.fsencode(os.path.join(runtime, "bus"))]


@pytest.mark.parametrize("address", ["tcp:host=localhost,port=1", "nonsense", "unixexec:path=/bin/false"])
def test_an_address_without_a_unix_socket_is_told(environment, address):
    environment(DBUS_SYSTEM_BUS_ADDRESS=address)
    with pytest.raises(NoSystemd, match="names no unix socket"):
        Manager.connect(user=False)


def test_the_first_socket_that_answers_is_taken(bus, directory, monkeypatch):
    path = os.path.join(directory, "bus")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"tcp:host=h;unix:path={directory}/none;unix:path={path}")
    Manager.connect(user=False).close()


def test_all_sockets_that_do_not_answer_are_told(environment, directory):
    environment(DBUS_SYSTEM_BUS_ADDRESS=f"unix:path={directory}/none;unix:path={directory};unix:path=/{'x' * 200}")
    with pytest.raises(NoSystemd) as caught:
        Manager.connect(user=False)
    text = str(caught.value)
    assert f"{directory}/none: connect: No such file or directory; {directory}: connect: Connection refused" in text
    assert "path too long" in text


def test_an_abstract_socket_is_shown_with_an_at_sign(environment):
    environment(DBUS_SYSTEM_BUS_ADDRESS=f"unix:abstract=pinfold-none-{os.getpid()}")
    with pytest.raises(NoSystemd, match=f"@pinfold-none-{os.getpid()}: connect: Connection refused"):
        Manager.connect(user=False)


def test_an_abstract_socket_is_connected_to(monkeypatch):
    name = f"pinfold-fake-{os.getpid()}"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:abstract={name}")
    fake = fakebus.FakeBus("\0" + name)
    try:
        Manager.connect(user=False).close()
    finally:
        fake.close()


@pytest.mark.parametrize(
    ("user", "booted", "words"),
    [(True, True, "enable-linger"), (False, True, "systemctl status dbus"), (True, False, "not booted with systemd")],
)
def test_the_advice_fits_the_host(environment, monkeypatch, directory, user, booted, words):
    monkeypatch.setattr(manager_module, "_BOOTED", directory if booted else os.path.join(directory, "none"))
    with pytest.raises(NoSystemd) as caught:
        Manager.connect(user=user)
    assert words in caught.value.fix
    assert "cgroupfs" in caught.value.fix
