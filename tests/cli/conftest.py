"""The command line as its users meet it: a process of its own, its bytes, its status, its signals, its terminal."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import termios
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pinfold.cgroup import places
from pinfold.lease import find, sweep

CLI = Path(sys.executable).with_name("pinfold")
SESSION = Path(__file__).parent / "session.py"
HANGS = 30.0


@dataclass
class Ended:
    """How the command line ended; `result` is what it wrote to `--result`."""

    code: int
    out: bytes
    err: str
    wall: float
    result: dict[str, Any] | None

    @property
    def lines(self) -> list[str]:
        """Our lines on stderr, without their prefix."""
        return [line.removeprefix("pinfold: ") for line in self.err.splitlines() if line.startswith("pinfold: ")]


@pytest.fixture(autouse=True)
def _buffered(monkeypatch):
    """stdio as users have it: what cannot be written stays in a buffer until the interpreter's exit."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def python(code: str, *arguments: Any) -> list[Any]:
    """The argv of a small Python program."""
    return [sys.executable, "-I", "-S", "-c", textwrap.dedent(code), *arguments]


@pytest.fixture(name="python")
def _python():
    return python


@pytest.fixture
def pinfold(cgroup2, tmp_path):
    """`pinfold(ARGUMENT…)` runs `pinfold run --result FILE ARGUMENT…` to its end."""
    file = tmp_path / "result.json"

    def run(*arguments: Any, stdin: bytes = b"", result: bool = True, **options: Any) -> Ended:
        file.unlink(missing_ok=True)
        asked = ["--result", file] if result else []
        start = time.monotonic()
        ended = subprocess.run(
            [CLI, "run", *asked, *arguments], input=stdin, capture_output=True, timeout=HANGS, check=False, **options
        )
        wall = time.monotonic() - start
        err = ended.stderr.decode(errors="surrogateescape")
        assert "Traceback" not in err, err
        text = file.read_text() if file.exists() else ""
        return Ended(ended.returncode, ended.stdout, err, wall, json.loads(text) if text else None)

    return run


@pytest.fixture
def start(cgroup2, tmp_path):
    """`start(ARGUMENT…)` starts `pinfold run ARGUMENT…` and returns its Popen; it is stopped at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: Any, before: tuple[Any, ...] = (), **options: Any) -> subprocess.Popen[bytes]:
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen([*before, CLI, "run", *arguments], **options)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.terminate()
            try:
                process.wait(HANGS)
            except subprocess.TimeoutExpired:
                process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait(HANGS)


@pytest.fixture
def line_of():
    """The next line of a process' stdout, with a deadline."""

    def read(process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], HANGS)[0], "no line came"
        return process.stdout.readline()

    return read


class Terminal:
    """A pty with a session on it, whose leader plays the shell (session.py); we type and see."""

    def __init__(self) -> None:
        self._master, self.tty = os.openpty()
        self._said, said = os.pipe()
        control, self._control = os.pipe()
        self._given = (said, control)
        self._leader: subprocess.Popen[bytes] | None = None
        self.seen, self._heard, self.job = b"", b"", 0

    def start(self, *arguments: Any, before: tuple[Any, ...] = ()) -> None:
        """Run `BEFORE… pinfold run ARGUMENT…` as the shell's foreground job."""
        said, control = self._given
        self._leader = subprocess.Popen(
            [sys.executable, "-I", "-S", SESSION, str(said), str(control), *before, CLI, "run", *arguments],
            stdin=self.tty, stdout=self.tty, stderr=self.tty, pass_fds=self._given,
        )  # fmt: skip
        self.job = int(self.told().removeprefix("job "))

    def started(self) -> bool:
        """Whether the job is in the foreground: keys go to it from now on."""
        return os.tcgetpgrp(self._master) == self.job

    def until(self, text: bytes) -> bytes:
        """What was shown up to and with `text`, since the last time."""
        self.seen = self._more(self._master, self.seen, text)
        shown, found, self.seen = self.seen.partition(text)
        return shown + found

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def told(self) -> str:
        """What the shell says of its job next: `stopped SIGNAL`, `ended CODE`."""
        self._heard = self._more(self._said, self._heard, b"\n")
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def go_on(self) -> None:
        """`fg`."""
        os.write(self._control, b"\n")
        assert self.told() == "continued"

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.tty)

    @staticmethod
    def _more(fd: int, have: bytes, text: bytes) -> bytes:
        end = time.monotonic() + HANGS
        while text not in have:
            assert select.select([fd], [], [], max(0.0, end - time.monotonic()))[0], f"never came: {text!r}; {have!r}"
            have += os.read(fd, 1 << 16)
        return have

    def hang_up(self) -> None:
        """As when the window is closed: the session leader is gone, and the kernel tells the foreground job."""
        assert self._leader is not None
        self._leader.kill()
        self._leader.wait(HANGS)

    def _stop_job(self) -> None:
        """A job that survived the hangup is told to end, twice; it is an orphan, so its end is seen in /proc."""
        end = time.monotonic() + HANGS
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < end:
                os.kill(self.job, signal.SIGTERM)
                select.select([], [], [], 0.2)

    def close(self) -> None:
        if self._leader is not None:
            self.hang_up()
            self._stop_job()
        for fd in (self._master, self.tty, self._said, self._control, *self._given):
            os.close(fd)


@pytest.fixture
def terminal(cgroup2):
    """A terminal to run pinfold on."""
    terminal = Terminal()
    yield terminal
    terminal.close()


EXECUTORS = Path(__file__).parent / "executors.py"


def _path_of(directory: Path) -> str:
    own = places.own_place()
    return next(place.path for place in (own, *places.ancestors(own)) if place.directory == str(directory))


class Executor:
    """Another process that runs commands by pinfold, each of them ready when we have it."""

    def __init__(self, process: subprocess.Popen[bytes], said: dict[str, Any]) -> None:
        self.process = process
        self.fold, self.guard, self.ids, self.pids = said["fold"], said["guard"], said["ids"], said["pids"]
        self.place = places.place_at(self.fold)
        self.name = os.path.basename(self.fold)

    def outcome(self, at: int = 0) -> list[Any]:
        """The outcome of a run, whether it was emptied and removed; it has to end by itself."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{at}\n".encode())
        self.process.stdin.flush()
        return json.loads(_line_of(self.process))

    def die(self, *, guard_too: bool = True) -> None:
        """As by the OOM killer, which takes the guard as well."""
        self.process.send_signal(signal.SIGSTOP)
        if guard_too:
            os.kill(self.guard, signal.SIGKILL)
        self.process.kill()
        self.process.wait(HANGS)

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()  # it closes its fold then
        try:
            self.process.wait(HANGS)
        finally:
            self.process.kill()
            self.process.stdout.close()


def _line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert select.select([process.stdout], [], [], HANGS)[0], "no line came"
    return process.stdout.readline()


@pytest.fixture
def executor(cgroup2):
    """`executor([(ARGV, LABELS)…], labels={}, nobody=DIRECTORY)`: started in a process of its own.

    What it is told to run has to write a line once it is ready.
    """
    started: list[Executor] = []

    def start(runs: list[Any], labels: dict[str, str] | None = None, nobody: Any = "") -> Executor:
        argv = [sys.executable, EXECUTORS, "execute", nobody, _path_of(cgroup2), json.dumps([labels or {}, runs])]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
        line = _line_of(process)
        if not line:
            process.communicate()
            pytest.fail("the executor did not start")
        started.append(Executor(process, json.loads(line)))
        return started[-1]

    yield start
    for each in started:
        each.close()
        list(sweep.sweep(places.place_at(_path_of(cgroup2))))  # what a test has left of a dead one


@pytest.fixture
def ask(cgroup2):
    """`ask("ps", "--json")`: the command line, to which the tests' own cgroup is all there is."""

    def ask(*arguments: Any, nobody: Any = "", stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, EXECUTORS, "ask", nobody, _path_of(cgroup2), *arguments]
        ended = subprocess.run(
            argv, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=HANGS, check=False, cwd="/"
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended

    return ask


@pytest.fixture
def ask_here(cgroup2, monkeypatch, capsys):
    """As `ask`, in this process: the status, stdout and stderr."""
    from pinfold.cli.main import main

    place = places.place_at(_path_of(cgroup2))
    monkeypatch.setattr(find, "top", lambda: place)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # which main replaces

    def ask(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return (ended.value.code, *capsys.readouterr())

    return ask
