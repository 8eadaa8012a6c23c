"""Runs that other processes have started, as `pinfold ps` and `pinfold kill` see them: what they are, and their end.

There is no daemon and no state file: all of it comes from the cgroups themselves, so it is as true as the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pinfold import units
from pinfold.errors import UsageError
from pinfold.lease import facts, find
from pinfold.lease.end import Killed, end
from pinfold.lease.facts import FoldFacts
from pinfold.lease.select import Wanted, choose

if TYPE_CHECKING:
    from datetime import timedelta


def ps(*, labels: Mapping[str, str | None] | None = None) -> list[FoldFacts]:
    """Every fold that can be seen from here, of any user, each with its runs.

    labels: only folds and runs that have all of these; None as a value stands for any.

    A fold of which only some runs have the labels comes with these runs alone. Times in the facts are in microseconds,
    sizes in bytes; None stands for what this host, or this user, cannot tell. `FoldFacts.to_dict` gives the JSON of
    `pinfold ps --json`. The figures are the kernel's (cgroup-v2.rst: cpu.stat, memory.current, cgroup.procs), and not
    taken at one moment: runs come and go meanwhile.

    Takes a few milliseconds, and up to half a second where a process keeps the readers of its command line waiting.

    Raises UsageError for labels that are none, NoCgroup2 where no cgroup v2 is mounted.
    """
    return facts.snapshot(find.top(), Wanted.of(labels))


def kill(
    *names: str,
    labels: Mapping[str, str | None] | None = None,
    all: bool = False,
    signal: str | int | None = None,
    grace: float | str | timedelta = 0,
) -> list[Killed]:
    """End runs, each with everything that it started, and return what became of each.

    names: a run's id or its first digits (4 or more), with or without `run-`, or its cgroup; or a fold by name, for all
        of its runs.
    labels: only runs that have all of these, by themselves or by their fold; None as a value stands for any.
    all: every run of this uid; of root, everybody's. Not together with names.
    signal: sent first, where there is a grace; TERM by default. A name or a number.
    grace: so long before what is left is killed: seconds, a timedelta, or text such as "1min 30s". 0: killed at once.

    The kill is `cgroup.kill` (cgroup-v2.rst, Linux 5.14), repeated by other means for what that misses, for up to five
    seconds each: then `Killed.action` is "left", and nothing is raised. Whoever started a run gets a Result with the
    outcome `canceled`. A run within another goes with that one; the run that this process is in comes last. Labels that
    no run has are no error: the list is empty.

    Raises UsageError for wrong arguments, Error where a name is no run's, more than one's, or somebody else's (nothing
    has been touched then), NoCgroup2 where no cgroup v2 is mounted.
    """
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"{name!r:.80} is {type(name).__name__}: the name of a run must be a str")
    wanted = Wanted.of(labels)
    if all and names:
        raise UsageError("all=True is every run: give names, or all=True")
    if not (names or wanted or all):
        raise UsageError("no run given: give names, labels or all=True")
    patience = units.span(grace, "grace")
    if signal is not None and not patience:
        raise UsageError("signal needs grace: how long to wait for its effect")
    number = units.signal_number("TERM" if signal is None else signal, "signal") if patience else None
    return end(choose(list(find.folds(find.top())), names, wanted), number, patience)
