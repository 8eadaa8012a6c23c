"""The options of `pinfold run`: one table for its parser, its help, and the light parser of front.py."""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class Option(NamedTuple):
    """One option, or a switch and its opposite (`--x/--no-x`)."""

    flags: str  # the last one gives the name
    value: str | None  # what its value is called in the help; None: it is a switch
    help: str
    choices: tuple[str, ...] | None = None  # the only values
    many: bool = False  # may be said again
    default: Any = None


OPTIONS: Final = (
    Option("-t --timeout", "TIME", "End it after this long: 5, 500ms, '1min 30s'."),
    Option("-k --grace", "TIME", "At a limit send the signal first; kill this much later."),
    Option("-s --signal", "SIG", "The signal; TERM by default.", default="TERM"),
    Option("--idle-timeout", "TIME", "End it when it has written nothing for this long."),
    Option("--cpu-timeout", "TIME", "End it when its processes have used this much CPU time."),
    Option("--memory", "SIZE", "Most memory: 64M, 50%. At the limit all of it is killed."),
    Option("--memory-high", "SIZE", "Slow it down above this much memory."),
    Option("--memory-low", "SIZE", "Take none away from it below this much memory."),
    Option("--swap", "SIZE", "Most swap; 0 for none."),
    Option("--oom-group/--no-oom-group", None, "Kill all of it at its memory limit, or only some."),
    Option("--stall-timeout", "TIME", "End it when it was stuck at its memory limit for this long."),
    Option("--pids", "N", "Most processes and threads."),
    Option("--cpus", "N", "Most CPUs' worth of time, such as 1.5."),
    Option("--cpu-weight", "N", "Its share of a busy CPU, 1 to 10000; 100 is usual."),
    Option("--cpuset-cpus", "LIST", "Only these CPUs, such as 0-3,8."),
    Option("--cpuset-mems", "LIST", "Only memory of these NUMA nodes."),
    Option("--io-max", "'DEV KEY=N…'", "Most IO: rbps, wbps, riops, wiops of a device.", many=True),
    Option("--io-weight", "N", "Its share of a busy device, 1 to 10000; 100 is usual."),
    Option("--hugetlb", "PAGE=SIZE", "Most huge pages, such as 2MB=64M.", many=True),
    Option("--rlimit", "NAME=N[:N]", "nofile nproc fsize core stack as, each process.", many=True),
    Option("-p --property", "NAME=VALUE", "A limit by systemd's name.", many=True),
    Option("--best-effort", None, "Run without the limits that this host cannot set.", default=False),
    Option("-E --env", "NAME[=VALUE]", "Set, or pass on, a variable.", many=True),
    Option("--clear-env", None, "Start from an empty environment.", default=False),
    Option("-C --chdir", "DIR", "Run it there."),
    Option("--user", "USER", "Run it as this user, with its groups (root only)."),
    Option("--strays", "kill|wait", "What its descendants get.", ("kill", "wait"), default="kill"),
    Option("--output-limit", "SIZE", "End it when it has written more than this to a stream."),
    Option("--backend", "WHO", "Who makes cgroups.", ("auto", "cgroupfs", "systemd"), default="auto"),
    Option("--unit", "NAME", "A systemd scope of its own by this name, its limits as properties."),
    Option("--slice", "NAME", "The slice of its scope; pinfold.slice by default."),
    Option("--profile", "NAME", "How it is confined.", ("plain", "hardened"), default="plain"),
    Option("--label", "NAME=VALUE", "A word for `pinfold ps` and `kill`.", many=True),
    Option("--result", "FILE", "Write the Result there, as JSON."),
    Option("--result-fd", "N", "Write the Result to this open descriptor."),
    Option("-q --quiet", None, "Say nothing about how it ended.", default=False),
    Option("-v --verbose", None, "Say also what it used and what was cleaned up.", default=False),
)


def name_of(option: Option) -> str:
    """What its value is stored as: `--cpu-timeout` as `cpu_timeout`."""
    return option.flags.split()[-1].partition("/")[0].lstrip("-").replace("-", "_")
