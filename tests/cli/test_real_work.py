"""Real work under pinfold comes to the same as without: a build from source, a project's tests, and the CPU time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

CLI = Path(sys.executable).with_name("pinfold")
PATIENCE = 240
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * PATIENCE)]


def _pip(*arguments):
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """From a requirement to its unpacked source distribution."""

    def download(requirement: str) -> Path:
        directory = tmp_path_factory.mktemp("sources")
        command = _pip("download", "-q", "--no-deps", "--no-binary", ":all:", "-d", directory, requirement)
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if ended.returncode:
            pytest.skip(f"needs pip to download {requirement}: {ended.stderr.strip().splitlines()[-1:]}")
        with tarfile.open(next(directory.glob("*.tar.gz"))) as archive:
            archive.extractall(directory, filter="data")
        return next(path for path in directory.iterdir() if path.is_dir())

    return download


@pytest.fixture
def timed(tmp_path):
    """Wraps a command in time(1); and compares what that says with what a Result says."""
    time = shutil.which("time", path="/usr/bin:/bin")
    if time is None:
        pytest.skip("needs /usr/bin/time")
    file = tmp_path / "time"

    def wrap(command):
        return [time, "-f", "%U %S", "-o", file, *command]

    def agrees(result) -> bool:
        theirs = sum(map(float, file.read_text().splitlines()[-1].split()))
        assert theirs > 0.5, "too short to compare"
        return result["usage"]["cpu_usage_usec"] / 1e6 == pytest.approx(theirs, rel=0.05)

    return SimpleNamespace(wrap=wrap, agrees=agrees)


def pinned(command, tmp_path):
    """The command under pinfold, and where its Result will be."""
    return [CLI, "run", "--timeout", str(PATIENCE), "--result", tmp_path / "result", "--", *command]


def finished(command, **options):
    """Run to its end, within our patience."""
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options)


def contents(wheel: Path) -> dict[str, int]:
    """Its files and checksums; a binary, and so the list of hashes, differs with the directory it was built in."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            info.filename: 0 if info.filename.endswith((".so", "RECORD")) else info.CRC for info in archive.infolist()
        }


def test_building_a_wheel_from_source(sources, tmp_path, cgroup2, timed):
    source = sources("psutil==7.2.2")
    wheels = []
    for place in ("without", "within"):
        build = timed.wrap(_pip("wheel", "--no-binary", ":all:", "--no-deps", "-w", tmp_path / place, source))
        ended = finished(build if place == "without" else pinned(build, tmp_path))
        assert ended.returncode == 0, ended.stdout + ended.stderr
        wheels.append(contents(next((tmp_path / place).glob("*.whl"))))
    assert wheels[0] == wheels[1]
    assert any(name.endswith(".so") for name in wheels[0])
    result = json.loads((tmp_path / "result").read_text())
    assert (result["outcome"], result["receipt"]["strays"]) == ("exited", 0)
    assert timed.agrees(result)


def test_tests_of_a_project(sources, tmp_path, cgroup2, timed):
    source = sources("click==8.5.1")
    path = f"PYTHONPATH={source / 'src'}"  # for the command only: we import click, too
    work = timed.wrap(["env", path, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"])
    without, within = finished(work, cwd=source), finished(pinned(work, tmp_path), cwd=source)
    result = json.loads((tmp_path / "result").read_text())
    counts = [re.sub(r" in .*", "", ended.stdout.strip().splitlines()[-1]) for ended in (without, within)]
    assert re.search(r"\d{3,} passed", counts[0]), without.stdout + without.stderr
    assert counts[0] == counts[1]
    assert without.returncode == within.returncode == result["returncode"]
    assert timed.agrees(result)


@pytest.mark.parametrize("parallel", [1, 4])
def test_cpu_time_is_what_time_says(tmp_path, cgroup2, parallel, timed):
    work = f"for i in $(seq {parallel}); do sh -c 'i=0; while [ $i -lt 1500000 ]; do i=$((i+1)); done' & done; wait"
    assert finished(pinned(timed.wrap(["sh", "-c", work]), tmp_path)).returncode == 0
    assert timed.agrees(json.loads((tmp_path / "result").read_text()))
