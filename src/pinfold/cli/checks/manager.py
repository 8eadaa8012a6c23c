"""The systemd manager, its bus, and which of its units we are in: what the choice of a backend is made by."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pinfold.backend.bus_address import bus_address
from pinfold.cgroup import advice, delegation, places
from pinfold.cli.checks import Check
from pinfold.errors import Error, NoCgroup2, NotDelegated, Unsupported

_TO_A_SCOPE = "start the program by: systemd-run --user --scope -p Delegate=yes …"


class Surroundings:
    """Where this process is, taken down before a run may move it."""

    def __init__(self) -> None:
        """Look; raises nothing that is of this host's making."""
        self.own: places.Place | None = None
        self.nearest: places.Place | None = None
        self.for_runs: places.Place | None = None
        self.missing: Unsupported | OSError | None = None
        try:
            self.own = places.own_place()
            self.nearest = places.delegated_place()
            self.for_runs = delegation.place_for_runs()
        except (NoCgroup2, NotDelegated, OSError) as error:
            self.missing = error

    def mount(self) -> Iterator[Check]:
        """Whether there is a usable cgroup v2, and what this runs in."""
        kind = advice.kind()
        yield Check("container", True, kind or "no mark of one")
        name, error = "cgroup v2", self.missing
        if self.own is not None:
            found = f"our cgroup is {self.own.path} at {self.own.directory}"
            yield Check(name, True, found, needed=True)
        elif isinstance(error, Unsupported):
            yield Check(name, False, error.found, needed=True, fix=error.fix)
        else:
            yield Check(name, False, str(error), needed=True, fix="mount proc: mount -t proc proc /proc")

    def unit(self) -> Iterator[Check]:
        """Which part of systemd's tree we are in."""
        if self.own is not None and delegation.systemd_is_running():
            found, fix = whereabouts(self.own.path, os.geteuid())
            yield Check("whereabouts", fix is None, found, fix=fix)

    def delegation(self, *, needed: bool) -> Iterator[Check]:
        """Where we may make cgroups ourselves; `needed` where no manager makes them for us."""
        if self.own is None:
            return
        if self.nearest is None:
            error = self.missing
            found, fix = (error.found, error.fix) if isinstance(error, Unsupported) else (str(error), None)
            yield Check("delegation", False, found, needed, fix=fix or "mend what the line says")
            return
        found = f"uid {os.geteuid()} may make cgroups in {self.nearest.directory}"
        yield Check("delegation", True, found + self._handed_over(self.nearest), needed)
        if self.for_runs is not None:
            yield Check("place of folds", True, f"{self.for_runs.directory} (of the backend cgroupfs)")

    @staticmethod
    def _handed_over(place: places.Place) -> str:
        if not delegation.systemd_is_running():
            return ""
        unit = delegation.unit_of(place.path)
        if unit is None:
            return ", which is in no unit of systemd's"
        if delegation.is_delegated(place):
            return f", which systemd has delegated to {unit}"
        return f", which is {unit}'s and not delegated to it: systemd may undo what is made there"


def whereabouts(path: str, uid: int) -> tuple[str, str | None]:
    """What a cgroup path is to systemd, and what to do if nothing can be started in a scope from there."""
    unit = delegation.unit_of(path)
    if uid and delegation.is_within_user_manager(path, uid):
        return f"in {unit}, within user@{uid}.service", None
    if unit is None:
        found = "in no unit"
    elif unit.startswith("session-") and unit.endswith(".scope"):
        found = f"in the login session {unit}"
    else:
        found = f"in the system's {unit}"
    if uid == 0:
        return found, None
    return f"{found}, outside user@{uid}.service: `pinfold run` moves itself, Fold(move_caller=True) too", _TO_A_SCOPE


def systemd() -> Iterator[Check]:
    """The manager and its version, asked over its bus."""
    user = os.geteuid() != 0
    whose = "user" if user else "system"
    address = bus_address(user=user)
    if not delegation.systemd_is_running():
        yield Check("systemd", False, "is not the manager here (no /run/systemd/system): the backend is cgroupfs")
        if address is None:
            return
    try:
        from pinfold.backend.manager import Manager

        with Manager.connect(user=user, deadline=1.0) as manager:
            version = manager.version()
    except Error as error:
        found, fix = (error.found, error.fix) if isinstance(error, Unsupported) else (str(error), None)
        if delegation.systemd_is_running():
            yield Check("systemd", True, f"is the manager here; the {whose} manager could not be asked")
        yield Check("bus", False, f"{address or 'none'}: {found}", fix=fix)
        return
    yield Check("systemd", True, f"{version}, the {whose} manager")
    yield Check("bus", True, f"{address} answers")
