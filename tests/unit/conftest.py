"""Settings of the pure tests: no cgroup is made, and hypothesis keeps neither deadlines nor files."""

from __future__ import annotations

import os
import tempfile
import threading

import pytest
from hypothesis import settings

from pinfold.cgroup.files import Hierarchy
from pinfold.cgroup.places import Place
from pinfold.result import Events, Placement, Receipt, Result, Stream, Usage

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


class FakeCgroups:
    """A hierarchy of cgroups in a temp dir, of which `write` is what the kernel does with a write to their files."""

    def __init__(self, root):
        self.root, self.written, self.refuses = root, [], {}  # what a write to a file is answered with, by its path

    def add(self, path, has="", gives="", holds="", **files):
        """One cgroup. `holds`: its processes. Other files by their names, with `_` for `.`; None: no such file."""
        directory = self.directory(path)
        directory.mkdir(parents=True, exist_ok=True)
        texts = {"cgroup.type": "domain\n", "cgroup.controllers": has + "\n", "cgroup.subtree_control": gives + "\n"}
        texts["cgroup.procs"] = "".join(f"{pid}\n" for pid in holds.split())
        texts |= {name.replace("_", "."): text for name, text in files.items()}
        for name, text in texts.items():
            if text is not None:
                (directory / name).write_text(text)
        return self.place(path)

    def directory(self, path):
        return self.root / path.strip("/") if path.strip("/") else self.root

    def place(self, path):
        return Place(str(self.directory(path)), path, Hierarchy(self.root.stat().st_dev))

    def text(self, path, file):
        return (self.directory(path) / file).read_text()

    def write(self, fd, data):
        path = os.readlink(f"/proc/self/fd/{fd}")
        if not path.startswith(f"{self.root}/"):
            return WRITE(fd, data)
        file, value = path.removeprefix(str(self.root)), data.decode()
        self.written.append((file, value))
        if (answer := self.refuses.get(file) or self.refuses.get(value)) is not None:
            raise answer
        with open(path) as text:
            before = text.read().split()
        after = [*before, value.removeprefix("+")]
        if file.endswith("cgroup.procs"):
            for procs in self.root.rglob("cgroup.procs"):
                procs.write_text("".join(f"{pid}\n" for pid in procs.read_text().split() if pid != value))
        with open(path, "w") as text:
            text.write("\n".join(after) + "\n" if file.endswith("cgroup.procs") else " ".join(after) + "\n")
        return len(data)


WRITE = os.write


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Fake cgroups: `cgroups.add("/a", has="cpu memory", gives="cpu", holds="17")`."""
    root = tmp_path / "cgroup"
    root.mkdir()
    fake = FakeCgroups(root)
    monkeypatch.setattr(os, "write", fake.write)
    return fake


class Facts:
    """What a Result is asked for later, known from the start; counts how often it was asked for each."""

    def __init__(self, **facts):
        self.facts, self.asked = facts, []

    def __getattr__(self, name):
        if name.startswith("_") or name not in self.facts:
            raise AttributeError(name)
        return lambda: self.asked.append(name) or self.facts[name]


@pytest.fixture(scope="session")
def a_result():
    """`a_result(outcome="lost", usage=Usage(1))`: the Result of a run that went well, but for these facts."""

    def make(**changes):
        said = {
            "args": ["sh"], "outcome": "exited", "returncode": 0, "pid": 4711, "run_id": "abc", "duration": 1.5,
            "started_at": 0.0, "stdout": None, "stderr": None, "guarantee": "cooperative",
        }  # fmt: skip
        later = {
            "argv": ["sh"], "stdout_stream": Stream(), "stderr_stream": Stream(), "usage": Usage(),
            "events": Events()._asdict(), "limits": {"asked": {}, "applied": {}, "missing": {}},
            "receipt": Receipt(True, 0, [], 0, None, 0, False, [], True, [], []),
            "placement": Placement("cgroupfs", "/base/run-abc"), "error": None, "limit_hit": None,
        }  # fmt: skip
        said |= {name: value for name, value in changes.items() if name not in later}
        later |= {name: value for name, value in changes.items() if name in later}
        return Result(**said, late=Facts(**later))

    return make
