"""The command `pinfold`: its subcommands, and errors as one line with an exit status."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import Any, Final

import click

from pinfold.cli.status import Complaint, give_up_unwritable, status_of

# A subcommand's module is imported when it is called: `pinfold run` should not wait for doctor's imports.
_COMMANDS: Final = {
    "run": "Run a command in its own cgroup and leave no process behind.",
    "ps": "Show which commands run, whose they are, and what they use.",
    "kill": "Kill running commands, each with all its descendants.",
    "gc": "Clean up after pinfold processes that died.",
    "doctor": "Show what this host offers, what is missing, and how to fix it.",
    "version": "Print the version.",
}


class _Lazy(click.Group):
    def list_commands(self, _context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"pinfold.cli.{name}"), name)
        return command

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Run each command in its own cgroup v2; when it ends, kill what is left and verify that the cgroup is empty."""


def main(argv: list[str] | None = None) -> Any:
    """The entry point for every subcommand. Exits with the status that DESIGN and README document."""
    arguments = sys.argv[1:] if argv is None else argv
    failed = 125 if arguments[:1] == ["run"] else 2
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of others may hold what its encoding has no bytes for
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(status_of(lambda: _invoke(arguments), failed))
    finally:
        give_up_unwritable()


def _invoke(arguments: list[str]) -> int:
    try:
        # Not `cli.main`: that makes a silent 1 of every EPIPE.
        with cli.make_context("pinfold", arguments) as context:
            return cli.invoke(context) or 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.exceptions.NoArgsIsHelpError as error:
        raise Complaint(error.format_message(), as_it_is=True) from error
    except click.ClickException as error:
        raise Complaint(_one_line(error)) from error


def _one_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return f"{message} (see '{context.command_path} --help')" if context else message
