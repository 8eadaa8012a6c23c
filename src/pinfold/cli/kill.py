"""`pinfold kill`: the end of runs that other processes have started."""

from __future__ import annotations

import json
import os

import click

from pinfold import units
from pinfold.cli.render import count
from pinfold.cli.status import complain, safe
from pinfold.lease import find
from pinfold.lease.end import Killed, end
from pinfold.lease.select import NotChosenError, Wanted, choose


@click.command()
@click.option(
    "--label",
    "wanted",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Kill only runs with this label.",
)
@click.option("--all", "everything", is_flag=True, help="Kill every run of this user; as root, of every user.")
@click.option("-k", "--grace", metavar="TIME", help="Send the signal first and kill this much later.")
@click.option("-s", "--signal", "number", metavar="SIG", help="The signal for --grace; TERM by default.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.argument("runs", nargs=-1, metavar="[RUN]…")
def kill(
    wanted: tuple[str, ...], runs: tuple[str, ...], *, everything: bool, grace: str | None, number: str | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Kill each RUN with all its descendants; the pinfold that runs it then reports `canceled`.

    RUN is a run's id or its first digits (at least 4), with or without `run-`; or its cgroup; or the name of a fold,
    for all its runs. See `pinfold ps`. A run needs every --label that is given. Exit status 1 if there is no such run,
    or a process could not be killed.
    """
    labels = Wanted.parse(wanted)
    if everything and runs:
        raise click.UsageError("--all already means every run: give RUN or --all, not both")
    if not (everything or runs or labels):
        raise click.UsageError("no run given: give RUN, --label or --all")
    if number is not None and grace is None:
        raise click.UsageError("--signal needs --grace, the time to wait before the kill")
    patience = units.span(grace or 0, "--grace")
    asked = None if grace is None else units.signal_number(number or "TERM", "--signal")
    try:
        chosen = choose(list(find.folds(find.top())), runs, labels)
    except NotChosenError as error:
        complain(str(error))
        return 1
    if not chosen:
        complain("there is no such run")
    found = end(chosen, asked, patience)  # all is done before anything is said: nobody may read it any more
    if as_json:
        click.echo(json.dumps({"schema": 1, "runs": [killed._asdict() for killed in found]}))
    elif found:
        click.echo("\n".join(map(line, found)))
    return 0 if found and all(killed.action != "left" for killed in found) else 1


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
