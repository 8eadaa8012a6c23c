"""pinfold.slice, where systemd has left it active with no scope in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from pinfold.cgroup import delegation
from pinfold.cgroup.names import SLICE, slice_path
from pinfold.cgroup.places import Place
from pinfold.errors import Error
from pinfold.lease import find
from pinfold.lease.sweep import Swept

_STOP_DEADLINE: Final = 5.0


def sweep(top: Place, *, dry_run: bool = False) -> Iterator[Swept]:
    """The slice that systemd made for our scopes and left active without any: stop it.

    systemd itself stops a slice that nobody needs at most 16 times in 10 s. One that an administrator has installed
    stays.
    """
    user = os.geteuid() != 0
    place = slice_place(top)
    made_for_us = os.path.join(_runtime(user=user), "systemd/transient", SLICE)
    if not delegation.systemd_is_running() or not os.path.exists(made_for_us) or not _is_empty(place):
        return
    why = "no scope is in it, and systemd has left it active"
    from pinfold.backend.manager import Manager

    try:
        with Manager.connect(user=user) as manager:
            if manager.active_state(SLICE) != "active" or not _is_empty(place):
                return
            if dry_run:
                yield Swept(place.path, "slice", "would remove", [], [], why)
                return
            manager.stop(SLICE, _STOP_DEADLINE)
            gone = manager.active_state(SLICE) != "active"
    except Error:  # no bus, no slice to stop: an empty one harms nobody
        return
    if gone or _is_empty(place):  # else somebody has just needed it
        yield Swept(place.path, "slice", "removed" if gone else "left", [], [], why)


def slice_place(top: Place) -> Place:
    """The cgroup of pinfold.slice, there or not: of the system's manager for root, of the user's for others."""
    return find.child(top, slice_path(os.geteuid()))


def _runtime(*, user: bool) -> str:
    return (os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") if user else "/run"


def _is_empty(place: Place) -> bool:
    return os.path.isdir(place.directory) and not find.below(place) and not find.processes(place)
