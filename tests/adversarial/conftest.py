"""The corpus, run through the command line as root and as a user with a delegated cgroup and no capabilities."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import pinfold
from pinfold.cgroup import places

CORPUS = Path(__file__).parent / "corpus"
ENTER = Path(__file__).parent / "enter.py"
NOBODY = 65534
# Who runs pinfold: root can also become others, anybody else only is who they are.
CALLERS = {"root": 0, "nobody": NOBODY} if os.geteuid() == 0 else {"user": os.geteuid()}
BY_SYSTEMD = os.environ.get("PINFOLD_BACKEND") == "systemd"
if BY_SYSTEMD:
    CALLERS.pop("nobody", None)  # has no manager
SETTLED = 0.2  # the corpus' bound: what is still there this long after the return was left behind
HANGS = 60.0
ROUNDS = int(os.environ.get("ROUNDS", "5"))
MANIFEST = tomllib.loads((CORPUS / "manifest.toml").read_text())
PROGRAMS = {program["name"]: program for program in MANIFEST["program"]}
TALLY: pytest.StashKey[Counter[tuple[str, str, str]]] = pytest.StashKey()


@dataclass
class Ending:
    """How the command line ended, and what was still there SETTLED seconds later."""

    code: int
    out: bytes
    err: bytes
    wall: float
    result: dict[str, Any] | None
    work_dir: list[str]
    processes: list[str] = field(default_factory=list)
    cgroups: list[str] = field(default_factory=list)
    nonblocking: list[int] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    peak_kib: int = 0


@dataclass(frozen=True)
class Caller:
    """Who runs pinfold: a uid, below a cgroup of the test session."""

    name: str
    uid: int
    cgroups: Path
    directory: Path

    @contextlib.contextmanager
    def home(self) -> Iterator[tuple[Path, Path]]:
        """A cgroup and a work directory for one trial, delegated to this uid; what is left in them is cleaned up."""
        token = secrets.token_hex(4)
        cgroup, work = self.cgroups / f"trial-{token}", self.directory / token
        cgroup.mkdir()
        work.mkdir()
        if self.uid != os.geteuid():
            os.chown(work, self.uid, self.uid)
            for file in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
                os.chown(cgroup / file, self.uid, self.uid)
        try:
            yield cgroup, work
        finally:
            _clean(cgroup)

    def enter(
        self, cgroup: Path, work: Path, argv: list[str | os.PathLike[str]], *, terminal: bool = False
    ) -> list[Any]:
        """The argv that becomes this caller and then executes `argv`."""
        show = [os.path.realpath(p) for p in (sys.base_prefix, sys.prefix, Path(pinfold.__file__).parents[1], CORPUS)]
        files = [str(argument.parent) for argument in argv if isinstance(argument, Path)]
        paths = dict.fromkeys([*show, *files, str(work)])
        shell = [sys.executable, "-I", "-S", ENTER, cgroup, str(self.uid), str(int(terminal)), *paths, "--"]
        return [*shell, *argv]

    def run(self, argv: list[Any], *options: str, stdin: bytes = b"", on_start: Callable[[int], None] = id,
            terminal: int | None = None) -> Ending:  # fmt: skip
        """`pinfold run OPTIONS --result FILE -- ARGV TOKEN`; `terminal`: a pty to have as stdin and stdout."""
        token = f"adv-token={secrets.token_hex(8)}"
        with self.home() as (cgroup, work):
            command = [_cli(), "run", "--result", work / ".result", *options, "--", *argv, token]
            streams = _Streams(stdin, terminal)
            start = time.monotonic()
            process = subprocess.Popen(
                self.enter(cgroup, work, command, terminal=terminal is not None),
                stdin=streams.given[0], stdout=streams.given[1], stderr=streams.given[2], cwd=work,
            )  # fmt: skip
            streams.begin()
            peak = _Peak(process.pid)
            on_start(process.pid)
            try:
                process.wait(HANGS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(HANGS)
            wall = time.monotonic() - start
            result = work / ".result"
            text = result.read_text() if result.exists() else ""
            processes, cgroups = _leftovers([cgroup, *_scope(text)], token)
            nonblocking = streams.nonblocking()
            unfinished = streams.finish()
            files = sorted(p.name for p in work.iterdir() if p.name != ".result")
            for pid in processes:
                with contextlib.suppress(OSError):
                    os.kill(int(pid.split()[0]), 9)
        return Ending(
            process.returncode, streams.out[1], streams.out[2], wall, json.loads(text) if text else None, files,
            processes, cgroups, nonblocking, unfinished, peak.stop(),
        )  # fmt: skip


class _Streams:
    """The caller's stdio: pipes of ours, of which we keep both ends, to see afterwards whether their flags changed."""

    def __init__(self, stdin: bytes, terminal: int | None) -> None:
        pipes = [os.pipe() for _ in range(3)]
        self.ours, self.kept = [pipes[0][1], pipes[1][0], pipes[2][0]], [pipes[0][0], pipes[1][1], pipes[2][1]]
        self.given = list(self.kept) if terminal is None else [terminal, terminal, self.kept[2]]
        self.out = [b"", b"", b""]
        self._threads = [
            threading.Thread(target=self._feed, args=(stdin,), name="stdin", daemon=True),
            threading.Thread(target=self._read, args=(1,), name="stdout", daemon=True),
            threading.Thread(target=self._read, args=(2,), name="stderr", daemon=True),
        ]

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def _feed(self, data: bytes) -> None:
        view = memoryview(data)
        with contextlib.suppress(BrokenPipeError):
            while view:
                view = view[os.write(self.ours[0], view) :]
        os.close(self.ours[0])

    def _read(self, number: int) -> None:
        parts = []
        while part := os.read(self.ours[number], 1 << 16):
            parts.append(part)
        self.out[number] = b"".join(parts)
        os.close(self.ours[number])

    def nonblocking(self) -> list[int]:
        return [number for number, fd in enumerate(self.kept) if not os.get_blocking(fd)]

    def finish(self) -> list[str]:
        for fd in self.kept:
            os.close(fd)
        for thread in self._threads:
            thread.join(2)
        return [thread.name for thread in self._threads if thread.is_alive()]


class _Peak:
    """The most memory a process had resident (VmHWM of proc_pid_status(5)), while it can be asked."""

    def __init__(self, pid: int) -> None:
        self._pid, self._over, self.kib = pid, threading.Event(), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            with contextlib.suppress(OSError, StopIteration):
                status = Path(f"/proc/{self._pid}/status").read_text()
                self.kib = max(self.kib, next(int(s.split()[1]) for s in status.splitlines() if s.startswith("VmHWM")))

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return self.kib


def _cli() -> Path:
    return Path(sys.executable).with_name("pinfold")


def with_token(token: str) -> list[str]:
    """The processes that have `token` among their arguments, as "pid argv"."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            argv = Path(f"/proc/{pid}/cmdline").read_bytes()
            if token.encode() in argv:
                found.append(f"{pid} {argv.replace(bytes(1), b' ').decode(errors='replace')}")
    return found


def _members(cgroup: Path) -> list[str]:
    found = []
    for directory in (cgroup, *_below(cgroup)):
        with contextlib.suppress(OSError):
            found += Path(directory, "cgroup.procs").read_text().split()
    return found


def _below(cgroup: Path) -> list[str]:
    return [root for root, _dirs, _files in os.walk(cgroup) if root != str(cgroup)]


def _scope(result: str) -> list[Path]:
    """The directory of the scope that systemd made for a run, if it did."""
    placement = json.loads(result)["placement"] if result else {}
    if not placement.get("unit"):
        return []
    own = places.own_place()
    top = own.directory.removesuffix(own.path.rstrip("/"))
    return [Path(top + placement["cgroup"].partition(placement["unit"])[0] + placement["unit"])]


def _leftovers(homes: list[Path], token: str) -> tuple[list[str], list[str]]:
    """Processes (by token and by membership) and cgroups; as soon as there are none, else after SETTLED seconds."""
    end = time.monotonic() + SETTLED
    while True:
        processes = with_token(token) + [pid for home in homes for pid in _members(home)]
        cgroups = [cgroup for home in homes for cgroup in _below(home)] + [str(p) for p in homes[1:] if p.exists()]
        if not (processes or cgroups) or time.monotonic() > end:
            return processes, cgroups
        os.sched_yield()


def _clean(cgroup: Path) -> None:
    end = time.monotonic() + 5
    while cgroup.exists() and time.monotonic() < end:
        with contextlib.suppress(OSError):
            (cgroup / "cgroup.kill").write_text("1")
            for pid in _members(cgroup):  # what one cgroup.kill misses
                with contextlib.suppress(OSError):
                    os.kill(int(pid), 9)
            for directory in sorted(_below(cgroup), key=len, reverse=True):
                os.rmdir(directory)
            cgroup.rmdir()


@pytest.fixture(params=CALLERS)
def caller(request, cgroup2, tmp_path):
    """Root as it is, and uid 65534 with a cgroup delegated to it and no capabilities; or the user that we are."""
    caller = Caller(request.param, CALLERS[request.param], cgroup2, tmp_path)
    if caller.uid != os.geteuid():
        with caller.home() as (cgroup, work):
            probe = subprocess.run(
                caller.enter(cgroup, work, [sys.executable, "-c", "import pinfold"]),
                cwd=work, capture_output=True, text=True, timeout=HANGS, check=False,
            )  # fmt: skip
        if probe.returncode:
            pytest.skip(
                f"needs {sys.executable} within reach of uid {NOBODY}: {probe.stderr.strip().splitlines()[-1:]}"
            )
    return caller


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """From a program's file to the argv that runs it; C programs are compiled on first use."""
    made: dict[str, list[Any]] = {}

    def argv(file: str) -> list[Any]:
        if file.endswith(".py"):
            return [sys.executable, "-I", CORPUS / file]
        if file.endswith(".sh"):
            return [CORPUS / file]
        if shutil.which("cc") is None:
            pytest.skip("needs cc")
        if file not in made:
            directory = tmp_path_factory.mktemp("compiled") / "within-reach"
            directory.mkdir()
            binary = directory / file.removesuffix(".c")
            subprocess.run(["cc", "-O1", "-pthread", "-o", binary, CORPUS / file], check=True, timeout=HANGS)
            made[file] = [binary]
        return made[file]

    return argv


@pytest.fixture
def tally(pytestconfig):
    """Count a round: `tally(program, caller, ok)`; the table is printed at the end."""
    counts = pytestconfig.stash.setdefault(TALLY, Counter())

    def count(program: str, caller: str, ok: bool) -> None:
        counts[program, caller, "ok" if ok else "failed"] += 1

    return count


def pytest_terminal_summary(terminalreporter, config):
    """The table: program, and how many rounds of each caller were as they should be."""
    counts = config.stash.get(TALLY, Counter())
    if counts:
        terminalreporter.section("adversaries: rounds as they should be / rounds")
    for program in dict.fromkeys(program for program, _caller, _ok in counts):
        cells = []
        for caller in CALLERS:
            ok, failed = counts[program, caller, "ok"], counts[program, caller, "failed"]
            cells.append(f"{caller} {ok}/{ok + failed}" if ok + failed else f"{caller} -")
        terminalreporter.write_line(f"{program:26} {'   '.join(cells)}")
