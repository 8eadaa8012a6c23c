"""INT, TERM and HUP to `pinfold run` at any moment: alone, in a pipeline, under timeout(1); and TSTP with CONT."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.chaos import wild
from tests.chaos.ground import PATIENCE, Figures, Ground, wait_until
from tests.chaos.sigkill import _path

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WAYS = ("direct", "pipeline", "timeout")
_AFTER = 0.03
_PINFOLD = [sys.executable, "-m", "pinfold", "run", "--timeout", "60", "--", *wild.COMMAND]


def signals(ground: Ground, count: int, figures: Figures, rng: random.Random):
    """So many moments for each signal, in the three ways by turns."""
    _started, ready = _path(ground, "cli")
    figures.counts["us to ready"] = round(ready * 1e6)
    for number in range(count):
        for ending in ENDING:
            _trial(ground, figures, ending, _WAYS[number % len(_WAYS)], rng.uniform(0, ready + _AFTER))
    for _ in range(max(1, count // 20)):
        _stop_and_go(ground, figures)


def _argv(way: str, ending: int, moment: float, status: int) -> list[str]:
    if way == "timeout":
        return ["timeout", "--preserve-status", "-s", str(int(ending)), f"{max(moment, 0.001):.6f}", *_PINFOLD]
    if way == "pipeline":
        # The subshell stays, to say how it ended.
        script = f'{{ trap : INT TERM HUP; "$@"; echo $? >&{status}; }} | cat'
        return ["sh", "-c", script, "sh", *_PINFOLD]
    return _PINFOLD


def _trial(ground: Ground, figures: Figures, ending: signal.Signals, way: str, moment: float):
    what = f"{ending.name} {way} after {moment * 1e3:.1f} ms"
    reads, writes = os.pipe()
    status, says = os.pipe()
    stderr = os.memfd_create("stderr")
    began = time.monotonic()
    process = subprocess.Popen(
        _argv(way, ending, moment, says),
        stdin=subprocess.DEVNULL,
        stdout=writes,
        stderr=stderr,
        pass_fds=(says,),
        start_new_session=True,
    )
    os.close(writes)
    os.close(says)
    try:
        sent = began + moment
        if way != "timeout":
            while (left := sent - time.monotonic()) > 0:
                time.sleep(left)
            with contextlib.suppress(ProcessLookupError):
                (os.kill if way == "direct" else os.killpg)(process.pid, ending)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            figures.fail(f"{what}: it does not end")
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        if way == "pipeline":
            reported = os.read(status, 100)
            code = int(reported) if reported else -ending  # the shell was too early to say
        figures.took("signal to exit", time.monotonic() - sent)
        figures.tried += 1
        figures.counts[f"status {code}"] += 1
        if ground.settle(figures, what, time.monotonic()) and not wild.Ear(reads).ended(0.5):
            figures.fail(f"{what}: the command's pipe is still open")
        said = os.pread(stderr, 1 << 16, 0).decode(errors="replace")
        if not _is_due(code, ending, way, said):
            figures.fail(f"{what}: status {code}: {said[-600:]}")
    finally:
        os.close(reads)
        os.close(status)
        os.close(stderr)


def _is_due(code: int, ending: int, way: str, said: str) -> bool:
    if code in (-ending, 128 + ending):
        return True
    if way == "pipeline" and code == 128 + signal.SIGPIPE:  # the signal was for the reader of the pipe too
        return True
    # The interpreter, before it has come to any line of ours.
    return ending == signal.SIGINT and code == 1 and "KeyboardInterrupt" in said and "pinfold" not in said


def _stop_and_go(ground: Ground, figures: Figures):
    null = subprocess.DEVNULL
    with subprocess.Popen(_PINFOLD, stdin=null, stdout=subprocess.PIPE, stderr=null) as process:
        try:
            if not wild.Ear(process.stdout.fileno()).hears(b"ready", PATIENCE):
                raise TimeoutError("the command never said ready")
            cgroup = max(ground.cgroups(), key=len)
            for number, state, frozen in ((signal.SIGTSTP, "T", "frozen 1"), (signal.SIGCONT, "S", "frozen 0")):
                process.send_signal(number)
                wait_until(lambda state=state: _state(process.pid) == state, f"state {state}")
                wait_until(lambda frozen=frozen: frozen in Path(cgroup, "cgroup.events").read_text(), frozen)
            figures.counts["stopped and gone on"] += 1
        except TimeoutError as error:
            figures.fail(f"TSTP and CONT: {error}")
        process.terminate()
        if (code := process.wait(PATIENCE)) != 128 + signal.SIGTERM:
            figures.fail(f"TSTP and CONT, then TERM: status {code}")
    figures.tried += 1
    ground.settle(figures, "TSTP and CONT", time.monotonic())


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
