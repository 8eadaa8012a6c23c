"""Where a case plays: a cgroup of its own, in which everything that its executors start can be found and counted."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from tests import conftest

from pinfold.cgroup import places
from pinfold.lease import find

SLOWNESS = conftest.SLOWNESS
BOUND = 0.2 * SLOWNESS  # seconds from a kill to nothing left
PATIENCE = 10.0 * SLOWNESS  # seconds until we stop waiting for that
LOOK = 0.0005
MARKER = "PINFOLD_CHAOS"  # in the environment of every process of ours but the guards


class Figures:
    """What a case has found: how many it tried, what failed, how long things took."""

    def __init__(self, name: str, allowed: float = BOUND):
        self.name, self.allowed = name, allowed
        self.tried = 0
        self.failures: list[str] = []
        self.times: dict[str, list[float]] = defaultdict(list)
        self.counts: Counter[str] = Counter()

    def fail(self, what: str):
        self.failures.append(what)

    def took(self, what: str, seconds: float):
        self.times[what].append(seconds)

    def __str__(self):
        spans = [
            f"{what} median {statistics.median(times) * 1e3:.1f} ms, worst {max(times) * 1e3:.1f}"
            for what, times in self.times.items()
        ]
        counts = [f"{number} {what}" for what, number in sorted(self.counts.items())]
        words = [f"{self.name}: {self.tried} tried", f"{len(self.failures)} failed", *spans, *counts]
        return "; ".join(words)


class Ground:
    """A cgroup that holds us (in a seat, where it has controllers to give) and all that comes of our executors."""

    def __init__(self, place: places.Place):
        name = f"pinfold-chaos-{os.getpid()}"
        self._before = places.own_place().directory
        self.home = Path(place.directory, name)
        self.home.mkdir()
        self.place = places.Place(str(self.home), f"{place.path.rstrip('/')}/{name}", place.hierarchy)
        self._seat = conftest._seat(place, self.home)
        (self._seat / "cgroup.procs").write_text("0")
        self._temporary = tempfile.TemporaryDirectory(prefix=f"{name}-")
        self.temporary = Path(self._temporary.name)
        self.marker = f"{os.getpid()}-{time.monotonic_ns()}"
        os.environ[MARKER] = self.marker
        os.environ["TMPDIR"] = str(self.temporary)
        os.environ["PINFOLD_BACKEND"] = "cgroupfs"
        self.ours = {os.getpid()}  # our own processes here, which are no executors

    def close(self):
        """Go back to where we came from, and take the ground away with whatever a failure has left on it."""
        (Path(self._before) / "cgroup.procs").write_text("0")
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for directory in self.cgroups():
            with contextlib.suppress(OSError):
                Path(directory, "cgroup.kill").write_text("1")
        self._temporary.cleanup()
        end = time.monotonic() + PATIENCE
        while True:
            try:
                for directory in sorted(self.cgroups(), reverse=True):
                    os.rmdir(directory)
                if self._seat != self.home:
                    self._seat.rmdir()
                self.home.rmdir()
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(LOOK)
            else:
                return

    def cgroups(self) -> list[str]:
        """The cgroups below, but for our seat."""
        found: list[str] = []
        waiting = [str(self.home)]
        while waiting:
            with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) and entry.path != str(self._seat):
                        found.append(entry.path)
                        waiting.append(entry.path)
        return found

    def beside(self) -> set[int]:
        """The processes in our own cgroup that are not ours: executors, guards, what is on its way to exec."""
        return _processes(str(self._seat)) - self.ours

    def inside(self) -> set[int]:
        """The processes in the cgroups below: those of commands."""
        found: set[int] = set()
        for directory in self.cgroups():
            found |= _processes(directory)
        return found

    def processes(self) -> set[int]:
        """All of these."""
        return self.beside() | self.inside()

    def marked(self) -> set[int]:
        """The processes anywhere that have our marker in their environment, and are not ours."""
        wanted = f"{MARKER}={self.marker}".encode()
        found = set()
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in self.ours:
                with contextlib.suppress(OSError):
                    if wanted in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                        found.add(int(name))
        return found

    def guards(self) -> set[int]:
        """The guards: those beside us whose argv says so."""
        return {pid for pid in self.beside() if b"pinfold-guard" in _argv(pid)}

    def settle(self, figures: Figures, what: str, began: float) -> bool:
        """Wait until nothing is left of what was killed at `began`, and note how long that took."""
        empty = None
        while True:
            cgroups = self.cgroups()
            inside = self.inside() if cgroups else set()
            now = time.monotonic()
            if empty is None and not inside:
                empty = now - began
                figures.took("to empty", empty)
            if not cgroups and not self.beside():
                break
            if now - began > PATIENCE:
                left = [f"{pid} {_argv(pid)[:3]}" for pid in sorted(self.processes())]
                figures.fail(f"{what}: left after {now - began:.1f} s: {cgroups} {left}")
                self._clear()
                return False
            time.sleep(LOOK)
        gone = time.monotonic() - began
        figures.took("to gone", gone)
        if gone > BOUND:
            figures.counts[f"later than {BOUND * 1e3:.0f} ms"] += 1
        if gone > figures.allowed:
            figures.fail(f"{what}: gone only after {gone * 1e3:.0f} ms")
        if strangers := self.marked():
            figures.fail(f"{what}: alive elsewhere: {[(pid, _argv(pid)) for pid in strangers]}")
        if files := list(self.temporary.iterdir()):
            figures.fail(f"{what}: temporary files: {files}")
            for file in files:
                file.unlink()
        return gone <= figures.allowed

    def _clear(self):
        """Behind a failure, so that the next trial is not its victim."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and (self.processes() or self.cgroups()):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for directory in sorted(self.cgroups(), reverse=True):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            time.sleep(LOOK)


def _processes(directory: str) -> set[int]:
    try:
        with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
            return {int(line) for line in file}
    except OSError:
        return set()


def _argv(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


@contextlib.contextmanager
def ground(below: str | None):
    """A ground in a cgroup that others have made for us, or where we may make one."""
    made = Ground(places.delegated_place() if below is None else _given(below))
    try:
        yield made
    finally:
        made.close()


def _given(below: str) -> places.Place:
    top = find.top()
    path = "/" + os.path.relpath(below, top.directory)
    return places.Place(below, path if top.path == "/" else top.path + path, top.hierarchy)


def wait_until(condition, what: str, deadline: float = PATIENCE):
    """Wait for a condition; TimeoutError if it does not come."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"never came within {deadline} s: {what}")
        time.sleep(LOOK)
    return value


class Child:
    """A process of ours: a fork of this one, which has everything imported, that calls a function and exits with 0.

    What it raises is its exit status 1 and a traceback on stderr.
    """

    def __init__(self, function, *arguments):
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _become(function, *arguments)
        self.pidfd = os.pidfd_open(self.pid)

    def kill(self, number: int = signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def ended(self, within: float) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(max(0, within * 1e3)))

    def wait(self) -> int:
        """Its return code, as subprocess has it."""
        _pid, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        return os.waitstatus_to_exitcode(status)


def _become(function, *arguments):
    import traceback

    status = 1
    try:
        function(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
