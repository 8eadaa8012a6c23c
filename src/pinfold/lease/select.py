"""Which runs are meant: by labels, by their ids or the beginning of one, by their fold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Self

from pinfold.cgroup import names
from pinfold.errors import Error, UsageError
from pinfold.labels import checked_labels, parse_wanted
from pinfold.lease import find
from pinfold.lease.find import FoldEntry, RunEntry

_SHORTEST: Final = 4
_ID: Final = re.compile(r"[0-9a-f]{1,16}")
_SHOWN: Final = 8


class Chosen(NamedTuple):
    """A run in its fold."""

    fold: FoldEntry
    run: RunEntry


class NotChosenError(Error):
    """What was named does not say which runs are meant, or they are not ours; nothing has been touched."""


class Wanted:
    """Labels that all have to be there, of a run or of its fold; a value of None: whatever its value."""

    def __init__(self, wanted: Iterable[tuple[str, str | None]]) -> None:
        self._wanted = list(wanted)

    @classmethod
    def of(cls, labels: Mapping[str, str | None] | None) -> Self:
        """From a mapping. Raises UsageError."""
        if labels is not None and not isinstance(labels, Mapping):
            raise UsageError(f"labels is {type(labels).__name__}: must be a mapping of names to texts or None")
        wanted = dict(labels or {})
        checked_labels({name: "" if value is None else value for name, value in wanted.items()})
        return cls(wanted.items())

    @classmethod
    def parse(cls, settings: Iterable[str]) -> Self:
        """From texts, each NAME or NAME=VALUE. Raises UsageError."""
        return cls(parse_wanted(settings))

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def meets(self, fold: FoldEntry, run: RunEntry | None = None) -> bool:
        """Whether a fold, or a run with what its fold says of it, has them."""
        have = [fold.owner.labels] if fold.owner is not None else []
        if run is not None and run.record is not None:
            have.append(run.record.labels)
        return all(
            any(name in labels and value in (None, labels[name]) for labels in have) for name, value in self._wanted
        )


def choose(folds: Sequence[FoldEntry], runs: Sequence[str], wanted: Wanted) -> list[Chosen]:
    """The runs that are named and have these labels; where none is named, all of ours in which something runs.

    Raises NotChosenError, UsageError.
    """
    if runs:
        return by_name(folds, runs, wanted)
    return [one for one in by_labels(folds, wanted) if find.read_events(one.run.place).get("populated")]


def runs_of(folds: Iterable[FoldEntry]) -> list[Chosen]:
    """Every run of these folds; what was only made ahead is none."""
    return [Chosen(fold, run) for fold in folds for run in find.members(fold) if run.kind != "spare"]


def by_labels(folds: Iterable[FoldEntry], wanted: Wanted) -> list[Chosen]:
    """The runs of our own folds that have these labels; all of them if there are none."""
    mine = (fold for fold in folds if fold.problem is None)
    return [chosen for chosen in runs_of(mine) if wanted.meets(*chosen)]


def by_name(folds: Sequence[FoldEntry], runs: Iterable[str], wanted: Wanted) -> list[Chosen]:
    """The runs that are named, each once. Raises NotChosenError, UsageError."""
    everything = runs_of(fold for fold in folds if fold.owner is not None)
    found: dict[str, Chosen] = {}
    for name in runs:
        for chosen in _named(name, folds, everything):
            if not wanted.meets(*chosen):
                raise NotChosenError(f"{_called(chosen)}: has not these labels")
            found[chosen.run.place.path] = chosen
    return list(found.values())


def _named(name: str, folds: Sequence[FoldEntry], everything: Sequence[Chosen]) -> list[Chosen]:
    known = [fold for fold in folds if name in (fold.place.path, os.path.basename(fold.place.path), fold.scope)]
    if known:
        for fold in known:
            _require_ours(name, fold)
        _require_one(name, [fold.place.path for fold in known])
        return [chosen for chosen in everything if chosen.fold.place.path == known[0].place.path]
    start = name.removeprefix(names.RUN_PREFIX)
    if name.startswith("/"):
        matches = [chosen for chosen in everything if chosen.run.place.path == name]
    elif _ID.fullmatch(start) is None:
        raise NotChosenError(f"{name!r:.80}: there is no such run or fold")
    elif len(start) < _SHORTEST:
        raise UsageError(f"{name}: the beginning of a run's id has at least {_SHORTEST} digits")
    else:
        matches = [chosen for chosen in everything if chosen.run.run_id.startswith(start)]
    # Somebody else's run of the same beginning must not stand in the way.
    ours = [chosen for chosen in matches if chosen.fold.problem is None] or matches
    if not ours:
        raise NotChosenError(f"{name}: there is no such run")
    _require_one(name, [chosen.run.place.path for chosen in ours])
    _require_ours(name, ours[0].fold)
    return ours


def _require_one(name: str, matches: list[str]) -> None:
    if len(matches) > 1:
        more = f" and {len(matches) - _SHOWN} more" if len(matches) > _SHOWN else ""
        raise NotChosenError(f"{name} can be any of {', '.join(matches[:_SHOWN])}{more}: say which")


def _require_ours(name: str, fold: FoldEntry) -> None:
    if fold.problem is not None:
        raise NotChosenError(f"{name} is not ours to kill: {fold.place.path}: {fold.problem}")


def _called(chosen: Chosen) -> str:
    return names.run(chosen.run.run_id)
