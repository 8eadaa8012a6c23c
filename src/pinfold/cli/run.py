"""`pinfold run`, as click has it: for its help, and for what is wrong with a command line."""

from __future__ import annotations

from typing import Any

import click

from pinfold.cli.one_run import one_run
from pinfold.cli.options import OPTIONS, Option, name_of


def _parameter(option: Option) -> click.Option:
    flags = option.flags.split()
    if option.value is None:
        return click.Option([*flags, name_of(option)], is_flag=True, default=option.default, help=option.help)
    return click.Option(
        [*flags, name_of(option)],
        type=click.Choice(option.choices) if option.choices else None,
        metavar=None if option.choices else option.value,
        multiple=option.many,
        default=option.default,
        help=option.help,
    )


def _run(argv: tuple[str, ...], **options: Any) -> int:
    return one_run(list(argv), options)


run = click.Command(
    "run",
    callback=_run,
    context_settings={"allow_interspersed_args": False},
    params=[*map(_parameter, OPTIONS), click.Argument(["argv"], nargs=-1, type=click.UNPROCESSED)],
    help="""Run ARGV in its own cgroup and leave no process behind.

    The command inherits stdin, stdout and stderr. Exit status: the command's own; 124 a time limit; 125 pinfold
    failed; 126 it cannot be executed; 127 it was not found; 128+N signal N (137 also for the memory limit and the
    output limit).
    """,
)
