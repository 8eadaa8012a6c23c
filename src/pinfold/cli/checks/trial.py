"""Real runs through the backend that `auto` takes: what the other checks cannot promise, these have seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

from pinfold.backend.choose import VARIABLE
from pinfold.cgroup import places
from pinfold.cgroup.controllers import given
from pinfold.cli.checks import REPORT, Check
from pinfold.errors import Error, NoSystemd, UnitError, Unsupported, UsageError
from pinfold.limits import Limits
from pinfold.result import Result
from pinfold.runs.fold import Fold

_DEADLINE: Final = 10.0  # seconds, for each
# Limits that `true` does not reach, by the controller that they take.
_LIMITS: Final[dict[str, dict[str, Any]]] = {
    "memory": {"memory_max": "256M"},
    "pids": {"pids_max": 64},
    "cpu": {"cpu_max": 1.0},
}


class Trial:
    """A fold as `pinfold run` opens it, and what became of runs in it. A context manager.

    `error`: why there is no fold, or no run in it. `place`: the cgroup that the runs are in.
    """

    def __init__(self) -> None:
        """Open it and run; raises nothing that is of this host's making."""
        self.error: Exception | None = None
        self.fold: Fold | None = None
        self.place: places.Place | None = None
        self.plain: Result | None = None
        self.stray: Result | None = None
        self.limited: Result | None = None
        try:
            self.fold = Fold(move_caller=True, spare=False)
            self.place = places.place_at(self.fold.path)
            self._run(self.fold, self.place)
        except Exception as error:  # noqa: BLE001  # told by the checks, whatever it is
            self.error = error

    def _run(self, fold: Fold, place: places.Place) -> None:
        env = {"PATH": os.defpath}  # it is the host that is looked at, not the caller's environment
        self.plain = fold.run(["true"], timeout=_DEADLINE, env=env)
        self.stray = fold.run(["sh", "-c", "setsid sleep 60 & exit 0"], timeout=_DEADLINE, env=env)
        # Only what runs are given in any case: a limit can have controllers enabled further up, and that would stay.
        there = given(place.directory)
        if "memory" in there:
            asked = {name: value for each in sorted(there & set(_LIMITS)) for name, value in _LIMITS[each].items()}
            self.limited = fold.run(["true"], timeout=_DEADLINE, env=env, limits=Limits.of(asked))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.fold is not None:
            self.fold.close()

    def backend(self) -> Iterator[Check]:
        """Which backend `auto` takes here, and why not the other."""
        asked = f"{VARIABLE}={os.environ[VARIABLE]} says so" if os.environ.get(VARIABLE) else None
        if self.fold is None:
            found, fix = _told(self.error)
            if isinstance(self.error, UsageError | NoSystemd) and asked:
                fix = f"unset {VARIABLE}"
            yield Check("backend", False, f"none can be used: {found}", needed=True, fix=fix)
        elif self.plain is None:
            yield Check("backend", True, f"its runs would be in {self.fold.path}")
        else:
            placement = self.plain.placement
            yield Check("backend", True, f"{placement.backend} ({placement.why or asked or 'auto'})")

    def runs(self) -> Iterator[Check]:
        """What it is all about: a run, a stray that has to die, and a limit that is in force."""
        if self.fold is None:
            return  # said by `backend`
        if self.plain is None or self.stray is None:
            found, fix = _told(self.error)
            yield Check("a run", False, found, needed=True, fix=fix)
            return
        yield self._limit()
        ended = (self.plain, self.stray)
        if all(r.ok and r.receipt.emptied and r.receipt.removed for r in ended) and self.stray.receipt.strays == 1:
            yield Check("a run", True, "worked; a setsid'ed stray was found and killed", needed=True)
        else:
            failed = self.plain if not self.plain.ok else self.stray
            yield Check("a run", False, f"failed: {failed.to_json()}", needed=True, fix=REPORT)

    def _limit(self) -> Check:
        name = "a run with limits"
        if self.limited is not None:
            applied = ", ".join(f"{limit} {value}" for limit, value in self.limited.limits["applied"].items())
            kept = self.limited.ok and not self.limited.limits["missing"]
            return Check(name, kept, f"worked; in force were {applied}", fix=None if kept else REPORT)
        if self.error is not None:
            found, fix = _told(self.error)
            return Check(name, False, found, fix=fix)
        return Check(
            name, False, "not tried: no run has the controller memory unasked, and asking could change the host"
        )


def _told(error: Exception | None) -> tuple[str, str]:
    """What an error found, and what to do about it."""
    if isinstance(error, Unsupported | UnitError):
        return error.found, error.fix
    if isinstance(error, PermissionError) and not isinstance(error, Error):
        # glibc's posix_spawn (from 2.34) takes clone3, and does without it for ENOSYS alone.
        return str(error), f"have the seccomp filter refuse clone3 by ENOSYS; or set {VARIABLE}=cgroupfs"
    if isinstance(error, Error | OSError):
        return str(error), "mend what the line says"
    return f"{type(error).__name__}: {error}", REPORT
