"""The kernel tests' tools: bad programs to run, host programs to run them from, and a sweep behind failed tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pinfold.cgroup import places

HERE = Path(__file__).parent
VILLAINS = HERE.parent / "villains.py"
HOSTS = HERE / "hosts.py"
C_VILLAINS = {
    # The thread-group leader leaves, a second thread stays: what `cgroup.kill` misses on 6.18.
    "leader_exited": r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
static void *stay(void *arg) { sleep(60); return arg; }
int main(int argc, char **argv)
{
	pthread_t thread;
	for (int i = argc > 1 ? atoi(argv[1]) : 0; i > 0; i--)
		if (fork() == 0)
			break;
	if (pthread_create(&thread, NULL, stay, NULL))
		return 1;
	puts("ready");
	fflush(stdout);
	syscall(SYS_exit, 0);
	return 0;
}
""",
    # Parents that wait in vfork(2), where no handler of theirs can run.
    "vfork_parents": r"""
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
static void wait_in_vfork(void)
{
	sigset_t all;
	if (vfork() == 0) {
		sigfillset(&all);
		sigprocmask(SIG_SETMASK, &all, NULL);
		sleep(60);
		_exit(0);
	}
	_exit(0);
}
int main(void)
{
	puts("ready");
	fflush(stdout);
	for (int i = 0; i < 4; i++)
		if (fork() == 0)
			wait_in_vfork();
	wait_in_vfork();
}
""",
}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The path of a compiled villain; skips where there is no C compiler."""
    directory = tmp_path_factory.mktemp("villains")
    directory.chmod(0o755)
    cc = shutil.which("cc")

    def compile_(name: str) -> str:
        program = directory / name
        if not program.exists():
            if cc is None:
                pytest.skip("needs a C compiler (cc)")
            source = directory / f"{name}.c"
            source.write_text(C_VILLAINS[name])
            subprocess.run([cc, "-O1", "-pthread", "-o", program, source], check=True, timeout=60)
        return str(program)

    return compile_


@pytest.fixture
def villain():
    """The argv of a bad program of tests/villains.py."""

    def argv(name: str, *arguments: object) -> list[str]:
        return [sys.executable, "-I", "-S", str(VILLAINS), name, *map(str, arguments)]

    return argv


@pytest.fixture
def host(cgroup2, tmp_path):
    """Run a program of hosts.py in a process of its own and return what it found out."""

    def run(name: str, *arguments: object, deadline: float = 40, **options):
        report = tmp_path / f"report-{name}"
        argv = [sys.executable, "-W", "error", str(HOSTS), str(report), name, *map(str, arguments)]
        done = subprocess.run(argv, capture_output=True, timeout=deadline, check=False, **options)
        if done.returncode or not report.exists():
            pytest.fail(f"host {name} ended with {done.returncode}:\n{done.stderr.decode(errors='replace')}")
        return json.loads(report.read_text())

    return run


@pytest.fixture
def end_of():
    """Kill what a negative control left alive, by pid (checked against pid reuse), and wait for its end."""

    def end(*processes: psutil.Process) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        deadline = time.monotonic() + 5
        while left := [process for process in processes if _alive(process.pid)]:
            assert time.monotonic() < deadline, f"survivors of the control: {left}"

    return end


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def alive():
    """Whether a process of this pid is there; a zombie is not, it only waits for init."""
    return _alive


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """After no_leaks has had its say: a failed test must not spoil the next, nor the end of the session."""
    try:
        return (yield)
    finally:
        directory = item.funcargs.get("session_cgroup")
        if directory is not None:
            ours = places.own_place().directory
            for root, children, _files in os.walk(directory, topdown=False):
                del children
                if root not in (str(directory), ours):
                    _sweep(Path(root))


def _sweep(cgroup: Path) -> None:
    """Only below the session's own cgroup: everything there was made by the test that has just ended."""
    with contextlib.suppress(OSError):
        (cgroup / "cgroup.kill").write_text("1")
    end = time.monotonic() + 2
    while cgroup.exists() and time.monotonic() < end:
        with contextlib.suppress(OSError):
            cgroup.rmdir()
