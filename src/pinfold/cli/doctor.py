"""`pinfold doctor`: what this host offers, what is missing, and the fix. The last checks are real runs."""

from __future__ import annotations

import json
import os
import platform
import signal
from collections.abc import Iterator
from dataclasses import asdict

import click

from pinfold.cgroup import places
from pinfold.cli.checks import Check, confinement, controllers, faults, features, guarded, leases
from pinfold.cli.checks.manager import Surroundings, systemd
from pinfold.cli.checks.trial import Trial
from pinfold.cli.status import safe


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(as_json: bool) -> int:
    """Say what this host offers, what is missing, and how to mend it. Exit status 1 if a run would not work."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who called us may ignore it; then nobody's child tells how it ended
    checks = list(examine())
    works = all(check.ok for check in checks if check.needed)
    if as_json:
        click.echo(json.dumps({"schema": 1, "works": works, "checks": [asdict(check) for check in checks]}))
    else:
        for line in lines(checks):
            click.echo(line)
        click.echo("pinfold works here" if works else "pinfold does NOT work here")
    return 0 if works else 1


def lines(checks: list[Check]) -> Iterator[str]:
    """Each group by its name; in it a line for each check, and one for its fix."""
    group = None
    for check in checks:
        if check.group != group:
            group = check.group
            yield f"{group}:"
        mark = "ok" if check.ok else "MISSING" if check.needed else "-"
        since = f" (Linux {check.since})" if check.since else ""
        yield f"{mark:8}{check.name:24}{safe(check.found)}{since}"
        if check.fix:
            yield f"{'':8}{'':24}fix: {safe(check.fix)}"


def examine() -> Iterator[Check]:
    """All checks, from the kernel up to runs."""
    around = Surroundings()  # before a run may move us
    yield from guarded("host", _host)
    yield from guarded("host", around.mount)
    yield from guarded("manager", systemd)
    yield from guarded("manager", around.unit)
    if around.own is None:  # nothing in it can be tried
        yield from guarded("kernel", features.pidfds)
        yield from guarded("kernel", lambda: features.pressure(None))
        yield from _others()
        return
    with Trial() as trial:
        yield from guarded("backend", trial.backend, needed=True)
        by_systemd = trial.plain is not None and trial.plain.placement.backend == "systemd"
        yield from guarded("backend", lambda: around.delegation(needed=not by_systemd))
        place = trial.place
        if place is not None:
            yield from guarded("controllers", lambda: controllers.controllers(place))
        yield from guarded("controllers", controllers.version_1)
        if place is not None:
            yield from guarded("kernel", lambda: features.files(place))
        yield from guarded("kernel", lambda: features.births(trial))
        yield from guarded("kernel", features.pidfds)
        yield from guarded("kernel", lambda: features.pressure(place))
        yield from guarded("kernel", features.mount_options)
        yield from _others()
        yield from guarded("leases", lambda: leases.guard(trial))
        yield from guarded("leases", leases.leftovers)
        yield from guarded("runs", trial.runs, needed=True)


def _others() -> Iterator[Check]:
    yield from guarded("faults of the kernel", faults.look)
    for look in (confinement.user_namespaces, confinement.bubblewrap, confinement.landlock, confinement.seccomp):
        yield from guarded("confinement", look)


def _host() -> Iterator[Check]:
    release = os.uname().release
    version = faults.series(release)
    if version is None or version >= places.KERNEL_FLOOR:
        yield Check("kernel", True, release, needed=True)
    else:
        fix = "cgroup.kill needs Linux 5.14: take a newer kernel"
        yield Check("kernel", False, release, needed=True, fix=fix)
    yield Check("python", True, platform.python_version())
