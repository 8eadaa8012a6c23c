"""Nothing that a command controls is waited for: not its start, not its names; and no run waits for another."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import pinfold
from pinfold.cgroup.group import Cgroup
from pinfold.runs import loop, strays, supervise
from pinfold.spawn import start as spawn

HOLDERS = Path(__file__).with_name("holders.py")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
LIMIT = 0.4


@pytest.fixture
def hung(tmp_path):
    """A directory of a file system that answers nothing: whoever looks something up there waits until it is killed."""
    argv = [sys.executable, "-I", "-S", HOLDERS, "silent", tmp_path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "ready\n"
            yield f"/proc/{holder.pid}/root{tmp_path}"
        finally:
            holder.kill()
            holder.wait(10)


@pytest.fixture(params=["clone", "vfork"])
def way(request, monkeypatch):
    """How a child is made; by vfork where its cgroup has a memory controller."""
    if request.param == "vfork":
        start = spawn.start
        monkeypatch.setattr(spawn, "start", lambda *args, vfork: start(*args, vfork=True))
    return request.param


# ---- a start that hangs --------------------------------------------------------------------------------------


@root_only
@pytest.mark.parametrize("where", ["program", "directory"])
def test_a_start_that_hangs_is_ended_at_the_timeout(cgroup2, hung, way, where, slowness):
    argv, options = ([f"{hung}/program"], {}) if where == "program" else (["true"], {"cwd": f"{hung}/directory"})
    began = time.monotonic()
    result = pinfold.run(argv, timeout=LIMIT, **options)
    assert LIMIT <= time.monotonic() - began < LIMIT + 2 * slowness
    assert (result.outcome, result.returncode, result.receipt.emptied) == ("timed_out", -9, True)


@root_only
def test_a_hanging_start_is_ended_by_its_fold_while_the_caller_waits_for_it(cgroup2, hung, way, slowness):
    began = time.monotonic()
    with pinfold.start([f"{hung}/program"], stdout=pinfold.PIPE, timeout=LIMIT) as run:
        assert run.wait(5).outcome == "timed_out"
        assert run.stdout.read() == b""
    assert time.monotonic() - began < LIMIT + 2 * slowness


@root_only
def test_a_hanging_start_of_another_user_delays_no_other(cgroup2, hung, way):
    """Each changes whether our memory may be dumped, and the last one puts it back."""
    results = []

    def hang() -> None:
        results.append(pinfold.run(["true"], cwd=f"{hung}/directory", user=65534, group=65534, timeout=30))

    with pinfold.Fold() as fold:
        thread = threading.Thread(target=hang)
        thread.start()
        try:
            others = [fold.run(["true"], user=65534, group=65534, timeout=20) for _ in range(5)]
            started = [fold.start(["true"], user=65534, group=65534, timeout=20).wait(20) for _ in range(5)]
        finally:
            hanging = thread.is_alive()
            pinfold.default_fold().close()  # which ends it
            thread.join(20)
    assert hanging, "the control: it hung all the time"
    assert [result.outcome for result in (*others, *started)] == ["exited"] * 10
    assert [result.outcome for result in results] == ["canceled"]


@root_only
def test_the_command_line_hears_a_signal_while_the_start_hangs(cgroup2, hung, wait_until, slowness):
    pinfold_run = [Path(sys.executable).with_name("pinfold"), "run", "--backend", "cgroupfs", "--grace", "10ms"]
    argv = [*pinfold_run, "--", f"{hung}/program"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:

        def waiting() -> bool:
            runs = [Path(d) for d, _, _ in os.walk(cgroup2) if Path(d).name.startswith("run-")]
            return any(run.joinpath("cgroup.procs").read_text() for run in runs)

        wait_until(waiting, "the command on its way to its exec")
        began = time.monotonic()
        process.terminate()
        process.communicate(timeout=20)
        assert time.monotonic() - began < 2 * slowness
    assert process.returncode == 143


# ---- names that do not come ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["run", "start"])
def test_a_command_line_that_blocks_its_reader_delays_no_kill(cgroup2, monkeypatch, how, slowness):
    """As a process does whose memory is locked by a file system that does not answer."""
    killed = threading.Event()

    def block(_pid: int) -> None:
        killed.wait(20)

    monkeypatch.setattr(strays, "wait_for_argv", block)
    argv = ["sh", "-c", "setsid sleep 60 & wait"]
    began = time.monotonic()
    try:
        if how == "run":
            result = pinfold.run(argv, timeout=LIMIT)
        else:
            with pinfold.start(argv, timeout=LIMIT) as run:
                result = run.wait(10)
        took = time.monotonic() - began
    finally:
        killed.set()  # as the kill frees the reader
    assert took < LIMIT + 1 * slowness
    assert (result.outcome, result.receipt.strays) == ("timed_out", 1)
    (stray,) = result.receipt.stray_processes
    assert stray.comm in ("sleep", "setsid", "sh")
    assert stray.argv is None
    for thread in threading.enumerate():
        if thread.name == "pinfold-aside":
            thread.join(10)


def test_with_a_command_line_that_comes_it_is_told(cgroup2):
    """The control of the one above."""
    receipt = pinfold.run(["sh", "-c", "exec 0<&-; setsid sleep 60 & wait"], timeout=LIMIT).receipt
    assert [stray.argv for stray in receipt.stray_processes] == [["sleep", "60"]]


# ---- one run and the others ----------------------------------------------------------------------------------


def test_in_the_thread_of_a_hundred_runs_nothing_waits(cgroup2, monkeypatch, slowness):
    """Strays to be named, killed and removed, and a hundred others: all that is done for a run is done in slices."""
    turns: list[tuple[float, str]] = []
    real = loop.SharedLoop._call

    def measured(self, handler, owner):
        before, killing[0] = time.thread_time(), 0.0
        real(self, handler, owner)
        turns.append((time.thread_time() - before - killing[0], getattr(handler, "__name__", "?")))

    def measured_kill(self):
        before = time.thread_time()
        kill(self)
        killing[0] = time.thread_time() - before

    def forbidden(*_arguments):
        if threading.current_thread().name == "pinfold":
            raise AssertionError("the thread that drives the runs must not sleep")
        return sleep(*_arguments)

    sleep, kill, killing = time.sleep, Cgroup.kill, [0.0]
    monkeypatch.setattr(loop.SharedLoop, "_call", measured)
    monkeypatch.setattr(Cgroup, "kill", measured_kill)
    monkeypatch.setattr(supervise.time, "sleep", forbidden)
    code = (
        "import os,sys,time\n"
        "here = [l for l in open('/proc/self/mountinfo') if ' - cgroup2 ' in l][0].split()[4]\n"
        "own = here + open('/proc/self/cgroup').read().split('0::')[1].strip()\n"
        "for i in range(1500): os.mkdir(f'{own}/{i}')\n"
        "for i in range(300):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid(); time.sleep(600)\n"
        "print('ready', flush=True); time.sleep(600)\n"
    )
    with pinfold.Fold() as fold, contextlib.ExitStack() as runs:
        others = [runs.enter_context(fold.start(["sleep", "60"], timeout=60)) for _ in range(100)]
        large = fold.start([sys.executable, "-I", "-S", "-c", code], stdout=pinfold.PIPE, timeout=60)
        with large:
            assert large.stdout.readline() == b"ready\n"
            turns.clear()
            large.kill()
            receipt = large.wait(30).receipt
        busy = sorted(turns, reverse=True)[:3]
        assert all(other.poll() is None for other in others)
        for other in others:
            other.kill()
    assert (receipt.strays >= 300, receipt.emptied, receipt.removed) == (True, True, True)
    # In CPU time, as the machine may do something else meanwhile; without the kernel's own for cgroup.kill.
    assert busy[0][0] < 0.015 * slowness, busy


def test_a_started_run_holds_at_most_five_descriptors_and_no_thread(cgroup2):
    with pinfold.Fold() as fold, contextlib.ExitStack() as runs:
        first = runs.enter_context(fold.start(["sleep", "60"]))  # with it the loop begins
        fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        started = [runs.enter_context(fold.start(["sleep", "60"], timeout=60, grace=1)) for _ in range(20)]
        assert len(os.listdir("/proc/self/fd")) - fds <= 5 * len(started)
        assert threading.active_count() == threads
        for run in (first, *started):
            run.kill()
        assert all(run.wait(20).receipt.emptied for run in started)
        fold.run(["true"]).receipt  # noqa: B018  # which clears what was made ahead, and left
        assert len(os.listdir("/proc/self/fd")) <= fds + 1


def test_a_loop_that_fails_ends_its_runs_and_the_next_start_has_another(cgroup2, monkeypatch):
    with pinfold.Fold() as fold:
        run = fold.start(["sleep", "60"], timeout=600)
        assert run.returncode is None, "the control: it runs"

        def refuse(_self, _seconds):
            raise OSError(5, "refused")

        with monkeypatch.context() as patch:
            patch.setattr(loop.SharedLoop, "_wait", refuse)
            run.pause()  # wakes the loop
            with pytest.raises(OSError, match="refused"):
                run.wait(10)
        assert not Path(f"/proc/{run.pid}").exists()
        assert fold.start(["true"]).wait(10).returncode == 0
