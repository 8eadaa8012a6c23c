"""The cgroup that the parts of the bench which are not pinfold work in, and other things of the host."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator

from bench.words import Missing

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_PATIENCE = 10.0  # seconds for a killed cgroup to become empty and go


def mount() -> str:
    """Where cgroup2 is mounted."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            before, after = line.split(" - ", 1)
            if after.split()[0] == "cgroup2":
                return before.split()[4]
    raise Missing("cgroup2 is mounted nowhere")


def has_v1() -> bool:
    """Whether a hierarchy of cgroup v1 is mounted."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return any(line.split(" - ", 1)[1].split()[0] == "cgroup" for line in file)


def own() -> str:
    """The directory of the cgroup that we are in."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        path = next(line[3:].strip() for line in file if line.startswith("0::"))
    return os.path.normpath(mount() + path)


@contextlib.contextmanager
def cgroup() -> Iterator[str]:
    """A new cgroup below our own; killed and removed with all that is in it."""
    directory = f"{own()}/pinfold-bench-{os.getpid()}-{time.monotonic_ns()}"
    try:
        os.mkdir(directory)
    except OSError as error:
        raise Missing(f"no cgroup can be made here: {error}") from error
    try:
        yield directory
    finally:
        _remove(directory)


def _remove(directory: str) -> None:
    end = time.monotonic() + _PATIENCE
    with open(f"{directory}/cgroup.kill", "w", encoding="ascii") as file:
        file.write("1")
    while True:
        try:
            for path, _directories, _files in os.walk(directory, topdown=False):
                os.rmdir(path)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.001)
        else:
            return


def below(directory: str) -> int:
    """How many cgroups there are below a directory."""
    return sum(len(directories) for _path, directories, _files in os.walk(directory))


def need_descriptors(count: int) -> None:
    """Raise our soft limit of descriptors to the hard one, which must allow for `count`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise Missing(f"the hard limit of open files is {hard}, and {count} are needed")
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def environment() -> dict[str, str]:
    """For fresh interpreters: ours without what would change how they start, such as PYTHONDONTWRITEBYTECODE."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def program(name: str) -> str | None:
    """A program beside our interpreter, or on PATH."""
    for directory in (os.path.dirname(sys.executable), *os.environ.get("PATH", os.defpath).split(os.pathsep)):
        path = os.path.join(directory, name)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    return None


def waited() -> float:
    """Seconds since boot in which some process waited for a CPU; nan if the kernel does not tell."""
    try:
        with open("/proc/pressure/cpu", encoding="ascii") as file:
            return int(file.readline().rsplit("=", 1)[1]) / 1e6
    except (OSError, ValueError):
        return float("nan")
