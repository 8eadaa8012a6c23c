"""`pinfold kill`: the end of runs that other processes have started. It goes by cgroups alone, never by a pid."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

import click

from pinfold import units
from pinfold.cgroup import places
from pinfold.cgroup.group import Cgroup
from pinfold.cgroup.kill import end_all, signal_all
from pinfold.cli.choice import Chosen, NotChosenError, Wanted, by_labels, by_name
from pinfold.cli.main import complain
from pinfold.cli.render import count, safe
from pinfold.errors import Error
from pinfold.lease import find, record
from pinfold.lease.adopt import held

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


@click.command()
@click.option("--label", "wanted", multiple=True, metavar="NAME[=VALUE]", help="Only runs with it; more than one: all.")
@click.option("--all", "everything", is_flag=True, help="Every run of this uid; of root: of everybody.")
@click.option("-k", "--grace", metavar="TIME", help="Send the signal first, and kill what is left this much later.")
@click.option("-s", "--signal", "number", metavar="SIG", help="The signal; TERM by default. Needs --grace.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.argument("runs", nargs=-1, metavar="[RUN]…")
def kill(
    wanted: tuple[str, ...], runs: tuple[str, ...], *, everything: bool, grace: str | None, number: str | None,
    as_json: bool,
) -> int:  # fmt: skip
    """End each RUN with everything that it started; its own pinfold then says `canceled`.

    RUN is a run's id or its first digits (4 or more), with or without `run-`, or its cgroup; or a fold by name, for all
    its runs. See `pinfold ps`. Exit status 1 if there is no such run, or something of one could not be killed.
    """
    labels = Wanted(wanted)
    if everything and runs:
        raise click.UsageError("--all is every run: say which, or all")
    if not (everything or runs or labels):
        raise click.UsageError("which runs? Say RUN, --label or --all")
    if number is not None and grace is None:
        raise click.UsageError("--signal needs --grace: how long to wait for its effect")
    patience = units.span(grace or 0, "--grace")
    asked = None if grace is None else units.signal_number(number or "TERM", "--signal")
    folds = list(find.folds(find.top()))
    try:
        chosen = by_name(folds, runs, labels) if runs else by_labels(folds, labels)
    except NotChosenError as error:
        complain(str(error))
        return 1
    chosen = _in_order([one for one in chosen if runs or find.read_events(one.run.place).get("populated")])
    if not chosen:
        complain("there is no such run")
    found: list[Killed] = []
    for at in range(0, len(chosen), _AT_ONCE):
        found += end(chosen[at : at + _AT_ONCE], asked, patience)
    # All is done before anything is said: nobody may read it any more.
    if as_json:
        click.echo(json.dumps({"schema": 1, "runs": [killed._asdict() for killed in found]}))
    elif found:
        click.echo("\n".join(map(line, found)))
    return 0 if found and all(killed.action != "left" for killed in found) else 1


def _in_order(chosen: list[Chosen]) -> list[Chosen]:
    """Without those within others, which go with them, and the run that we are in ourselves last."""
    paths = {one.run.place.path for one in chosen}
    outer = [one for one in chosen if not any(one.run.place.path.startswith(f"{path}/") for path in paths)]
    own = places.own_place().path + "/"
    return sorted(outer, key=lambda one: own.startswith(one.run.place.path + "/"))


def end(chosen: Sequence[Chosen], number: int | None, grace: float) -> Iterator[Killed]:
    """End these runs; all of them have the signal and the time at once."""
    with contextlib.ExitStack() as opened:
        running: list[tuple[Chosen, Cgroup, list[int]]] = []
        for one in chosen:
            try:
                cgroup = opened.enter_context(held(one.fold, one.run.run_id))
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


def line(killed: Killed) -> str:
    """What became of it, to read."""
    name = os.path.basename(killed.cgroup)
    how_many = count(len(killed.pids), "process", "es")
    match killed.action:
        case "gone":
            return f"{name} had ended already"
        case "left":
            pids = f": {', '.join(map(str, killed.left))}" if killed.left else ""
            return safe(f"{name} could not be killed ({killed.why}){pids}")
        case done:
            return f"{done} {name} ({how_many})"
