"""Finding: every fold and run that the cgroups themselves tell of, whoever made them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from pinfold.cgroup import names, places
from pinfold.cgroup.files import flat_keyed
from pinfold.cgroup.places import Place
from pinfold.errors import UsageError
from pinfold.lease import owner, record
from pinfold.lease.record import MalformedError, OwnerRecord, RunRecord
from pinfold.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Final, Literal

    from pinfold.lease.owner import State


_UNSIGNED: Final = "it has no owner record"


class FoldEntry(NamedTuple):
    """A base cgroup. `owner`: from its record. `state`: its owner's, where we can tell.

    `problem`: why it is none of ours to touch, in words; None for those that are.
    """

    place: Place
    owner: OwnerRecord | None
    state: State | None
    uid: int
    problem: str | None = None

    @property
    def unsigned(self) -> bool:
        """Whether it has no record at all."""
        return self.problem == _UNSIGNED

    @property
    def scope(self) -> str | None:
        """The systemd scope that it is in, by name."""
        return names.scope_of(self.place.path)


class RunEntry(NamedTuple):
    """The cgroup of a run. `record` is None for one that was made ahead, or whose record cannot be read."""

    place: Place
    run_id: str
    record: RunRecord | None
    kind: Literal["run", "spare", "quarantined"]


def top() -> Place:
    """The highest cgroup that we see. Raises NoCgroup2."""
    own = places.own_place()
    return [own, *places.ancestors(own)][-1]


def folds(place: Place) -> Iterator[FoldEntry]:
    """Every fold in a cgroup and below, those within runs too. What goes meanwhile is left out."""
    waiting = [place]
    while waiting:
        at = waiting.pop()
        if (found := fold_at(at)) is not None:
            yield found
        waiting += below(at)


def below(place: Place) -> list[Place]:
    """The cgroups in one, in the order of their names."""
    found: list[str] = []
    with contextlib.suppress(OSError), os.scandir(place.directory) as entries:
        found = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return [child(place, name) for name in found]


def child(place: Place, name: str) -> Place:
    """The cgroup of this name, or path, in another."""
    return Place(os.path.join(place.directory, name), f"{place.path.rstrip('/')}/{name}", place.hierarchy)


def fold_at(place: Place) -> FoldEntry | None:
    """The fold whose base is this cgroup, or None if it is no fold's."""
    named_so = names.is_base(place.path)
    try:
        if not named_so and record.attribute(place.directory, record.OWNER) is None:
            return None
        directory = place.hierarchy.open_root(place.directory)
    except (OSError, UsageError):  # gone, closed to us, or something else is mounted over it
        return None
    try:
        return examine(place, directory)
    except OSError:  # it went while we looked
        return None
    finally:
        os.close(directory)


def has_lease(place: Place) -> bool:
    """Whether somebody holds the lease on this cgroup, as the owner of a fold does; much quicker than `fold_at`."""
    try:
        directory = place.hierarchy.open_root(place.directory)
    except (OSError, UsageError):
        return False
    try:
        return owner.is_locked(directory)
    finally:
        os.close(directory)


def examine(place: Place, directory: int) -> FoldEntry | None:
    """As `fold_at`, for a directory that is held, and by nobody else. Raises OSError."""
    uid = os.fstat(directory).st_uid
    data = record.attribute(directory, record.OWNER)
    if data is None:
        if names.is_base_in_scope(place.path):  # anybody's word
            return None
        return FoldEntry(place, None, None, uid, _UNSIGNED)
    try:
        found = OwnerRecord.parse(data)
    except MalformedError as error:
        return FoldEntry(place, None, None, uid, f"its owner record cannot be read: {error}")
    if not names.is_base(place.path):
        return FoldEntry(place, found, None, uid, "it has an owner record, and is not named like a fold")
    if os.geteuid() not in (0, uid):
        return FoldEntry(place, found, owner.state(found, directory), uid, f"it belongs to uid {uid}")
    return FoldEntry(place, found, owner.state(found, directory), uid)


def members(fold: FoldEntry) -> list[RunEntry]:
    """The runs of a fold, and what was made ahead for the next ones."""
    found = []
    for place in below(fold.place):
        run_id = names.run_id(os.path.basename(place.path))
        if run_id is None:
            continue
        known = _run_record(place)
        kind: Literal["run", "spare", "quarantined"] = "run"
        if known is not None and known.quarantined:
            kind = "quarantined"
        elif known is None and not read_events(place).get("populated"):
            kind = "spare"
        found.append(RunEntry(place, run_id, known, kind))
    return found


def read_events(place: Place) -> dict[str, int]:
    """What cgroup.events says: `populated`, `frozen`; nothing where it cannot be read."""
    try:
        with open(f"{place.directory}/cgroup.events", encoding="utf-8") as file:
            return flat_keyed(file.read())
    except OSError:
        return {}


def _run_record(place: Place) -> RunRecord | None:
    try:
        data = record.attribute(place.directory, record.RUN)
        return None if data is None else RunRecord.parse(data)
    except (OSError, MalformedError):
        return None


def processes(place: Place) -> list[int]:
    """The processes in a cgroup and below, as far as they can be listed; 0 for each of another pid namespace."""
    found: list[int] = []
    waiting = [place]
    while waiting:
        at = waiting.pop()
        with contextlib.suppress(OSError, ValueError), open(f"{at.directory}/cgroup.procs", encoding="utf-8") as file:
            found += map(int, file.read().split())
        waiting += below(at)
    return found
