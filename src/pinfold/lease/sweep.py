"""The sweep: killing and removing what dead folds and given up runs have left, and nothing else.

Called by `pinfold gc`, by each opening of a fold for what lies beside it, and by the guard for the fold it watches.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from pinfold.cgroup import kill, names
from pinfold.cgroup.files import Hierarchy
from pinfold.cgroup.group import GONE, REMOVE_BOUND, Cgroup
from pinfold.cgroup.places import Place
from pinfold.errors import CgroupError, Error, UsageError
from pinfold.lease import find, owner, record
from pinfold.lease.adopt import adopted
from pinfold.lease.find import FoldEntry
from pinfold.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Final, Literal


KILL_BOUND: Final = 2.0  # seconds for each fold; what is left then is held by the kernel or a tracer, and for later
_GUARD_BOUND: Final = 10.0
_BESIDE_BOUND: Final = 0.1
_BESIDE_AT_MOST: Final = 32  # folds; with hundreds of live ones each opening looks at others of them


class Swept(NamedTuple):
    """One thing that a sweep has met, and what it did.

    `what`: a dead owner's fold, a run that its fold could not empty, a cgroup that was made and never used; a slice of
    systemd's with nothing in it (`backend/idle_slice.py`).
    `pids`: those it has killed, or would; `left`: those that could not be killed. `action` is `foreign` where it
    touched nothing, and `why` says the reason.
    """

    cgroup: str
    what: Literal["fold", "run", "cgroup", "slice"]
    action: Literal["removed", "would remove", "left", "foreign"]
    pids: list[int]
    left: list[int]
    why: str


def sweep(place: Place, *, dry_run: bool = False, bound: float = KILL_BOUND) -> Iterator[Swept]:
    """Everything in a cgroup and below that nobody owns any more; each within `bound` seconds.

    Live folds are not touched, nor is what others have made; that is reported if it looks like ours.
    """
    for fold in list(find.folds(place)):
        if fold.owner is None:
            swept = _remove_unused(fold, dry_run=dry_run)
            if swept is not None:
                yield swept
        elif fold.problem is not None:
            if fold.state != "live":
                yield Swept(fold.place.path, "fold", "foreign", [], [], fold.problem)
        elif fold.state == "dead":
            why = "its fold was closed" if fold.owner.closed else f"its owner, process {fold.owner.pid}, is gone"
            yield from _end(fold.place, "fold", why, dry_run=dry_run, bound=bound)
            if not dry_run and fold.scope is not None:
                _end_guard(fold)
        else:
            for run in find.members(fold):
                if run.kind == "quarantined":
                    yield from _end(run.place, "run", "it is over and was not empty", dry_run=dry_run, bound=bound)


def beside(place: Place) -> None:
    """What dead folds have left next to where one is to be made, as far as it goes at once. Raises nothing."""
    with contextlib.suppress(OSError, Error):
        bases = [base for name in os.listdir(place.directory) if (base := names.base_below(name)) is not None]
        end = time.monotonic() + _BESIDE_BOUND
        first = time.monotonic_ns() % max(1, len(bases))
        for base in (bases[first:] + bases[:first])[:_BESIDE_AT_MOST]:
            if find.has_lease(find.child(place, base)):  # most are live; a lock that was inherited is for `gc` to see
                continue
            fold = find.fold_at(find.child(place, base))
            if fold is not None and fold.unsigned:
                _remove_unused(fold, dry_run=False)
            elif fold is not None and fold.problem is None and fold.state == "dead" and time.monotonic() < end:
                for _ in _end(fold.place, "fold", "", bound=end - time.monotonic()):
                    pass


def after_the_owner(directory: str) -> None:
    """For the guard, whose word is enough: end the fold whose base is this directory. Raises OSError if it is gone."""
    hierarchy = Hierarchy(os.stat(directory).st_dev)
    above, name = os.path.split(directory)
    with contextlib.suppress(OSError, Error), _opened(hierarchy, above) as parent:
        cgroup = adopted(hierarchy, parent, above, name)
        try:
            _kill_and_remove(cgroup, _GUARD_BOUND)
        finally:
            cgroup.close()


def _kill_and_remove(cgroup: Cgroup, bound: float) -> tuple[bool, list[int]]:
    """Whether it is removed, and the processes that could not be killed."""
    emptied = kill.end_all(cgroup, bound)
    left = [] if emptied else cgroup.pids()
    return cgroup.remove_within(REMOVE_BOUND if emptied else 0), left


def _end(
    place: Place, what: Literal["fold", "run"], why: str, *, bound: float, dry_run: bool = False
) -> Iterator[Swept]:
    """Kill and remove one cgroup, if it is still `what` it was found to be when it is held."""
    parent_path, name = os.path.split(place.path)
    try:
        parent = place.hierarchy.open_root(os.path.dirname(place.directory))
    except FileNotFoundError:
        return
    except (OSError, UsageError) as error:
        yield Swept(place.path, what, "left", [], [], f"{why}; {error}")
        return
    try:
        cgroup = adopted(place.hierarchy, parent, parent_path, name)
        try:
            if not _is_abandoned(place, cgroup.dirfd, what):
                return
            pids = cgroup.pids()
            if dry_run:
                yield Swept(place.path, what, "would remove", pids, [], why)
                return
            removed, left = _kill_and_remove(cgroup, bound)
            yield Swept(place.path, what, "removed" if removed else "left", pids, left, why)
        finally:
            cgroup.close()
    except CgroupError as error:
        if error.errno not in GONE:  # else another sweep, or its guard, was quicker
            yield Swept(place.path, what, "left", [], [], f"{why}; {error}")
    finally:
        os.close(parent)


def _is_abandoned(place: Place, directory: int, what: Literal["fold", "run"]) -> bool:
    if what == "fold":
        fold = find.examine(place, directory)
        return fold is not None and fold.problem is None and fold.state == "dead"
    data = record.attribute(directory, record.RUN)
    try:
        return data is not None and record.RunRecord.parse(data).quarantined
    except record.MalformedError:  # since we looked
        return False


def _remove_unused(fold: FoldEntry, *, dry_run: bool) -> Swept | None:
    """Remove a cgroup whose maker died before it wrote the owner record. Only rmdir is tried: what is in use stays.

    Raises nothing: if it cannot be told whose it is, or is not empty, it is left and reported.
    """
    assert fold.problem is not None
    foreign = Swept(fold.place.path, "cgroup", "foreign", [], [], fold.problem)
    if not fold.unsigned or os.geteuid() not in (0, fold.uid) or find.processes(fold.place):
        again = find.fold_at(fold.place)  # it may just have been signed, or have gone
        return foreign if again is not None and again.owner is None else None
    why = "it was never signed, and nobody is making it"
    with (
        contextlib.suppress(OSError),
        _opened(fold.place.hierarchy, os.path.dirname(fold.place.directory)) as parent,
        owner.without_makers(parent) as alone,
        _opened(fold.place.hierarchy, fold.place.directory) as directory,
    ):
        if not alone or owner.is_locked(directory):
            return None
        if dry_run:
            return Swept(fold.place.path, "cgroup", "would remove", [], [], why)
        os.rmdir(fold.place.directory)
        return Swept(fold.place.path, "cgroup", "removed", [], [], why)
    return foreign if os.path.isdir(fold.place.directory) else None


@contextlib.contextmanager
def _opened(hierarchy: Hierarchy, directory: str) -> Iterator[int]:
    fd = hierarchy.open_root(directory)
    try:
        yield fd
    finally:
        os.close(fd)


def _end_guard(fold: FoldEntry) -> None:
    """One that was stopped, or has no end of its own: systemd collects the scope when it is empty."""
    with contextlib.suppress(OSError, Error):
        scope = os.path.dirname(fold.place.directory)
        with _opened(fold.place.hierarchy, scope) as parent:
            guard = Cgroup(fold.place.hierarchy, parent, os.path.dirname(fold.place.path), names.GUARD)
            try:
                kill.end_all(guard, REMOVE_BOUND)
                guard.remove_within(REMOVE_BOUND)
            finally:
                guard.close()
