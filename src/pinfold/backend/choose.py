"""Which backend: systemd where it runs and may be used, else cgroupfs; and why not the other."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pinfold import late
from pinfold.backend import Backend
from pinfold.backend.cgroupfs import CgroupfsBackend
from pinfold.cgroup import delegation, names
from pinfold.cgroup.places import own_place
from pinfold.errors import NoSystemd, NotDelegated, UsageError
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final, Literal

    Name = Literal["auto", "cgroupfs", "systemd"]

_NAMES: Final = ("auto", "cgroupfs", "systemd")
VARIABLE: Final = "PINFOLD_BACKEND"  # what `auto` means, for whoever runs a program and does not want its choice

_FIX: Final = "use a host that systemd manages, as root or with a user manager of your own (loginctl enable-linger)"


def open_backend(name: Name, *, labels: Mapping[str, str], spare: bool, slice_name: str | None, scope_per_run: bool,
                 move_caller: bool) -> Backend:  # fmt: skip
    """Open the backend of this name. Raises UsageError, NoCgroup2, NotDelegated, NoSystemd, UnitError, CgroupError."""
    if name == "auto":
        name = os.environ.get(VARIABLE) or name  # type: ignore[assignment]  # it is looked at in the next line
    if name not in _NAMES:
        raise UsageError(f"backend {name!r}: known are auto, cgroupfs and systemd")
    of_units = slice_name is not None or scope_per_run
    if name == "cgroupfs":
        if of_units:
            raise UsageError("a slice, and a unit for a run, are the backend systemd's: cgroupfs makes none")
        return CgroupfsBackend(labels=labels, spare=spare, move_caller=move_caller)
    found: str | None
    if not delegation.systemd_is_running():  # said without importing what it takes to ask it
        found = delegation.NO_SYSTEMD
    elif name == "auto" and not of_units and names.is_within_a_run(own_place().path):
        found = "this process is in a run of pinfold, whose limits are to hold for what it runs"
    else:
        with late.lock:
            from pinfold.backend import systemd

        found = None if name == "systemd" else systemd.why_not(move_caller=move_caller)
        if found is None:
            why = None if name == "systemd" else "auto: systemd is the manager here"
            try:
                return systemd.SystemdBackend(
                    labels=labels,
                    spare=spare,
                    slice_name=slice_name,
                    scope_per_run=scope_per_run,
                    move_caller=move_caller,
                    why=why,
                )
            except NoSystemd as error:
                if name == "systemd":
                    raise
                found = str(error)
    if name == "systemd" or of_units:
        raise NoSystemd("the backend systemd", found, _FIX)
    try:
        return CgroupfsBackend(
            labels=labels, spare=spare, move_caller=move_caller, why=f"auto: not systemd, as {found}"
        )
    except NotDelegated as error:
        raise NotDelegated(error.feature, f"{error.found}; nor can systemd be used: {found}", error.fix) from error
