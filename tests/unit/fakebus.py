"""A message bus with a systemd on it, in a thread, that does as each test tells it."""

from __future__ import annotations

import contextlib
import socket
import threading

from jeepney import HeaderFields, MessageType, Parser, new_error, new_method_return, new_signal
from jeepney.wrappers import DBusAddress

SYSTEMD = ":1.0"
MANAGER = DBusAddress("/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager")
JOB = "/org/freedesktop/systemd1/job/7"


class Closed(Exception):
    """The connection is over."""


class FakeBus:
    """What it answers is in `handlers`: by member (or AUTH, BEGIN), what to do with the message.

    A handler returns the (signature, values) of the reply; or None, and has sent what there is to be sent.
    """

    def __init__(self, path):
        self.calls = []  # (member, values), in their order
        self.handlers = {
            "AUTH": lambda _line: self.raw(b"OK 0123456789abcdef0123456789abcdef\r\n"),
            "Hello": lambda _m: ("s", (":1.42",)),
            "StartServiceByName": lambda _m: ("u", (2,)),  # already running
            "StartTransientUnit": self.job_done,
            "StopUnit": self.job_done,
            "GetUnit": lambda _m: ("o", ("/org/freedesktop/systemd1/unit/x",)),
            "Get": lambda _m: ("v", (("s", "active"),)),
        }
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(4)
        self.connection = None
        self.released = threading.Event()  # for handlers that stand still
        self._serial = 0
        self._thread = threading.Thread(target=self._serve, name="fakebus")
        self._thread.start()

    def close(self):
        # Only this way accept(2) in the thread comes back.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.close_connection()
        self._thread.join(5)
        self.listener.close()
        assert not self._thread.is_alive()

    def close_connection(self):
        connection = self.connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def members(self):
        return [member for member, _values in self.calls]

    # What handlers are made of.

    def raw(self, data):
        self.connection.sendall(data)

    def reply(self, message, signature=None, values=()):
        self._send(new_method_return(message, signature, values))

    def error(self, name, text):
        return lambda message: self._send(new_error(message, name, "s", (text,)))

    def removed(self, unit, result="done", *, sender=SYSTEMD, job=JOB):
        self._send(new_signal(MANAGER, "JobRemoved", "uoss", (7, job, unit, result)), sender)

    def job_done(self, message):
        """The job's end overtakes the reply that names it."""
        self.removed(message.body[0])
        return "o", (JOB,)

    def job_ends_as(self, result):
        def handler(message):
            self.reply(message, "o", (JOB,))
            self.removed(message.body[0], result)

        return handler

    def hang(self, _message):
        """Take what comes and say nothing."""
        while self.connection.recv(4096):
            pass
        raise Closed

    def hang_up(self, _message):
        raise Closed

    def babble(self, _message):
        """Garbage, and then nothing any more."""
        self.raw(b"\xff\0HTTP/1.1 400 Bad Request\r\n\r\n" * 3)
        self.hang(_message)

    def trickle(self, _message):
        """The head of a message, of which the rest never comes."""
        self.raw(b"l\2\1\1" + b"\xff\xff\0\0" + b"\1\0\0\0" + b"\0\0\0\0")
        self.hang(_message)

    def _send(self, message, sender=SYSTEMD):
        self._serial += 1
        message.header.fields[HeaderFields.sender] = sender
        self.raw(message.serialise(serial=self._serial))

    def _serve(self):
        while True:
            try:
                self.connection, _ = self.listener.accept()
            except OSError:
                return
            with self.connection, contextlib.suppress(Closed, ConnectionError):
                self._converse()
            self.connection = None

    def _converse(self):
        line = b""
        while not line.endswith(b"\r\n"):
            line += self._read()
        assert line.startswith(b"\0AUTH EXTERNAL ")
        self._handle("AUTH", line)
        data = b""
        while b"BEGIN\r\n" not in data:
            data += self._read()
        parser = Parser()
        parser.add_data(data.partition(b"BEGIN\r\n")[2])
        while True:
            while (message := parser.get_next_message()) is not None:
                assert message.header.message_type is MessageType.method_call
                self._handle(message.header.fields[HeaderFields.member], message)
            parser.add_data(self._read())

    def _read(self):
        data = self.connection.recv(4096)
        if not data:
            raise Closed
        return data

    def _handle(self, member, message):
        self.calls.append((member, getattr(message, "body", message)))
        answer = self.handlers.get(member, lambda _m: (None, ()))(message)
        # A reply that is not expected is not sent.
        if answer is not None and not message.header.flags & 1:
            self.reply(message, *answer)
