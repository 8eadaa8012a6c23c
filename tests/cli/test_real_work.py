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


def both(command, tmp_path, **options):
    """Without and with pinfold: two CompletedProcesses, and the Result of the second."""
    prefixes = [], [CLI, "run", "--timeout", str(PATIENCE), "--result", tmp_path / "result", "--"]
    without, within = (
        subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=PATIENCE, check=False, **options)
        for prefix in prefixes
    )
    return without, within, json.loads((tmp_path / "result").read_text())


def test_building_a_wheel_from_source(sources, tmp_path, cgroup2):
    source = sources("psutil==7.2.2")
    names = []
    for place in ("without", "within"):
        prefix = [] if place == "without" else [CLI, "run", "--result", tmp_path / "result", "--"]
        command = [*prefix, *_pip("wheel", "--no-binary", ":all:", "--no-deps", "-w", tmp_path / place, source)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        names.append(sorted(zipfile.ZipFile(next((tmp_path / place).glob("*.whl"))).namelist()))
    assert names[0] == names[1]
    assert any(name.endswith(".so") for name in names[0])
    result = json.loads((tmp_path / "result").read_text())
    assert (result["outcome"], result["receipt"]["strays"]) == ("exited", 0)


def test_tests_of_a_project(sources, tmp_path, cgroup2):
    source = sources("click==8.5.1")
    path = f"PYTHONPATH={source / 'src'}"  # for the command only: we import click, too
    command = ["env", path, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    without, within, result = both(command, tmp_path, cwd=source)
    counts = [re.sub(r" in .*", "", ended.stdout.strip().splitlines()[-1]) for ended in (without, within)]
    assert re.search(r"\d{3,} passed", counts[0]), without.stdout + without.stderr
    assert counts[0] == counts[1]
    assert without.returncode == within.returncode == result["returncode"]


@pytest.mark.parametrize("parallel", [1, 4])
def test_cpu_time_is_what_time_says(tmp_path, cgroup2, parallel):
    time = shutil.which("time", path="/usr/bin:/bin")
    if time is None:
        pytest.skip("needs /usr/bin/time")
    work = f"for i in $(seq {parallel}); do sh -c 'i=0; while [ $i -lt 600000 ]; do i=$((i+1)); done' & done; wait"
    command = [
        CLI,
        "run",
        "--result",
        tmp_path / "result",
        time,
        "-f",
        "%U %S",
        "-o",
        tmp_path / "time",
        "sh",
        "-c",
        work,
    ]
    assert subprocess.run(command, timeout=PATIENCE, check=False).returncode == 0
    theirs = sum(map(float, (tmp_path / "time").read_text().split()))
    ours = json.loads((tmp_path / "result").read_text())["usage"]["cpu_usage_usec"] / 1e6
    assert theirs > 0.5, "too short to compare"
    assert ours == pytest.approx(theirs, rel=0.05)
