"""`pinfold run`: one command, its result, and an exit status."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from typing import Any, Final

import click

from pinfold import errors, properties, units
from pinfold.cli import words
from pinfold.cli.main import complain
from pinfold.cli.orphans import Orphans
from pinfold.cli.terminal import Signals, as_found, on_terminal
from pinfold.errors import SpawnError, UsageError
from pinfold.limits import Limits
from pinfold.policy import Policy
from pinfold.result import Result
from pinfold.runs.fold import Fold

TIMED_OUT: Final = 124
FAILED: Final = 125
_KILLED: Final = 128 + 9
_TIME_OUTCOMES: Final = ("timed_out", "idle_timed_out", "cpu_timed_out")


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-t", "--timeout", metavar="TIME", help="End it after this long: 5, 500ms, '1min 30s'.")
@click.option("-k", "--grace", metavar="TIME", help="At a limit send the signal first, and kill this much later.")
@click.option("-s", "--signal", "stop_signal", default="TERM", metavar="SIG", help="The signal; TERM by default.")
@click.option("--idle-timeout", metavar="TIME", help="End it when it has written nothing for this long.")
@click.option("--cpu-timeout", metavar="TIME", help="End it when its processes have used this much CPU time.")
@click.option("--memory", metavar="SIZE", help="Most memory, such as 64M (not available yet).")
@click.option("--pids", metavar="N", help="Most processes (not available yet).")
@click.option("--cpus", metavar="N", type=float, help="Most CPUs, such as 1.5 (not available yet).")
@click.option("-p", "--property", "properties", multiple=True, metavar="NAME=VALUE", help="A limit by systemd's name.")
@click.option("-E", "--env", "env", multiple=True, metavar="NAME[=VALUE]", help="Set, or pass on, a variable.")
@click.option("--clear-env", is_flag=True, help="Start from an empty environment.")
@click.option("-C", "--chdir", metavar="DIR", help="Run it there.")
@click.option("--user", metavar="USER", help="Run it as this user, with its groups (root only).")
@click.option("--strays", type=click.Choice(["kill", "wait"]), default="kill", help="What its descendants get.")
@click.option("--output-limit", metavar="SIZE", help="End it when it has written more than this to a stream.")
@click.option(
    "--backend", type=click.Choice(["auto", "cgroupfs", "systemd"]), default="auto", help="Who makes cgroups."
)
@click.option("--profile", type=click.Choice(["plain", "hardened"]), default="plain", help="How it is confined.")
@click.option("--result", "result_file", metavar="FILE", help="Write the Result there, as JSON.")
@click.option("--result-fd", type=int, metavar="N", help="Write the Result to this open descriptor.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing about how it ended.")
@click.option("-v", "--verbose", is_flag=True, help="Say also what it used and what was cleaned up.")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
def run(argv: tuple[str, ...], **options: Any) -> int:
    """Run ARGV in a cgroup of its own. When it has ended, or a limit was hit, nothing of it is left.

    Its stdout and stderr are ours. Exit status: the command's own; 124 a time limit; 125 pinfold failed; 126 it cannot
    be executed; 127 it was not found; 128+N signal N (137 also for the output limit).
    """
    if not argv:
        raise UsageError("there is no command to run (see 'pinfold run --help')")
    arguments = _arguments(options)
    write_result = _result_writer(options["result_file"], options["result_fd"])
    try:
        result, ended_by = _supervised(list(argv), options["backend"], arguments)
    except SpawnError as error:
        complain(words.why_not_started(error))
        if error.result is not None:
            write_result(error.result)
        return error.exit_code
    if not options["quiet"]:
        _report(result, verbose=options["verbose"])
    write_result(result)
    return exit_status(result, ended_by)


def _supervised(argv: list[str], backend: Any, arguments: dict[str, Any]) -> tuple[Result, int | None]:
    shared = on_terminal()
    policy = arguments.pop("policy")
    orphans = Orphans()  # before the signals, which may bring a child of ours (witness.py)
    signals = Signals(shared_group=shared)
    try:
        with as_found(), Fold(backend=backend, spare=False) as fold:
            policy = Policy(**policy, new_session=not shared, keep_ignored=signals.ignored)
            run = fold.start(argv, policy=policy, **arguments)
            signals.attend(run, lambda: orphans.reap(run.pid))
            result = run.wait()
            result.receipt = result.receipt._replace(escaped_processes=orphans.sweep())
    finally:
        signals.close()
    return result, signals.ended_by


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """From options to the library's arguments; everything is checked before anything is made."""
    asked = properties.from_properties(list(options["properties"]))
    for option, field in (("memory", "memory_max"), ("pids", "pids_max"), ("cpus", "cpu_max")):
        if options[option] is not None:
            asked[field] = options[option]
    Limits(**asked).require_none()
    return {
        "timeout": _span(options["timeout"], "--timeout"),
        "grace": units.span(options["grace"] or 0, "--grace"),
        "stop_signal": units.signal_number(options["stop_signal"], "--signal"),
        "idle_timeout": _span(options["idle_timeout"], "--idle-timeout"),
        "cpu_timeout": _span(options["cpu_timeout"], "--cpu-timeout"),
        "env": _environment(options["env"], clear=options["clear_env"]),
        "cwd": options["chdir"],
        "user": options["user"],
        "strays": options["strays"],
        "output_limit": _size(options["output_limit"], "--output-limit"),
        "policy": {"profile": options["profile"], "output_exceeded": "kill"},
    }


def _span(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    seconds = units.span(text, option)
    if seconds == 0:
        raise UsageError(f"{option} {text}: timeout(1) reads 0 as no limit, others as at once; say which")
    return seconds


def _size(text: str | None, option: str) -> int | None:
    return None if text is None else units.size(text, option)


def _environment(settings: tuple[str, ...], *, clear: bool) -> dict[str, str] | None:
    if not settings and not clear:
        return None
    env = {} if clear else dict(os.environ)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if equals:
            env[name] = value
        elif name in os.environ:
            env[name] = os.environ[name]
        else:
            raise UsageError(f"--env {setting}: is not set here, so there is nothing to pass on; say {setting}=VALUE")
    return env


def _result_writer(file: str | None, number: int | None) -> Callable[[Result], None]:
    """Open the places for the Result now: better no run than a run whose result is lost."""
    places = []
    if number is not None:
        try:
            mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        except (OSError, OverflowError, ValueError) as error:
            raise UsageError(f"--result-fd {number}: is not an open descriptor") from error
        if mode == os.O_RDONLY:
            raise UsageError(f"--result-fd {number}: is open for reading only")
        places.append(number)
    if file is not None:
        try:
            places.append(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
        except (OSError, ValueError) as error:
            raise UsageError(f"--result {file}: cannot be written: {error}") from error

    def write(result: Result) -> None:
        text = (result.to_json() + "\n").encode()
        failures = []
        for fd in places:
            try:
                _write_whole(fd, text, overwrite=fd != number)
            except OSError as error:
                failures.append(f"the result could not be written to {fd if fd == number else file}: {error.strerror}")
        if failures:
            raise errors.Error("; ".join(failures))

    return write


def _write_whole(fd: int, text: bytes, *, overwrite: bool) -> None:
    if overwrite:
        with contextlib.suppress(OSError):  # a pipe, a device
            os.ftruncate(fd, 0)
    view = memoryview(text)
    while view:
        view = view[os.write(fd, view) :]


def _report(result: Result, *, verbose: bool) -> None:
    line = words.the_line(result)
    if line:
        complain(line)
    if verbose:
        for detail in words.details(result):
            complain(detail)


def exit_status(result: Result, ended_by: int | None = None) -> int:
    """The exit status for a Result; `ended_by` is the signal to us that made us cancel it."""
    if result.outcome in _TIME_OUTCOMES:
        return TIMED_OUT
    if result.outcome == "output_exceeded":
        return _KILLED
    if result.outcome == "canceled" and ended_by is not None:
        return 128 + ended_by
    if result.returncode is None or result.error is not None:
        return FAILED
    return result.returncode if result.returncode >= 0 else 128 - result.returncode
