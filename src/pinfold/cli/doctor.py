"""`pinfold doctor`: what this host offers, what is missing, and the fix. The last check is a real run."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import click

from pinfold.cgroup import tree
from pinfold.cli.words import safe
from pinfold.errors import Error, NoCgroup2, NotDelegated
from pinfold.result import Result
from pinfold.runs.fold import Fold


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `needed`: without it no run works. `fix` is set where something is missing."""

    name: str
    ok: bool
    found: str
    needed: bool = False
    fix: str | None = None


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(as_json: bool) -> int:
    """Say what this host offers, what is missing, and how to mend it. Exit status 1 if a run would not work."""
    checks = list(examine())
    works = all(check.ok for check in checks if check.needed)
    if as_json:
        click.echo(json.dumps({"schema": 1, "works": works, "checks": [asdict(check) for check in checks]}))
    else:
        for check in checks:
            click.echo(
                f"{'ok' if check.ok else 'MISSING' if check.needed else '-':8}{check.name:22}{safe(check.found)}"
            )
            if check.fix:
                click.echo(f"{'':8}{'':22}fix: {safe(check.fix)}")
        click.echo("pinfold works here" if works else "pinfold does NOT work here")
    return 0 if works else 1


def examine() -> Iterator[Check]:
    """All checks, from the kernel up to a run."""
    yield _kernel()
    yield Check("python", True, platform.python_version())
    try:
        own = tree.own_place()
        yield Check("cgroup v2", True, f"our cgroup is {own.path} at {own.directory}", needed=True)
        place = tree.delegated_place()
    except NoCgroup2 as error:
        yield Check("cgroup v2", False, error.found, needed=True, fix=error.fix)
        return
    except NotDelegated as error:
        yield Check("delegation", False, error.found, needed=True, fix=error.fix)
        return
    except OSError as error:
        yield Check("cgroup v2", False, str(error), needed=True, fix="mount proc: mount -t proc proc /proc")
        return
    yield Check("delegation", True, f"uid {os.geteuid()} may make cgroups in {place.directory}", needed=True)
    yield _controllers(place)
    yield _pressure(place)
    yield _manager()
    yield from _runs()


def _kernel() -> Check:
    release = os.uname().release
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < tree.KERNEL_FLOOR:
        return Check("kernel", False, release, needed=True, fix="cgroup.kill needs Linux 5.14: take a newer kernel")
    notes = []
    if version < (6, 14):
        notes.append("before 6.14 cgroup.kill can race with fork (mended by killing again; stable trees have the fix)")
    if version < (6, 15):
        notes.append("before 6.15 a status that the host program took away is lost")
    return Check("kernel", True, "; ".join([release, *notes]), needed=True)


def _controllers(place: tree.Place) -> Check:
    with open(os.path.join(place.directory, "cgroup.controllers"), encoding="ascii") as file:
        there = file.read().split()
    missing = [name for name in ("cpu", "memory", "pids", "io") if name not in there]
    found = f"in {place.directory}: {' '.join(there) or 'none'}"
    if not missing:
        return Check("controllers", True, found + " (limits are not available yet)")
    fix = f"{' '.join(missing)}: boot with cgroup_no_v1=all, or have them delegated: systemd's Delegate=yes"
    return Check("controllers", False, found, fix=fix + "; runs work without, memory and pids stay unmeasured")


def _pressure(place: tree.Place) -> Check:
    if os.path.exists(os.path.join(place.directory, "cpu.pressure")):
        return Check("pressure (PSI)", True, "measured")
    return Check("pressure (PSI)", False, "not measured", fix="boot with psi=1 (CONFIG_PSI, Linux 4.20)")


def _manager() -> Check:
    if os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        return Check("systemd", True, "is the manager here; pinfold's backend for it is not available yet")
    return Check("systemd", False, "is not the manager here; the backend cgroupfs is used")


def _runs() -> Iterator[Check]:
    """What it is all about, tried: a run, and a stray that has to die."""
    env = {"PATH": os.defpath}  # it is the host that is looked at, not the caller's environment
    try:
        with Fold(spare=False) as fold:
            plain = fold.run(["true"], timeout=10, env=env)
            stray = fold.run(["sh", "-c", "setsid sleep 60 & exit 0"], timeout=10, env=env)
            signed = fold.signed
    except (Error, OSError) as error:
        yield Check("a run", False, str(error), needed=True, fix="mend what the line says")
        return
    yield _entry(plain)
    yield Check("owner record", signed, "extended attributes on cgroups" if signed else "no user.* attributes there")
    clean = all(r.ok and r.receipt.emptied and r.receipt.removed for r in (plain, stray)) and stray.receipt.strays == 1
    found = "worked; a setsid'ed stray was found and killed" if clean else f"failed: {stray.to_json()}"
    yield Check("a run", clean, found, needed=True, fix=None if clean else "report this, with the line above")


def _entry(result: Result) -> Check:
    if result.placement.entry == "clone3":
        return Check("clone3 into a cgroup", True, "commands are born in their cgroup")
    return Check(
        "clone3 into a cgroup",
        False,
        "refused: each command is moved into its cgroup, which takes 7-20 ms",
        fix="let the seccomp filter pass clone3 (Docker from 20.10.10, libseccomp from 2.5.2), or take Linux 5.7",
    )
