"""`pinfold ps`: a tree of folds and their runs."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Final

import click

from pinfold.cli.render import count
from pinfold.cli.status import safe
from pinfold.lease import find
from pinfold.lease.facts import FoldFacts, ProcessFacts, RunFacts, snapshot
from pinfold.lease.select import Wanted
from pinfold.units import readable_size, readable_span

_EACH: Final = 1.0  # seconds
_TEXT_AT_MOST: Final = 100  # characters of what others have written; --json has all of it
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"  # ECMA-48: CUP, EL, ED


@click.command()
@click.option(
    "--label",
    "wanted",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Show only runs with this label; repeat for more.",
)
@click.option("--watch", is_flag=True, help="Repeat every second, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; with --watch one in each line.")
def ps(wanted: tuple[str, ...], *, watch: bool, as_json: bool) -> int:
    """Show every fold that this user can see, and its runs: age, command, CPU time, memory, processes.

    A fold belongs to one program that runs commands with pinfold, such as `pinfold run`.
    """
    labels, top = Wanted.parse(wanted), find.top()
    try:
        while True:
            _show(snapshot(top, labels), as_json=as_json, watch=watch)
            if not watch:
                return 0
            time.sleep(_EACH)
    except (KeyboardInterrupt, BrokenPipeError):
        if watch:
            return 0
        raise


def _show(folds: list[FoldFacts], *, as_json: bool, watch: bool) -> None:
    if as_json:
        click.echo(json.dumps({"schema": 1, "folds": [fold.to_dict() for fold in folds]}))
    elif watch and sys.stdout is not None and sys.stdout.isatty():
        columns, rows = shutil.get_terminal_size()
        shown = [line[: columns - 1] for line in lines(folds)][: rows - 1]
        click.echo(_HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in shown) + _CLEAR_REST, nl=False, color=True)
    else:
        click.echo("".join(f"{line}\n" for line in lines(folds)) + ("\n" if watch else ""), nl=False)


def lines(folds: list[FoldFacts]) -> Iterator[str]:
    """Each fold, and its runs below it."""
    if not folds:
        yield "no pinfold runs"
    branch, last_branch, trunk = _branches()
    for fold in folds:
        yield from _fold(fold)
        for at, run in enumerate(fold.runs):
            last = at == len(fold.runs) - 1
            yield (last_branch if last else branch) + _run(run)
            yield ("    " if last else trunk) + "    " + _command(run)
    if any(fold.state == "dead" and fold.problem is None for fold in folds):
        yield "run `pinfold gc` to remove dead folds"


def _branches() -> tuple[str, str, str]:
    """To a run, to the last one, and beside what is below a run; as tree(1) draws them."""
    drawn = ("├── ", "└── ", "│   ")
    try:
        "".join(drawn).encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return ("|-- ", "`-- ", "|   ")
    return drawn


def _fold(fold: FoldFacts) -> Iterator[str]:
    parts: list[str] = [fold.state, fold.backend]
    if fold.uid != os.geteuid():
        parts.append(f"of uid {fold.uid}")
    if fold.age_usec is not None:
        parts.append(readable_span(fold.age_usec / 1e6))
    parts.append(count(len(fold.runs), "run"))
    if fold.owner is not None:
        parts.append(f"process {_process(fold.owner)}")
    elif fold.owner_pid is not None:
        gone = "has closed it" if fold.closed else "is gone" if fold.state == "dead" else "(not seen from here)"
        parts.append(f"process {fold.owner_pid} {gone}")
    yield safe(fold.cgroup) + ": " + ", ".join(parts) + _labels(fold.labels)
    if fold.state == "foreign" and fold.problem is not None:
        yield f"    {_text(fold.problem)}"


def _run(run: RunFacts) -> str:
    parts = [
        run.state,
        *([] if run.age_usec is None else [readable_span(run.age_usec / 1e6)]),
        f"cpu {'-' if run.cpu_usage_usec is None else readable_span(run.cpu_usage_usec / 1e6)}",
        f"memory {'-' if run.memory_current is None else readable_size(run.memory_current)}",
        count(run.processes, "process", "es"),
    ]
    return f"run-{run.run_id}: " + ", ".join(parts) + _labels(run.labels)


def _command(run: RunFacts) -> str:
    return "-" if run.main is None else _process(run.main)


def _process(process: ProcessFacts) -> str:
    return f"{process.pid} {_text(' '.join(process.argv or [process.comm or '?']))}"


def _labels(labels: dict[str, str] | None) -> str:
    return _text("".join(f" {name}={value}" for name, value in sorted((labels or {}).items())))


def _text(foreign: str) -> str:
    """Harmless to a terminal, and no longer than it has to be."""
    text = safe(foreign)
    return text if len(text) <= _TEXT_AT_MOST else text[: _TEXT_AT_MOST - 1] + "…"
