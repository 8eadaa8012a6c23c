"""The options of `pinfold run`: one table for its parser, its help, and the light parser of front.py."""

from __future__ import annotations

from pinfold.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any, Final


class Option(NamedTuple):
    """One option, or a switch and its opposite (`--x/--no-x`)."""

    flags: str  # the last one gives the name
    value: str | None  # what its value is called in the help; None: it is a switch
    help: str
    choices: tuple[str, ...] | None = None  # the only values
    many: bool = False  # may be said again
    default: Any = None


OPTIONS: Final = (
    Option("-t --timeout", "TIME", "Kill it after this much time: 5, 500ms, '1min 30s'."),
    Option("-k --grace", "TIME", "At a limit, send the signal first and kill this much later."),
    Option("-s --signal", "SIG", "The signal for --grace; TERM by default.", default="TERM"),
    Option("--idle-timeout", "TIME", "Kill it after this much time without output."),
    Option("--cpu-timeout", "TIME", "Kill it when its processes have used this much CPU time."),
    Option("--memory", "SIZE", "Limit its memory: 64M, 50%. At the limit the kernel kills all of it."),
    Option("--memory-high", "SIZE", "Throttle it and reclaim its memory above this size."),
    Option("--memory-low", "SIZE", "Protect this much of its memory from reclaim."),
    Option("--swap", "SIZE", "Limit its swap; 0: none."),
    Option("--oom-group/--no-oom-group", None, "At its memory limit, kill all of it (default) or one process."),
    Option("--stall-timeout", "TIME", "Kill it after this much time stuck at its memory limit."),
    Option("--pids", "N", "Limit its processes and threads together."),
    Option("--cpus", "N", "Limit its CPU time to this many CPUs, such as 1.5."),
    Option("--cpu-weight", "N", "Its share of a busy CPU: 1 to 10000, default 100."),
    Option("--cpuset-cpus", "LIST", "Run it on these CPUs only, such as 0-3,8."),
    Option("--cpuset-mems", "LIST", "Give it memory of these NUMA nodes only."),
    Option("--io-max", "'DEV KEY=N…'", "Limit its IO on a device: rbps, wbps, riops, wiops.", many=True),
    Option("--io-weight", "N", "Its share of a busy device: 1 to 10000, default 100."),
    Option("--hugetlb", "PAGE=SIZE", "Limit its huge pages, such as 2MB=64M.", many=True),
    Option("--rlimit", "NAME=N[:N]", "Set a limit of each process: nofile, nproc, fsize, core, stack, as.", many=True),
    Option("-p --property", "NAME=VALUE", "Set a limit by its systemd name, such as MemoryMax=64M.", many=True),
    Option("--best-effort", None, "Run it even if this host cannot set some of the limits.", default=False),
    Option("-E --env", "NAME[=VALUE]", "Set an environment variable, or pass on ours.", many=True),
    Option("--clear-env", None, "Start with an empty environment.", default=False),
    Option("-C --chdir", "DIR", "Run it in this directory."),
    Option("--user", "USER", "Run it as this user, with the user's groups (root only)."),
    Option(
        "--strays",
        "kill|wait",
        "When the main process exits: kill its descendants, or wait for them.",
        ("kill", "wait"),
        default="kill",
    ),
    Option("--output-limit", "SIZE", "Kill it when it writes more than this to stdout or stderr."),
    Option(
        "--backend",
        "WHO",
        "Who makes the cgroup: systemd or pinfold itself (cgroupfs).",
        ("auto", "cgroupfs", "systemd"),
        default="auto",
    ),
    Option("--unit", "NAME", "Run it in its own systemd scope of this name, with the limits as properties."),
    Option("--slice", "NAME", "The systemd slice of the scope; pinfold.slice by default."),
    Option("--profile", "NAME", "The profile that confines it.", ("plain", "hardened"), default="plain"),
    Option("--label", "NAME=VALUE", "Label it, for `pinfold ps` and `pinfold kill`.", many=True),
    Option("--result", "FILE", "Write the result to this file, as JSON."),
    Option("--result-fd", "N", "Write the result to this open file descriptor, as JSON."),
    Option("-q --quiet", None, "Print nothing about how it ended.", default=False),
    Option("-v --verbose", None, "Also print what it used and what was cleaned up.", default=False),
)


def name_of(option: Option) -> str:
    """What its value is stored as: `--cpu-timeout` as `cpu_timeout`."""
    return option.flags.split()[-1].partition("/")[0].lstrip("-").replace("-", "_")
