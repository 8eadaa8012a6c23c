"""Whether the guard works on this host, and what dead owners have left."""

from __future__ import annotations

from collections.abc import Iterator

from pinfold.cgroup import places
from pinfold.cli.checks import REPORT, Check
from pinfold.cli.checks.trial import Trial
from pinfold.errors import NoCgroup2
from pinfold.lease import find


def guard(trial: Trial) -> Iterator[Check]:
    """Whether a fold has its guard; one that could not be started has ended the trial."""
    if trial.fold is not None:
        pid = trial.fold.guard
        try:
            found = f"process {pid}, in {places.place_of(pid or 0).path}"
        except (OSError, NoCgroup2) as error:
            yield Check("guard", False, f"process {pid}: {error}", fix=REPORT)
        else:
            yield Check("guard", True, f"{found}: ends the runs of an owner that dies")


def leftovers() -> Iterator[Check]:
    """Folds whose owner and guard are both dead."""
    dead = [fold.place.path for fold in find.folds(find.top()) if fold.problem is None and fold.state == "dead"]
    if dead:
        named = ", ".join(dead[:3]) + (f" and {len(dead) - 3} more" if len(dead) > 3 else "")
        yield Check("leftovers", False, f"of folds whose owner is gone: {named}", fix="pinfold gc")
    else:
        yield Check("leftovers", True, "none of folds whose owner is gone")
