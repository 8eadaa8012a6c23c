"""Settings of the pure tests: no cgroup is made, and hypothesis keeps neither deadlines nor files."""

from __future__ import annotations

import os
import tempfile
import threading

import pytest
from hypothesis import settings

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "pinfold-hypothesis"))
settings.register_profile("unit", deadline=None, database=None, print_blob=True, max_examples=60)
settings.load_profile("unit")


@pytest.fixture(scope="session")
def session_cgroup():
    """None: pure tests stay in the cgroup they are started in, on any host."""


def _held():
    """What a test could leave behind in this process: fds, threads, children that were not reaped."""
    fds = {(name, _target(name)) for name in os.listdir("/proc/self/fd")}
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        children = {("child", pid) for pid in file.read().split()}
    return {fd for fd in fds if fd[1]} | children | {("thread", thread.name) for thread in threading.enumerate()}


def _target(name):
    try:
        target = os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:  # the one that listed them
        return ""
    return "" if target.startswith("/proc/") else target


@pytest.fixture(autouse=True)
def no_leaks():
    """The check of the other folders, without a look at every process of the host: there are a thousand tests."""
    before = _held()
    yield
    assert not _held() - before, "left behind"
