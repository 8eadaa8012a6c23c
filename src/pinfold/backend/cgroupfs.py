"""The cgroupfs backend: we make the cgroups ourselves, below one that is ours to divide.

our own cgroup (or the nearest above it that is delegated to us and can give controllers)
└── pinfold-<random>        the base of one fold, with its owner record
    └── run-<random>        one run, or the spare: made ahead, never used before, used once
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Mapping

from pinfold import late
from pinfold.backend import Scope, ScopeRequest
from pinfold.backend.base import BaseCgroup
from pinfold.backend.guard import Guard
from pinfold.cgroup import delegation, names
from pinfold.cgroup.controllers import ACCOUNTING, available, give, is_root
from pinfold.cgroup.places import Place
from pinfold.errors import CgroupError, Unsupported
from pinfold.result import Placement
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


class CgroupfsBackend:
    """Runs in cgroups that we made with mkdir."""

    name: Final = "cgroupfs"

    def __init__(self, *, labels: Mapping[str, str], spare: bool = True, move_caller: bool = False,
                 why: str | None = None) -> None:  # fmt: skip
        """Make the base cgroup where `delegation.place_for_runs` says.

        `move_caller`: where a limit needs it, move the processes of that place (this one among them) to a leaf.

        Raises NoCgroup2, NotDelegated or CgroupError.
        """
        self._parent, self._move_caller = delegation.place_for_runs(), move_caller
        self._guarding = threading.Lock()
        self._guard = _start_guard()  # what it takes to start, it does beside us
        try:
            _sweep_beside(self._parent)
            if not is_root(self._parent.directory):  # what is enabled there is for all the host: only on demand
                give(self._parent, ACCOUNTING)
            name, placement = names.new_base(), Placement(self.name, self._parent.path, why=why)
            self._base = BaseCgroup(self._parent, name, placement, self._guard, labels=labels, spare=spare)
        except BaseException:
            self._guard.forget()  # it removes what an interrupt may have left half made
            raise
        self.path, self.has_owner_record = self._base.place.path, self._base.has_owner_record

    lost: Final = False  # nobody manages these cgroups but us
    unit_per_run: Final = False

    @property
    def guard(self) -> int:
        """The pid of the fold's guard."""
        return self._guard.pid

    def scope(self, asked: ScopeRequest) -> Scope:
        """The cgroup of one run. Raises CgroupError, and Unsupported for a unit of its own."""
        if asked.unit is not None:
            found = "the backend cgroupfs makes no units"
            raise Unsupported(f"unit {asked.unit}", found, "use the backend systemd, on a host that it manages")
        if self._guard.ended():
            self._replace_guard()
        if not asked.controllers <= self._base.controllers:
            self._provide(asked.controllers | ACCOUNTING)
        return self._base.scope()

    def _replace_guard(self) -> None:
        """Somebody has killed it: no run without one."""
        with self._guarding:
            if self._guard.ended():
                guard = _start_guard()
                try:
                    self._base.guarded_by(guard)
                except BaseException:
                    guard.end()
                    raise
                old, self._guard = self._guard, guard
                old.end()

    def _provide(self, controllers: frozenset[str]) -> None:
        """Give the runs these controllers, as far as that goes; what is in the way is moved if we may."""
        parent = self._parent
        withheld = controllers & available(parent.directory) - give(parent, controllers)
        if withheld and self._move_caller and delegation.is_delegated(parent) and not is_root(parent.directory):
            delegation.move_to_leaf(parent)
            give(parent, controllers)
        self._base.enable(controllers)

    def prepare(self) -> None:
        """See Backend."""
        self._base.prepare()

    def release(self, scope: Scope, *, removed: bool) -> None:
        """Nothing was made for one run alone."""
        if not removed:
            self._base.quarantine(scope)

    def kill(self) -> None:
        """Kill all runs."""
        self._base.kill()

    def close(self, *, forked: bool = False) -> None:
        """Remove all that is left."""
        if self._base.close(forked=forked) and not forked:
            self._guard.end()
        else:
            self._guard.forget()


def _sweep_beside(parent: Place) -> None:
    """End what dead folds have left beside the new one, as far as it goes: not where descriptors have run out."""
    with contextlib.suppress(OSError, ImportError):
        if any(map(names.base_below, os.listdir(parent.directory))):
            with late.lock:
                from pinfold.lease import sweep

            sweep.beside(parent)


def _start_guard() -> Guard:
    try:
        return Guard(obeys_term=False)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise Unsupported("a guard for the fold", "there is no /bin/sh", "install a shell") from error
        raise CgroupError("start a guard for", "the fold", error, advice="see fork(2) and RLIMIT_NOFILE") from error
