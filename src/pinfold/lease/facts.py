"""What is running: folds and their runs, by what their cgroups, their records and /proc say.

Times are in microseconds, sizes in bytes; None stands where this host, or this user, cannot tell.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from pinfold.cgroup.files import flat_keyed, number
from pinfold.cgroup.places import Place
from pinfold.lease import find, owner
from pinfold.lease.find import FoldEntry, RunEntry
from pinfold.lease.record import OwnerRecord
from pinfold.lease.select import Wanted
from pinfold.proc import argv_within, comm, proc_is_ours, read, start_time

ARGV_BOUND: Final = 0.5  # seconds, for all of them; usual are 20 us each


class ProcessFacts(NamedTuple):
    """A process by the number that it has here (proc_pid_stat(5)); `comm` and `argv` as far as /proc shows them.

    `argv` is None, too, where the process keeps its readers waiting.
    """

    pid: int
    comm: str | None
    argv: list[str] | None


class RunFacts(NamedTuple):
    """A run.

    `cgroup`: as /proc/PID/cgroup writes it. `main`: the command that was started, while it is there. `processes`: how
    many there are, the main one among them. `cpu_usage_usec` and `memory_current` (bytes) are the kernel's (cpu.stat,
    memory.current), for all of them. `age_usec`: since its start, by the host's clock.
    """

    run_id: str
    cgroup: str
    state: Literal["running", "frozen", "quarantined", "ended"]
    age_usec: int | None
    main: ProcessFacts | None
    cpu_usage_usec: int | None
    memory_current: int | None
    processes: int
    labels: dict[str, str] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in `pinfold ps --json`."""
        return {**self._asdict(), "main": None if self.main is None else self.main._asdict()}


class FoldFacts(NamedTuple):
    """A fold. `problem`: why it is none of ours, in words. `owner`: its process, if that lives and is seen here.

    `owner_pid`: as the owner itself counts, which in another container means another process to us.
    `closed`: by its owner, and something of it could not be removed. `spares`: cgroups made ahead for its next runs.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in `pinfold ps --json`."""
        owner = None if self.owner is None else self.owner._asdict()
        return {**self._asdict(), "owner": owner, "runs": [run.to_dict() for run in self.runs]}


def snapshot(place: Place, wanted: Wanted) -> list[FoldFacts]:
    """Every fold in a cgroup and below that has these labels, or a run that has them."""
    found = list(_without_argv(place, wanted))
    processes = [process for fold in found for process in (fold.owner, *(run.main for run in fold.runs))]
    argv = argv_within([each.pid for each in processes if each is not None and each.comm is not None], ARGV_BOUND)
    return [
        fold._replace(
            owner=_with_argv(fold.owner, argv),
            runs=[run._replace(main=_with_argv(run.main, argv)) for run in fold.runs],
        )
        for fold in found
    ]


def _with_argv(process: ProcessFacts | None, argv: Mapping[int, list[str] | None]) -> ProcessFacts | None:
    return None if process is None else process._replace(argv=argv.get(process.pid))


def _without_argv(place: Place, wanted: Wanted) -> Iterator[FoldFacts]:
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
        cpu_usage_usec=flat_keyed(read(f"{place.directory}/cpu.stat") or "").get("usage_usec"),
        memory_current=number(read(f"{place.directory}/memory.current")),
        processes=len(there),
        labels=None if run.record is None else dict(run.record.labels),
    )


def _age(since: float) -> int | None:
    """By the host's clock, which may have been set; a time to come is none."""
    age = time.time() - since
    return int(age * 1e6) if age >= 0 else None


def _process(pid: int) -> ProcessFacts:
    return ProcessFacts(pid, comm(pid) if proc_is_ours() else None, None)
