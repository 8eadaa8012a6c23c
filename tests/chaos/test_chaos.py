"""The cases of `python -m tests.chaos` with small counts, each in a process of its own: they fork, and kill, a lot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CASES = ["negative-control", "sigkill", "sigkill-guard-first", "abort", "gc-safety", "faults", "folds", "signals"]


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left(cgroup2, case):
    argv = [sys.executable, "-W", "error", "-m", "tests.chaos", "--below", cgroup2, case]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=110, check=False, cwd=ROOT)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
