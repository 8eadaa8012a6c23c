"""`pinfold gc`: what folds whose owner is gone have left is killed and removed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, Final

import click

from pinfold.cgroup import delegation
from pinfold.cgroup.places import Place
from pinfold.cli.render import count, safe
from pinfold.errors import Error
from pinfold.lease import find, sweep

_SLICE: Final = "pinfold.slice"
_STOP_DEADLINE: Final = 5.0


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def gc(*, dry_run: bool, as_json: bool) -> int:
    """Kill and remove what pinfolds that are gone have left, as far as this user may; live ones are not touched.

    Exit status 1 if something of it could not be removed. What is not ours, or cannot be read, is only reported.
    """
    top = find.top()
    found = list(_everything(top, dry_run=dry_run))  # before anything is said: nobody may read it any more
    if as_json:
        click.echo(json.dumps({"schema": 1, "dry_run": dry_run, "swept": found}))
    elif found:
        click.echo("\n".join(map(line, found)))
    return 1 if any(each["action"] == "left" for each in found) else 0


def _everything(top: Place, *, dry_run: bool) -> Iterator[dict[str, Any]]:
    for swept in sweep.sweep(top, dry_run=dry_run):
        yield swept._asdict()
    yield from idle_slice(top, dry_run=dry_run)


def idle_slice(top: Place, *, dry_run: bool) -> Iterator[dict[str, Any]]:
    """The slice that systemd made for our scopes, and left active without any.

    It stops a slice that nobody needs at most 16 times in 10 s. One that an administrator has installed stays.
    """
    user = os.geteuid() != 0
    place = slice_place(top)
    made_for_us = os.path.join(_runtime(user=user), "systemd/transient", _SLICE)
    if not delegation.systemd_is_running() or not os.path.exists(made_for_us) or not _is_empty(place):
        return
    why = "no scope is in it, and systemd has left it active"
    told = {"cgroup": place.path, "what": "slice", "pids": [], "left": [], "why": why}
    from pinfold.backend.manager import Manager

    try:
        with Manager.connect(user=user) as manager:
            if manager.active_state(_SLICE) != "active" or not _is_empty(place):
                return
            if dry_run:
                yield {**told, "action": "would remove"}
                return
            manager.stop(_SLICE, _STOP_DEADLINE)
            gone = manager.active_state(_SLICE) != "active"
    except Error:  # no bus, no slice to stop: an empty one harms nobody
        return
    if gone or _is_empty(place):  # else somebody has just needed it
        yield {**told, "action": "removed" if gone else "left"}


def slice_place(top: Place) -> Place:
    """The cgroup of pinfold.slice, there or not: of the system's manager for root, of the user's for others."""
    uid = os.geteuid()
    manager = f"user.slice/user-{uid}.slice/user@{uid}.service/" if uid else ""
    return find.child(top, f"{manager}{_SLICE}")


def _runtime(*, user: bool) -> str:
    return (os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") if user else "/run"


def _is_empty(place: Place) -> bool:
    return os.path.isdir(place.directory) and not find.below(place) and not find.processes(place)


def line(swept: dict[str, Any]) -> str:
    """What was done about one thing, to read."""
    killed, left = count(len(swept["pids"]), "process", "es"), ", ".join(map(str, swept["left"]))
    match swept["action"]:
        case "foreign":
            text = f"not touched: {swept['cgroup']}: {swept['why']}"
        case "left":
            text = f"could not remove {swept['cgroup']} ({swept['why']})" + (f": still there: {left}" if left else "")
        case action:
            did = "would kill" if action == "would remove" else "killed"
            text = f"{action} {swept['cgroup']} ({swept['why']})" + (f": {did} {killed}" if swept["pids"] else "")
    return safe(text)
