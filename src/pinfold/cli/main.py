"""The command `pinfold`: its subcommands, and errors as one line with an exit status."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from importlib import import_module
from typing import Any, Final

import click

from pinfold import errors

# A subcommand's module is imported when it is called: `pinfold run` should not wait for doctor's imports.
_COMMANDS: Final = {
    "run": "Run a command in a cgroup of its own, and leave nothing of it.",
    "ps": "Say which commands are running, of whom, and what they use.",
    "kill": "End running commands, each with everything that it started.",
    "gc": "Remove what pinfolds that are gone have left.",
    "doctor": "Say what this host offers, what is missing, and how to mend it.",
    "version": "Say which version this is.",
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
    """Run commands of which nothing strays: each in a cgroup v2 of its own, killed and proven empty at its end."""


def complain(message: str) -> None:
    """One line of ours on stderr; stdout belongs to the command. Where it cannot be written, the status stays right."""
    safe = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    with contextlib.suppress(OSError):
        click.echo(f"pinfold: {safe}", err=True)


def main(argv: list[str] | None = None) -> Any:
    """The entry point. Exits with the status that DESIGN and README document; 125 is pinfold's own failure."""
    arguments = sys.argv[1:] if argv is None else argv
    failed = 125 if arguments[:1] == ["run"] else 2
    lost: list[BaseException] = []  # what ended a thread of ours: said once, here, and not as its traceback
    threading.excepthook = lambda thread: lost.append(thread.exc_value) if thread.exc_value else None
    try:
        # Not `cli.main`: that makes a silent 1 of every EPIPE.
        with cli.make_context("pinfold", arguments) as context:
            sys.exit(cli.invoke(context) or 0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        with contextlib.suppress(OSError):
            click.echo(error.format_message(), err=True)
        sys.exit(failed)
    except click.ClickException as error:
        complain(_one_line(error))
        sys.exit(failed)
    except errors.UsageError as error:
        complain(str(error))
        sys.exit(failed)
    except errors.Error as error:
        if lost:
            _own_fault(lost[0])
        else:
            complain(str(error))
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        complain(str(error))
        sys.exit(failed)
    except Exception as error:  # noqa: BLE001  # a fault of ours must not look like a status of the command
        _own_fault(error)
        sys.exit(failed)
    finally:
        _give_up_unwritable()


def _give_up_unwritable() -> None:
    """Drop what could not be written: the interpreter would try again at its exit, and make the status 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, stream.fileno())
            os.close(null)


def _own_fault(error: BaseException) -> None:
    import traceback

    if os.environ.get("PINFOLD_DEBUG"):
        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    what = traceback.format_exception_only(error)[-1].strip()
    complain(f"internal error: {what} (please report it; PINFOLD_DEBUG=1 shows where)")


def _one_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return f"{message} (see '{context.command_path} --help')" if context else message
