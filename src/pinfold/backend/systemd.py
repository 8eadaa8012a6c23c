"""The systemd backend: runs in delegated scopes, one for the fold or one for each run.

One bus call makes the fold's scope. Runs are then born in cgroups below it by `clone3`, with no bus call and no move.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from pinfold import late
from pinfold.backend import Scope, ScopeRequest
from pinfold.backend.base import BaseCgroup
from pinfold.backend.bus_address import bus_address
from pinfold.backend.manager import Manager
from pinfold.backend.unit import Property, ScopeUnit
from pinfold.backend.unit_names import unit_name
from pinfold.cgroup import delegation, names, places
from pinfold.cgroup.controllers import give
from pinfold.errors import NoSystemd, NotDelegated
from pinfold.lease import sweep
from pinfold.result import Placement


def why_not(*, move_caller: bool) -> str | None:
    """What speaks against this backend, as far as it can be seen without asking the manager; None: nothing."""
    if not delegation.systemd_is_running():
        return delegation.NO_SYSTEMD
    user = os.geteuid() != 0
    if bus_address(user=user) is None:
        return f"there is no bus to the {'user' if user else 'system'} manager"
    if user and not move_caller and not within_user_manager():
        return "this process is outside user@.service, and only Fold(move_caller=True) may move it"
    return None


def within_user_manager() -> bool:
    """Whether we are in our user manager's part of the tree.

    From elsewhere the kernel lets nobody but root start a process in there: that takes the right to write the
    cgroup.procs of the nearest common ancestor (cgroup-v2.rst, "Delegation Containment").
    """
    return delegation.is_within_user_manager(places.own_place().path, os.geteuid())


class _ScopeBase(NamedTuple):
    """A scope, and the runs in it."""

    unit: ScopeUnit
    base: BaseCgroup

    def provide(self, controllers: frozenset[str]) -> None:
        """Give the runs these controllers, as far as the manager gave them to the scope."""
        if not controllers <= self.base.controllers:
            give(self.unit.place, controllers)
            self.base.enable(controllers)

    def close(self, *, forked: bool) -> None:
        """Remove the runs, and let go of the scope."""
        if self.base.close(forked=forked) and not forked:
            self.unit.release()
        else:
            self.unit.forget()


class SystemdBackend:
    """Runs in scopes that systemd made for us."""

    name: Final = "systemd"

    def __init__(self, *, spare: bool = True, slice_name: str | None = None, scope_per_run: bool = False,
                 move_caller: bool = False, labels: Mapping[str, str], why: str | None = None) -> None:  # fmt: skip
        """Start the fold's scope; with `scope_per_run` only where this process has to move into it.

        Raises NoSystemd, NotDelegated, UnitError or CgroupError.
        """
        self._user, self._labels = os.geteuid() != 0, labels
        self._spare, self._scope_per_run, self._why = spare, scope_per_run, why
        self._slice = names.SLICE if slice_name is None else unit_name(slice_name, "slice")
        self._swept = False
        self._homes: dict[str, _ScopeBase] = {}  # of single runs, by their ids
        self._fold: _ScopeBase | None = None
        outside = self._user and not within_user_manager()
        if outside and not move_caller:
            raise NotDelegated(
                "a scope of our own",
                f"this process is in {places.own_place().path}, from where uid {os.geteuid()} may start nothing in one",
                "open the fold with move_caller=True, which moves this process; or start the program by: "
                "systemd-run --user --scope -p Delegate=yes …",
            )
        if outside or not scope_per_run:
            self._fold = self._home(
                names.new_scope(), f"pinfold: commands of process {os.getpid()}", [], caller=outside
            )

    def _home(self, name: str, description: str, properties: list[Property], *, caller: bool = False,
              own_unit: bool = False) -> _ScopeBase:  # fmt: skip
        with Manager.connect(user=self._user) as manager:
            unit = ScopeUnit(manager, name, self._slice, description, properties, user=self._user, caller=caller)
        if not self._swept:  # for all its scopes at once: they are in one slice
            self._swept = True
            sweep.beside(next(places.ancestors(unit.place)))
        placement = Placement(self.name, unit.place.path, name, why=self._why)
        try:
            base = BaseCgroup(unit.place, names.BASE_IN_SCOPE, placement, unit.guard, labels=self._labels,
                      revocable=unit, own_unit=own_unit, spare=self._spare and not own_unit)  # fmt: skip
        except BaseException:
            unit.release()
            raise
        return _ScopeBase(unit, base)

    @property
    def path(self) -> str:
        """The cgroup that the runs of the fold are in; where each has its own scope, their slice."""
        return self._slice if self._fold is None else self._fold.base.place.path

    @property
    def has_owner_record(self) -> bool:
        """Whether that cgroup carries our owner record."""
        return self._fold is not None and self._fold.base.has_owner_record

    def scope(self, asked: ScopeRequest) -> Scope:
        """The cgroup of one run, in a scope of its own where that is asked for. Raises CgroupError, UnitError."""
        if asked.unit is not None or self._scope_per_run:
            return self._scope_of_its_own(asked)
        assert self._fold is not None
        if self.lost:
            raise NoSystemd(f"the scope {self._fold.unit.name}", "it was stopped from outside", "open a new fold")
        self._fold.provide(asked.controllers)
        return self._fold.base.scope()

    @property
    def guard(self) -> int | None:
        """The pid of the fold's guard."""
        return None if self._fold is None else self._fold.unit.guard.pid

    @property
    def unit_per_run(self) -> bool:
        """Whether each run has a scope of its own."""
        return self._scope_per_run

    @property
    def lost(self) -> bool:
        """Whether the fold's scope was stopped from outside."""
        return self._fold is not None and self._fold.unit.lost

    def _scope_of_its_own(self, asked: ScopeRequest) -> Scope:
        properties: list[Property] = []
        if asked.limits is not None:
            with late.lock:
                from pinfold.limits.properties import to_properties

            properties = to_properties(asked.limits)
        name = names.new_run_scope() if asked.unit is None else unit_name(asked.unit)
        home = self._home(name, asked.description or name, properties, own_unit=True)
        try:
            home.provide(asked.controllers)
            scope = home.base.scope()
        except BaseException:
            home.close(forked=False)
            raise
        self._homes[scope.run_id] = home
        return scope

    def prepare(self) -> None:
        """See Backend."""
        if self._fold is not None:
            self._fold.base.prepare()

    def release(self, scope: Scope, *, removed: bool) -> None:
        """Let go of the scope that was this run's own."""
        home = self._homes.pop(scope.run_id, None)
        if home is not None:
            home.close(forked=False)
        elif not removed and self._fold is not None:
            self._fold.base.quarantine(scope)

    def kill(self) -> None:
        """Kill all runs; their guards stay, and so does this process if it is in there."""
        for home in self._all():
            home.base.kill()

    def close(self, *, forked: bool = False) -> None:
        """Remove all that is left of the runs, and let go of the scopes: systemd collects them once they are empty."""
        for home in self._all():
            home.close(forked=forked)
        self._homes.clear()

    def _all(self) -> list[_ScopeBase]:
        return [*self._homes.values(), *([self._fold] if self._fold else [])]
