"""Opening a run of somebody's fold: by its name, with a second look once nobody can put another in its place."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from pinfold.cgroup import names
from pinfold.cgroup.files import Hierarchy
from pinfold.cgroup.group import GONE, Cgroup
from pinfold.cgroup.places import Place
from pinfold.errors import CgroupError, Error
from pinfold.lease import find
from pinfold.lease.find import FoldEntry


@contextlib.contextmanager
def open_run(fold: FoldEntry, run_id: str) -> Iterator[Cgroup | None]:
    """The cgroup of a run; None if it is gone.

    Raises Error if it is no run in a fold that is ours to touch, or not any more; CgroupError if it cannot be opened.
    """
    place, name = fold.place, names.run(run_id)
    if names.run_id(name) is None:
        raise Error(f"{place.path}/{name}: is not named like a run")
    try:
        base = place.hierarchy.open_root(place.directory)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise CgroupError("open", place.path, error) from error
    try:
        _check(place, base)
        cgroup = _opened(place, base, name)
        try:
            yield cgroup
        finally:
            if cgroup is not None:
                cgroup.close()
    finally:
        os.close(base)


def _check(place: Place, base: int) -> None:
    try:
        found = find.examine(place, base)
    except OSError as error:
        raise CgroupError("look at", place.path, error) from error
    if found is None or found.problem is not None:
        raise Error(f"{place.path}: {'it is no fold' if found is None else found.problem}")


def _opened(place: Place, base: int, name: str) -> Cgroup | None:
    try:
        return adopted(place.hierarchy, base, place.path, name)
    except CgroupError as error:
        if error.errno in GONE:
            return None
        raise


def adopted(hierarchy: Hierarchy, parent: int, parent_path: str, name: str) -> Cgroup:
    """A cgroup that is there, with what a command of our uid may have made of its modes undone."""
    try:
        return Cgroup(hierarchy, parent, parent_path.rstrip("/"), name)
    except CgroupError as error:
        if error.errno != errno.EACCES:
            raise
    with contextlib.suppress(OSError):
        os.chmod(name, 0o755, dir_fd=parent)
        for file in ("cgroup.events", "cgroup.kill", "cgroup.procs", "cgroup.freeze"):
            os.chmod(f"{name}/{file}", 0o644, dir_fd=parent, follow_symlinks=True)
    return Cgroup(hierarchy, parent, parent_path.rstrip("/"), name)
