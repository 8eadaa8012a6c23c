"""Which D-Bus socket leads to a systemd manager: environment and files are looked at, nothing is connected."""

from __future__ import annotations

import os
import re
from typing import Final

SYSTEM_SOCKET: Final = "/run/dbus/system_bus_socket"  # D-Bus specification, "Well-known Message Bus Instances"
_ESCAPED: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
# What the specification lets stand for itself in a value; everything else is written %xx.
_PLAIN: Final = re.compile(r"[^A-Za-z0-9_/.\\*-]")


def bus_address(*, user: bool) -> str | None:
    """The D-Bus address that would be asked for the user's manager, or the system's; None: there is no bus.

    An address from the environment is returned as it is. It may hold several, separated by ";", and may be of no use.
    """
    if not user:
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or _existing(SYSTEM_SOCKET)
    # sd_bus_open_user(3) asks DBUS_SESSION_BUS_ADDRESS first. But a session bus need not be the user bus: that of
    # dbus-run-session(1), dbus-launch(1) or a CI job's Xvfb has no systemd on it. The user manager's own dbus.socket is
    # always %t/bus, in XDG_RUNTIME_DIR, so that comes first; `systemctl --user` does alike with %t/systemd/private.
    # And cron jobs, `su` and services with User= have no XDG_RUNTIME_DIR, or another user's, where pam_systemd(8) would
    # have set the directory that lingering users have all the same.
    for path in user_sockets():
        if found := _existing(path):
            return found
    return os.environ.get("DBUS_SESSION_BUS_ADDRESS") or None


def user_sockets() -> list[str]:
    """Where the socket of the user bus may be, best first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = f"/run/user/{os.geteuid()}/bus"
    return list(dict.fromkeys([os.path.join(runtime, "bus"), own] if runtime else [own]))


def _existing(path: str) -> str | None:
    # For a directory of another user's, too, which we cannot look into, the answer is that nothing is there for us.
    return f"unix:path={_escape(path)}" if os.path.exists(path) else None


def _escape(path: str) -> str:
    return _PLAIN.sub(lambda match: "".join(f"%{byte:02x}" for byte in os.fsencode(match[0])), path)


def sockets(address: str) -> list[bytes]:
    """The unix sockets that a D-Bus address names, best first, as connect(2) takes them: abstract ones begin with NUL.

    Other transports (tcp, unixexec, launchd) are left out, and so is what is no address at all.
    """
    found = []
    for one in address.split(";"):
        transport, _, pairs = one.partition(":")
        values = dict(pair.partition("=")[::2] for pair in pairs.split(","))
        if transport != "unix":
            continue
        if values.get("path"):
            found.append(_unescape(values["path"]))
        elif values.get("abstract"):
            found.append(b"\0" + _unescape(values["abstract"]))
    return found


def _unescape(value: str) -> bytes:
    return _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), os.fsencode(value))
