"""`pinfold gc`: kill and remove what is left of folds whose owner has died."""

from __future__ import annotations

import json

import click

from pinfold.backend import idle_slice
from pinfold.cli.render import count
from pinfold.cli.status import safe
from pinfold.lease import find, sweep
from pinfold.lease.sweep import Swept


@click.command()
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def gc(*, dry_run: bool, as_json: bool) -> int:
    """Kill and remove what is left of pinfold processes that died, as far as this user may. Live ones are not touched.

    Exit status 1 if something could not be removed. Cgroups that are not pinfold's, or cannot be read, are only listed.
    """
    top = find.top()
    # Before anything is said: nobody may read it any more.
    found = [*sweep.sweep(top, dry_run=dry_run), *idle_slice.sweep(top, dry_run=dry_run)]
    if as_json:
        click.echo(json.dumps({"schema": 1, "dry_run": dry_run, "swept": [swept._asdict() for swept in found]}))
    elif found:
        click.echo("\n".join(map(line, found)))
    return 1 if any(swept.action == "left" for swept in found) else 0


def line(swept: Swept) -> str:
    """What was done about one thing, to read."""
    killed, left = count(len(swept.pids), "process", "es"), ", ".join(map(str, swept.left))
    match swept.action:
        case "foreign":
            text = f"not touched: {swept.cgroup}: {swept.why}"
        case "left":
            text = f"could not remove {swept.cgroup} ({swept.why})" + (f": still there: {left}" if left else "")
        case action:
            did = "would kill" if action == "would remove" else "killed"
            text = f"{action} {swept.cgroup} ({swept.why})" + (f": {did} {killed}" if swept.pids else "")
    return safe(text)
