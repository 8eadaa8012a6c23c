"""The systemd manager, asked over D-Bus: org.freedesktop.systemd1(5).

The system's manager for root, the user's own otherwise. What is asked for is old (StartTransientUnit for scopes:
systemd 205, GetUnit and StopUnit: older), so that nothing here depends on the release.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Final, Self

from pinfold.backend.bus import THE_BUS, Answer, Bus, BusError, BusLost, BusRefused, BusTimeout, Target
from pinfold.backend.bus_address import SYSTEM_SOCKET, bus_address, sockets, user_sockets
from pinfold.errors import NoSystemd, UnitError

__all__ = ["CLEAN_BOUND", "CONNECT_DEADLINE", "LOOK_DEADLINE", "START_DEADLINE", "Manager", "bus_address"]

Property = tuple[str, tuple[str, Any]]
Aux = tuple[str, list[Property]]

CONNECT_DEADLINE: Final = 5.0  # seconds, all four; a connect takes milliseconds, and so does a start
START_DEADLINE: Final = 10.0
LOOK_DEADLINE: Final = 1.0
_PASSING_LOOK: Final = 0.002
CLEAN_BOUND: Final = 1.0  # on top of a deadline that has passed

_NAME: Final = "org.freedesktop.systemd1"
_OBJECT: Final = "/org/freedesktop/systemd1"
_MANAGER: Final = Target(_OBJECT, _NAME, f"{_NAME}.Manager")
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_UNIT: Final = f"{_NAME}.Unit"
_NO_UNIT: Final = (f"{_NAME}.NoSuchUnit", "org.freedesktop.DBus.Error.UnknownObject")
# By their last words: those of the bus' own policy, of systemd, and of polkit by way of systemd.
_DENIED: Final = ("AccessDenied", "AuthFailed", "InteractiveAuthorizationRequired")
_ABSENT: Final = ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected")
_BOOTED: Final = "/run/systemd/system"  # sd_booted(3)


class Manager:
    """A connection to a systemd manager. Every call has a deadline, in seconds; threads take turns."""

    def __init__(self, bus: Bus, where: str, *, user: bool) -> None:
        """Take over an open bus; `where` is its address, for errors. `connect` is the way to one."""
        self._bus = bus
        self._where = where
        self._user = user
        self._lock = threading.Lock()

    @classmethod
    def connect(cls, *, user: bool, deadline: float = CONNECT_DEADLINE) -> Self:
        """Connect to the bus and make sure that a systemd of our own pid namespace is on it. Raises NoSystemd."""
        end = time.monotonic() + deadline
        address = bus_address(user=user)
        if address is None:
            looked = " or ".join(user_sockets() if user else [SYSTEM_SOCKET])
            raise _no_systemd(f"there is no bus at {looked}", user=user)
        reasons = []
        for one in sockets(address):
            try:
                bus = Bus.open(one, end)
            except BusError as error:
                reasons.append(f"{_shown(one)}: {error}")
                continue
            try:
                return cls._on(bus, _shown(one), end, user=user)
            except BaseException:
                bus.close()
                raise
        if not reasons:
            raise _no_systemd(f"the bus address {address!r} names no unix socket", user=user)
        raise _no_systemd("; ".join(reasons), user=user)

    @classmethod
    def _on(cls, bus: Bus, where: str, end: float, *, user: bool) -> Self:
        # A PID is a number, which the manager reads in its own pid namespace: handed from a container to the host's
        # manager, or the other way, it would mean another process. Who listens on a bus' socket is the manager itself
        # (socket activation) or its bus, so that this process stands for it; the kernel shows it as 0 if it is outside.
        if bus.peer_pid() == 0:
            raise _no_systemd(
                f"the bus at {where} belongs to another pid namespace, such as a container's host",
                user=user,
                fix="use the backend cgroupfs, or a systemd inside the container",
            )
        try:
            # The user's bus is started by its first client, which may be us, and the manager connects to it only then.
            # Asked to start the manager, the bus waits for it (dbus-daemon --systemd-activation, dbus-broker alike);
            # one without systemd runs the /bin/false that systemd's activation file names. It costs what a look does.
            bus.call(THE_BUS, "StartServiceByName", "su", (_NAME, 0), end=end)
        except BusRefused as error:
            raise _no_systemd(f"there is no systemd on the bus at {where}: {error}", user=user) from error
        except BusError as error:
            raise _no_systemd(f"{where}: waiting for systemd: {error}", user=user) from error
        return cls(bus, where, user=user)

    def start_scope(
        self,
        name: str,
        properties: list[Property],
        deadline: float = START_DEADLINE,
        *,
        passing_slice: str | None = None,
    ) -> None:
        """Start a transient scope and wait until it is active.

        `properties`: (name, (D-Bus signature, value)), such as ("PIDs", ("au", [pid])); systemd.scope(5).
        `passing_slice`: if there is no such slice yet, one is made that goes with its last unit. What fails is undone:
        no such unit is left, not even a failed one. That may take CLEAN_BOUND longer than the deadline.

        Raises NoSystemd (no connection, not permitted) or UnitError (refused, failed, not in time).
        """
        with self._turn("start", name, deadline) as end:
            result = None if passing_slice is None else self._start_in_passing(name, properties, passing_slice, end)
            if result is None:
                result = self._start(name, properties, [], end)
        if result != "done":
            raise UnitError(name, "start", f"its job ended as {result!r}", self._see(name))

    def active_state(self, unit: str, deadline: float = LOOK_DEADLINE) -> str | None:
        """The ActiveState, such as "active", "deactivating", "failed"; None: there is no such unit (any more).

        A unit that goes between the two questions that this takes is "inactive". Raises NoSystemd or UnitError.
        """
        with self._turn("look at", unit, deadline) as end:
            return self._active_state(unit, end)

    def stop(self, unit: str, deadline: float) -> None:
        """Stop a unit and forget its failure, as far as that can be done in time. Raises nothing."""
        with (
            contextlib.suppress(NoSystemd, UnitError),
            self._turn("stop", unit, deadline) as end,
            self._watching(unit, end),
        ):
            self._clean(unit, end)

    def version(self) -> str:
        """The manager's own version, such as "252.38-1~deb12u1". Raises NoSystemd or UnitError."""
        with self._turn("look at", "the manager", LOOK_DEADLINE) as end:
            return self._property(_MANAGER, "Version", end)

    def close(self) -> None:
        """Close the connection; units stay. A forked child may do so as well, the parent's connection stays."""
        self._bus.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What follows raises BusErrors, which _turn makes errors of ours.

    @contextlib.contextmanager
    def _turn(self, op: str, unit: str, deadline: float) -> Iterator[float]:
        """One operation on one unit: when it has to end. No other thread reads our replies meanwhile."""
        end = time.monotonic() + deadline
        if not self._lock.acquire(timeout=max(deadline, 0)):
            raise UnitError(unit, op, "another thread's call took all the time", "give each thread its own manager")
        try:
            yield end
        except BusTimeout as error:
            raise UnitError(unit, op, f"{error} ({deadline:g} s)", self._see(unit)) from error
        except BusLost as error:
            raise _no_systemd(f"{op} {unit}: the connection to {self._where} was lost: {error}", user=self._user) from (
                error
            )
        except BusRefused as error:
            kind = error.name.rpartition(".")[2]
            if kind in _DENIED:
                found = f"{op} {unit}: may not be used: {error}"
                raise _no_systemd(found, user=self._user, fix=self._permission()) from error
            if kind in _ABSENT or ".Spawn." in error.name:
                raise _no_systemd(f"{op} {unit}: systemd has left the bus: {error}", user=self._user) from error
            raise UnitError(unit, op, str(error), self._see(unit)) from error
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def _watching(self, unit: str, end: float) -> Iterator[None]:
        """See the end of the jobs of one unit. Around it, neither the manager nor the bus has anything to tell us."""
        # Its values: id, job, unit, result. That of a job which is over at once may overtake the reply with its path.
        rule = (
            f"type='signal',sender='{_NAME}',path='{_OBJECT}',interface='{_MANAGER.interface}',"
            f"member='JobRemoved',arg2='{_quoted(unit)}'"
        )
        self._bus.watch("JobRemoved")
        try:
            self._bus.call(THE_BUS, "AddMatch", "s", (rule,), end=end)
            self._ask("Subscribe", "", (), end)
            yield
        finally:
            self._bus.watch(None)
            later = time.monotonic() + CLEAN_BOUND
            with contextlib.suppress(BusError):
                self._bus.send(THE_BUS, "RemoveMatch", "s", (rule,), end=later, answered=False)
                self._bus.send(_MANAGER, "Unsubscribe", end=later, answered=False)

    def _start(self, name: str, properties: list[Property], slices: list[Aux], end: float) -> str:
        """The result of the job."""
        with self._watching(name, end):
            # "replace": our slice may just be on its way out. A unit of this name is an error in any mode.
            body: tuple[Any, ...] = (name, "replace", properties, slices)
            serial = self._bus.send(_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", body, end=end)
            job = None
            try:
                job = self._bus.reply(serial, end)
                result = self._removed(job, end)
            except BusRefused:
                raise  # nothing was made; what has this name is somebody else's
            except BaseException:
                later = time.monotonic() + CLEAN_BOUND
                with contextlib.suppress(BusError):
                    # Only a reply says that the unit is ours, and not another of the same name. If none comes, the
                    # manager does not answer at all, and could not be told to stop it either.
                    if job is None:
                        self._bus.reply(serial, later)
                    self._clean(name, later)
                raise
            if result != "done":
                self._clean(name, time.monotonic() + CLEAN_BOUND)
            return result

    def _start_in_passing(self, name: str, properties: list[Property], slice_: str, end: float) -> str | None:
        """As `_start`, with a slice that goes with its last unit; None: there is one already, which will do."""
        slices: list[Aux] = [(slice_, [("StopWhenUnneeded", ("b", True))])]
        while True:
            try:
                return self._start(name, properties, slices, end)
            except BusRefused as error:
                if slice_ not in str(error):
                    raise
            if self._active_state(slice_, end) == "active" or time.monotonic() > end - CLEAN_BOUND:
                return None
            time.sleep(_PASSING_LOOK)  # the one before is just being collected

    def _active_state(self, unit: str, end: float) -> str | None:
        try:
            # To ask an object path that is not there would have systemd load the unit, and call it inactive.
            path = _string(self._ask("GetUnit", "s", (unit,), end))
            return self._property(Target(path, _NAME, _UNIT), "ActiveState", end)
        except BusRefused as error:
            if error.name in _NO_UNIT:
                return None
            raise

    def _removed(self, job: Answer, end: float) -> str:
        """Wait for the end of a job that `job` is the reply about: "done", "failed", "canceled", "timeout", …"""
        path = _string(job)
        while True:
            try:
                signal = self._bus.signal(end)
            except BusTimeout as error:
                raise BusTimeout("its job has not ended in time") from error
            # Any process on the system bus may send us alone such a signal, whatever the match rule says; the sender's
            # name is the bus' own word.
            if signal.sender == job.sender and signal.body[1:2] == (path,) and len(signal.body) == 4:
                return str(signal.body[3])

    def _clean(self, unit: str, end: float) -> None:
        """Stop the unit and wait for that, then forget that it failed; to be called while watching it."""
        with contextlib.suppress(BusError):
            self._removed(self._ask("StopUnit", "ss", (unit, "replace"), end), end)
        with contextlib.suppress(BusError):
            self._ask("ResetFailedUnit", "s", (unit,), end)

    def _ask(self, member: str, signature: str, body: tuple[Any, ...], end: float) -> Answer:
        return self._bus.call(_MANAGER, member, signature, body, end=end)

    def _property(self, target: Target, name: str, end: float) -> str:
        place = Target(target.object_path, target.bus_name, _PROPERTIES)
        answer = self._bus.call(place, "Get", "ss", (target.interface, name), end=end)
        variant = answer.body[0] if answer.body else None  # (signature, value)
        return _string(answer._replace(body=variant[1:] if isinstance(variant, tuple) else ()))

    def _see(self, unit: str) -> str:
        return f"see journalctl {'--user ' if self._user else ''}-b -u {unit}"

    def _permission(self) -> str:
        if self._user:
            return "use the backend cgroupfs"
        return "be root, or use the user's manager or the backend cgroupfs"


def _string(answer: Answer) -> str:
    if len(answer.body) == 1 and isinstance(answer.body[0], str):
        return answer.body[0]
    raise BusLost(f"an answer of another form came: {answer.body!r:.100}")


def _quoted(value: str) -> str:
    return value.replace("'", r"'\''")  # D-Bus specification, "Match Rules"


def _shown(address: bytes) -> str:
    return os.fsdecode(b"@" + address[1:] if address[:1] == b"\0" else address)


def _no_systemd(found: str, *, user: bool, fix: str | None = None) -> NoSystemd:
    if fix is None and not os.path.isdir(_BOOTED):
        fix = "this system was not booted with systemd: use the backend cgroupfs"
    elif fix is None and user:
        fix = "loginctl enable-linger starts the user's manager and its bus; or use the backend cgroupfs"
    elif fix is None:
        fix = "see systemctl status dbus; or use the backend cgroupfs"
    return NoSystemd(f"the {'user' if user else 'system'} manager of systemd", found, fix)
