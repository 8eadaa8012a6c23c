"""What `pinfold ps` knows: folds and their runs, by what their cgroups, their records and /proc say.

The fields are the JSON's: times in microseconds, sizes in bytes, None where this host, or this user, cannot tell.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from pinfold.cgroup.files import flat_keyed, number
from pinfold.cgroup.places import Place
from pinfold.cli.choice import Wanted
from pinfold.lease import find, owner
from pinfold.lease.find import FoldEntry, RunEntry
from pinfold.lease.record import OwnerRecord
from pinfold.proc import proc_is_ours, start_time

_ARGV_AT_MOST: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """A process by the number that it has here; `comm` and `argv` as far as /proc shows them."""

    pid: int
    comm: str | None
    argv: list[str] | None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run. `processes`: how many there are. `main`: the command that was started, while it is there."""

    run_id: str
    cgroup: str
    state: Literal["running", "frozen", "quarantined", "ended"]
    age_usec: int | None
    main: ProcessFacts | None
    cpu_usage_usec: int | None
    memory_current: int | None
    processes: int
    labels: dict[str, str] | None


@dataclass(frozen=True, slots=True)
class FoldFacts:
    """A fold. `problem`: why it is none of ours, in words. `owner`: its process, if that lives and is seen here.

    `owner_pid`: as the owner itself counts, which in another container means another process to us.
    `closed`: by its owner, and something of it could not be removed.
    """

    cgroup: str
    scope: str | None
    backend: Literal["cgroupfs", "systemd"]
    state: Literal["live", "dead", "foreign"]
    uid: int
    problem: str | None
    owner_pid: int | None
    owner: ProcessFacts | None
    closed: bool
    age_usec: int | None
    labels: dict[str, str] | None
    runs: list[RunFacts]
    spares: int


def take(place: Place, wanted: Wanted) -> Iterator[FoldFacts]:
    """Every fold in a cgroup and below that has these labels, or a run that has them."""
    for fold in find.folds(place):
        members = [] if fold.owner is None else find.members(fold)
        runs = [run for run in members if run.kind != "spare"]
        shown = [run for run in runs if wanted.meets(fold, run)]
        if shown or wanted.meets(fold):
            yield _fold(fold, shown, len(members) - len(runs))


def _fold(fold: FoldEntry, runs: Iterable[RunEntry], spares: int) -> FoldFacts:
    known = fold.owner
    ours = known is not None and owner.is_of_our_world(known)
    process = None
    if known is not None and ours and fold.state == "live" and start_time(known.pid) == known.start_time:
        process = _process(known.pid)
    return FoldFacts(
        cgroup=fold.place.path,
        scope=fold.scope,
        backend="cgroupfs" if fold.scope is None else "systemd",
        state=fold.state or "foreign",
        uid=fold.uid,
        problem=fold.problem,
        owner_pid=None if known is None else known.pid,
        owner=process,
        closed=known is not None and known.closed,
        age_usec=None if known is None else _age(known.opened),
        labels=None if known is None else dict(known.labels),
        runs=[_run(run, known if ours else None) for run in runs],
        spares=spares,
    )


def _run(run: RunEntry, known: OwnerRecord | None) -> RunFacts:
    """`known`: the owner of its fold, if it counts pids as we do."""
    place, events = run.place, find.read_events(run.place)
    there = find.processes(place)
    # The record may be anybody's: only a process that is in the run is shown as its own.
    pid = run.record.pid if run.record is not None and known is not None else None
    state: Literal["running", "frozen", "quarantined", "ended"] = "frozen" if events.get("frozen") else "running"
    if run.kind == "quarantined":
        state = "quarantined"
    elif not events.get("populated"):
        state = "ended"
    return RunFacts(
        run_id=run.run_id,
        cgroup=place.path,
        state=state,
        age_usec=None if run.record is None else _age(run.record.started),
        main=_process(pid) if pid in there and pid is not None else None,
        cpu_usage_usec=flat_keyed(_read(f"{place.directory}/cpu.stat") or "").get("usage_usec"),
        memory_current=number(_read(f"{place.directory}/memory.current")),
        processes=len(there),
        labels=None if run.record is None else dict(run.record.labels),
    )


def _age(since: float) -> int | None:
    """By the host's clock, which may have been set; a time to come is none."""
    age = time.time() - since
    return int(age * 1e6) if age >= 0 else None


def _process(pid: int) -> ProcessFacts:
    if not proc_is_ours():
        return ProcessFacts(pid, None, None)
    comm, line = _read(f"/proc/{pid}/comm"), _read(f"/proc/{pid}/cmdline")
    # A zombie and a thread of the kernel have none.
    argv = line.removesuffix("\0").split("\0") if line else None
    return ProcessFacts(pid, None if comm is None else comm.removesuffix("\n"), argv)


def _read(path: str) -> str | None:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return os.fsdecode(file.read(_ARGV_AT_MOST))
    return None
