"""One command, its result, and an exit status."""

from __future__ import annotations

import os
import signal

from pinfold import units
from pinfold.cli import render
from pinfold.cli.orphans import Orphans
from pinfold.cli.result_file import ResultPlaces
from pinfold.cli.status import complain
from pinfold.cli.terminal import Signals, as_found, on_terminal
from pinfold.errors import SpawnError, UsageError
from pinfold.labels import parse_labels
from pinfold.policy import Policy
from pinfold.result import Result
from pinfold.runs.fold import Fold
from pinfold.runs.loop import Loop
from pinfold.runs.request import plan
from pinfold.runs.supervise import Supervision
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Final

    from pinfold.limits import Limits

SIGNAL_GRACE: Final = 5.0  # seconds from a signal to us to the kill, where --grace says nothing
TIMED_OUT: Final = 124
FAILED: Final = 125
_KILLED: Final = 128 + 9
# Options that are limits, and the limits' own names.
_LIMITS: Final = {
    "memory": "memory_max",
    "swap": "memory_swap_max",
    "oom_group": "memory_oom_group",
    "pids": "pids_max",
    "cpus": "cpu_max",
    **{name: name for name in ("memory_high", "memory_low", "cpu_weight", "cpuset_cpus", "cpuset_mems")},
    **{name: name for name in ("io_max", "io_weight", "hugetlb")},
}
_RLIMITS: Final = ("nofile", "nproc", "fsize", "core", "stack", "as")
_TIME_OUTCOMES: Final = ("timed_out", "idle_timed_out", "cpu_timed_out")


def one_run(argv: list[str], options: dict[str, Any]) -> int:
    """Run a command with the options of options.py, by name, and return the exit status. Raises as the library does."""
    if not argv:
        raise UsageError("there is no command to run (see 'pinfold run --help')")
    arguments = _arguments(options)
    places = ResultPlaces(options["result"], options["result_fd"])
    try:
        place = {
            "backend": options["backend"],
            "slice": options["slice"],
            "scope_per_run": options["unit"] is not None,
        }
        result, ended_by = _supervised(argv, place, arguments)
    except SpawnError as error:
        complain(render.why_not_started(error))
        if error.result is not None:
            places.write(error.result)
        return error.exit_code
    if not options["quiet"]:
        _report(result, verbose=options["verbose"])
    places.write(result)
    return exit_status(result, ended_by)


def _supervised(argv: list[str], place: Any, arguments: dict[str, Any]) -> tuple[Result, int | None]:
    shared = on_terminal()
    orphans = Orphans()  # before the signals, which may bring a child of ours (group_signals.py)
    signals = Signals(shared_group=shared, grace=arguments["grace"] or SIGNAL_GRACE)
    try:
        wanted = plan(argv, umask=None, start_new_session=not shared, keep_ignored=signals.ignored, **arguments)
        with as_found(), Fold(**place, move_caller=True, spare=False) as fold:

            def attend(run: Supervision, loop: Loop) -> None:
                signals.attend(run, loop, lambda: orphans.reap(run.child.pid))

            result = fold.carry_out(wanted, attend)
            signals.dismiss_witness()
            escaped = orphans.sweep(keep=fold.guard)
            result.receipt = result.receipt._replace(escaped_processes=escaped)
    finally:
        signals.close()
    return result, signals.ended_by


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """From options to the library's arguments; everything is checked before anything is made."""
    return {
        "timeout": _span(options["timeout"], "--timeout"),
        "grace": units.span(options["grace"] or 0, "--grace"),
        "stop_signal": units.signal_number(options["signal"], "--signal"),
        "idle_timeout": _span(options["idle_timeout"], "--idle-timeout"),
        "cpu_timeout": _span(options["cpu_timeout"], "--cpu-timeout"),
        "env": _environment(options["env"], clear=options["clear_env"]),
        "cwd": options["chdir"],
        "user": options["user"],
        "strays": options["strays"],
        "output_limit": _size(options["output_limit"], "--output-limit"),
        "limits": _limits(options),
        "stall_timeout": _span(options["stall_timeout"], "--stall-timeout"),
        "unit": options["unit"],
        "labels": parse_labels(options["label"], "--label"),
        "policy": Policy(profile=options["profile"]),
        "output_exceeded": "kill",
    }


def _limits(options: dict[str, Any]) -> Limits | None:
    """Those of the options, and those of systemd's names."""
    asked: dict[str, Any] = {
        field: options[option] for option, field in _LIMITS.items() if options[option] not in (None, ())
    }
    for setting in options["rlimit"]:
        name, equals, value = setting.partition("=")
        if not equals or name not in _RLIMITS:
            raise UsageError(f"--rlimit {setting}: expected NAME=N, with one of {', '.join(_RLIMITS)}")
        asked[name] = value
    if options["property"]:
        from pinfold.limits.properties import from_properties

        for field, value in from_properties(list(options["property"])).items():
            if field in asked:
                raise UsageError(f"{field} is asked for twice: by an option of its own and by --property; say which")
            asked[field] = value
    if not asked:
        return None
    from pinfold.limits import Limits

    return Limits.of({**asked, "requirement": "best_effort" if options["best_effort"] else "required"})


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


def _report(result: Result, *, verbose: bool) -> None:
    line = render.the_line(result)
    if line:
        complain(line)
    if verbose:
        for detail in render.details(result):
            complain(detail)


def exit_status(result: Result, ended_by: int | None = None) -> int:
    """The exit status for a Result; `ended_by` is the signal to us that asked for its end.

    A command that was asked to end, and did so with a status of its own, has that one; but 0 would say that it has
    done its work.
    """
    if result.outcome in _TIME_OUTCOMES:
        return TIMED_OUT
    if result.outcome in ("output_exceeded", "oom_killed"):
        return _KILLED
    if ended_by is not None and (result.outcome == "canceled" or result.returncode == 0):
        return 128 + ended_by
    if result.returncode is None or result.error is not None:
        return FAILED
    if result.outcome == "canceled" and result.returncode == 0:
        return 128 + signal.SIGTERM
    return result.returncode if result.returncode >= 0 else 128 - result.returncode
