"""The end of runs that other processes have started. It goes by cgroups alone, never by a pid."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

from pinfold.cgroup import places
from pinfold.cgroup.group import Cgroup
from pinfold.cgroup.kill import end_all, signal_all
from pinfold.errors import Error
from pinfold.lease import record
from pinfold.lease.adopt import open_run
from pinfold.lease.select import Chosen

_KILL_BOUND: Final = 5.0  # seconds for each run
_AT_ONCE: Final = 100  # runs, of six descriptors each
_LOOK: Final = 0.005


class Killed(NamedTuple):
    """What became of one run. `pids`: its processes when we came; `left`: those that could not be killed.

    `action`: "ended" if the signal was enough, "gone" if nothing was running in it, "left" if something still is.
    """

    run_id: str
    cgroup: str
    action: Literal["killed", "ended", "gone", "left"]
    pids: list[int]
    left: list[int]
    why: str | None = None


def end(chosen: Sequence[Chosen], number: int | None, grace: float) -> list[Killed]:
    """End these runs. `number`: a signal to send first, `grace` seconds before what is left is killed.

    Nothing that a command controls is read before it is killed.
    """
    found: list[Killed] = []
    ordered = in_order(chosen)
    for at in range(0, len(ordered), _AT_ONCE):
        found += _end_some(ordered[at : at + _AT_ONCE], number, grace)
    return found


def in_order(chosen: Sequence[Chosen]) -> list[Chosen]:
    """Without those within others, which go with them, and the run that we are in ourselves last."""
    paths = {one.run.place.path for one in chosen}
    outer = [one for one in chosen if not any(one.run.place.path.startswith(f"{path}/") for path in paths)]
    own = places.own_place().path + "/"
    return sorted(outer, key=lambda one: own.startswith(one.run.place.path + "/"))


def _end_some(chosen: Sequence[Chosen], number: int | None, grace: float) -> Iterator[Killed]:
    """End these runs; all of them have the signal and the time at once."""
    with contextlib.ExitStack() as opened:
        running: list[tuple[Chosen, Cgroup, list[int]]] = []
        for one in chosen:
            try:
                cgroup = opened.enter_context(open_run(one.fold, one.run.run_id))
            except Error as error:
                yield _told(one, "left", why=str(error))
                continue
            if cgroup is None or not cgroup.populated():
                yield _told(one, "gone")
                continue
            running.append((one, cgroup, cgroup.pids()))
        if number is not None:
            for _, cgroup, _ in running:
                _mark(cgroup)
                with contextlib.suppress(OSError):
                    signal_all(cgroup, number)
            _wait_for([cgroup for _, cgroup, _ in running], grace)
        for one, cgroup, pids in running:
            yield _end_one(one, cgroup, pids)


def _end_one(one: Chosen, cgroup: Cgroup, pids: list[int]) -> Killed:
    if not cgroup.populated():
        return _told(one, "ended", pids)
    _mark(cgroup)
    try:
        if end_all(cgroup, _KILL_BOUND):
            return _told(one, "killed", pids)
    except OSError as error:
        return _told(one, "left", pids, cgroup.pids(), str(error))
    return _told(one, "left", pids, cgroup.pids(), "the kernel or a tracer holds it")


def _mark(cgroup: Cgroup) -> None:
    """Tell its owner who it was, before it can have any effect."""
    with contextlib.suppress(OSError):  # it may end meanwhile
        record.set_attribute(cgroup.dirfd, record.CANCELED, b"1")


def _wait_for(cgroups: list[Cgroup], grace: float) -> None:
    until = time.monotonic() + grace
    while any(cgroup.populated() for cgroup in cgroups) and time.monotonic() < until:
        time.sleep(_LOOK)


def _told(one: Chosen, action: Literal["killed", "ended", "gone", "left"], pids: Sequence[int] = (),
          left: Sequence[int] = (), why: str | None = None) -> Killed:  # fmt: skip
    return Killed(one.run.run_id, one.run.place.path, action, list(pids), list(left), why)
