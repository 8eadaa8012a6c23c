"""A connection to a D-Bus message bus on which nothing waits longer than it may. It knows nothing of systemd.

jeepney brings the protocol: authentication, messages. Its own blocking connection is not used, for as of 0.9 it says
Hello and sends without any time limit, and leaves its socket open when Hello fails.

`end` is everywhere a time of time.monotonic(), in seconds, by which the call has returned.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import deque
from typing import Any, Final, NamedTuple, NoReturn, Self

from jeepney import HeaderFields, MessageFlag, MessageType, Parser, new_method_call
from jeepney.auth import BEGIN, AuthenticationError, Authenticator

MESSAGE_MAX: Final = 1 << 20  # bytes; a bus may send 128 MiB, what we ask for is some hundred bytes
_CONNECT_LOOK: Final = 0.005  # seconds between attempts while the bus' backlog of connections is full


class BusError(Exception):
    """Base of what can go wrong here; it does not leave the backend."""


class BusTimeout(BusError):
    """The answer did not come in time. The connection can be used further, unless a message was sent by half."""


class BusLost(BusError):
    """The connection is of no use, or of none any more: refused, closed, garbage."""


class BusRefused(BusError):
    """An error is what was answered: its name (such as org.freedesktop.DBus.Error.AccessDenied) and its message."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}" if message else name)
        self.name, self.message = name, message


class Target(NamedTuple):
    """The object and interface that a call is for."""

    object_path: str
    bus_name: str
    interface: str


THE_BUS: Final = Target("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")


class Answer(NamedTuple):
    """What came back from a call, or as a signal: the values, and the unique name of who sent it, the bus' word."""

    body: tuple[Any, ...]
    sender: str | None


class Bus:
    """A connection over which a Hello has gone. For one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over an authenticated socket. `open` is the way to one."""
        self._socket = sock
        self._parser = Parser()
        self._serial = 0
        self._unparsed = 0  # bytes of a message that is not whole yet
        self._lost: str | None = None
        self._watched: str | None = None
        self._signals: deque[Answer] = deque()

    @classmethod
    def open(cls, address: bytes, end: float) -> Self:
        """Connect, authenticate as our effective uid, say Hello. Raises BusLost or BusTimeout, which say in what."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        step = "connect"
        try:
            _connect(sock, address, end)
            step = "authenticate"
            _authenticate(sock, end)
            step = "Hello"
            bus = cls(sock)
            bus.call(THE_BUS, "Hello", end=end)
        except BaseException as error:
            sock.close()
            if isinstance(error, BusTimeout):
                raise BusTimeout(f"{step}: {error}") from error
            if isinstance(error, (BusError, OSError)):
                raise BusLost(f"{step}: {_words(error)}") from error
            raise
        return bus

    def peer_pid(self) -> int:
        """The process that listens on the socket; 0 if it is not in our pid namespace (socket(7), SO_PEERCRED)."""
        return int(struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])

    def call(
        self, target: Target, member: str, signature: str = "", body: tuple[Any, ...] = (), *, end: float
    ) -> Answer:
        """Call a method and wait for its reply. Raises BusRefused, BusTimeout or BusLost."""
        return self.reply(self.send(target, member, signature, body, end=end), end)

    def send(
        self,
        target: Target,
        member: str,
        signature: str = "",
        body: tuple[Any, ...] = (),
        *,
        end: float,
        answered: bool = True,
    ) -> int:
        """Send a method call and return its serial, for `reply`. Raises BusTimeout or BusLost."""
        message = new_method_call(target, member, signature or None, body)
        if not answered:
            message.header.flags = MessageFlag.no_reply_expected
        self._serial += 1
        data = message.serialise(serial=self._serial)
        if self._lost is not None:
            raise BusLost(self._lost)
        try:
            left = _left(end)
        except TimeoutError as error:
            raise BusTimeout("no time is left to ask") from error
        try:
            self._socket.settimeout(left)
            self._socket.sendall(data)
        except TimeoutError as error:
            self._drop("a message went out by half")
            raise BusTimeout("nobody takes what is sent") from error
        except OSError as error:
            self._lose(_words(error), error)
        return self._serial

    def reply(self, serial: int, end: float) -> Answer:
        """Wait for the reply to a call; what else comes is kept if it is watched. Raises as `call` does."""
        while True:
            header, answer = self._take(end)
            if header.fields.get(HeaderFields.reply_serial) != serial:
                continue  # to a call that nobody waits for any more
            if header.message_type is MessageType.error:
                text = answer.body[0] if answer.body and isinstance(answer.body[0], str) else ""
                raise BusRefused(str(header.fields.get(HeaderFields.error_name)), text)
            return answer

    def signal(self, end: float) -> Answer:
        """The next watched signal. Raises BusTimeout or BusLost."""
        while not self._signals:
            self._take(end)
        return self._signals.popleft()

    def watch(self, member: str | None) -> None:
        """Keep signals of this name from now on, for `signal`; None: keep none, and forget those that came."""
        self._watched = member
        self._signals.clear()

    def close(self) -> None:
        """Close the socket. A forked child may do so as well: nothing is sent."""
        self._lost = self._lost or "the connection is closed"
        self._socket.close()

    def _take(self, end: float) -> tuple[Any, Answer]:
        message = self._receive(end)
        header = message.header
        answer = Answer(message.body, header.fields.get(HeaderFields.sender))
        if header.message_type is MessageType.signal and header.fields.get(HeaderFields.member) == self._watched:
            self._signals.append(answer)
        return header, answer

    def _receive(self, end: float) -> Any:
        if self._lost is not None:
            raise BusLost(self._lost)
        while True:
            try:
                message = self._parser.get_next_message()
            except Exception as error:  # noqa: BLE001 - KeyError, struct.error, AssertionError…: jeepney has none of its own
                self._lose("what came is not D-Bus", error)
            if message is not None:
                self._unparsed = 0
                return message
            try:
                self._socket.settimeout(_left(end))
                data = self._socket.recv(4096)
            except TimeoutError as error:
                raise BusTimeout("no answer in time") from error
            except OSError as error:
                self._lose(_words(error), error)
            self._unparsed += len(data)
            if not data:
                self._lose("the bus closed the connection")
            if self._unparsed > MESSAGE_MAX:
                self._lose(f"a message of more than {MESSAGE_MAX} bytes came")
            self._parser.add_data(data)

    def _lose(self, why: str, cause: BaseException | None = None) -> NoReturn:
        self._drop(why)
        raise BusLost(why) from cause

    def _drop(self, why: str) -> None:
        self._lost = why
        self._socket.close()


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:  # and 0 would make the socket one that does not wait, which fails with EAGAIN instead
        raise TimeoutError
    return left


def _words(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _connect(sock: socket.socket, address: bytes, end: float) -> None:
    late = "no answer in time"
    while True:
        try:
            sock.settimeout(_left(end))
            sock.connect(address)
        except TimeoutError as error:
            raise BusTimeout(late) from error
        except BlockingIOError:
            # A full backlog is EAGAIN for a unix socket that does not block (connect(2)), and it never polls as ready.
            late = "the bus takes no more connections"
            time.sleep(_CONNECT_LOOK)
        else:
            return


def _authenticate(sock: socket.socket, end: float) -> None:
    authenticator = Authenticator()
    try:
        for line in authenticator:
            sock.settimeout(_left(end))
            sock.sendall(line)
            sock.settimeout(_left(end))
            data = sock.recv(1024)
            if not data:
                raise BusLost("the bus closed the connection")
            authenticator.feed(data)
        sock.settimeout(_left(end))
        sock.sendall(BEGIN)
    except TimeoutError as error:
        raise BusTimeout("no answer in time") from error
    except AuthenticationError as error:
        raise BusLost(str(error)) from error
