"""What this folder's tests can see: the same bad program under plain `subprocess` does leave a stray."""

from __future__ import annotations

import subprocess

import psutil

import pinfold

ARGV = ["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!"]


def test_subprocess_leaves_a_stray_where_pinfold_leaves_none(cgroup2, end_of, alive):
    done = subprocess.run(ARGV, capture_output=True, timeout=5, check=True)
    stray = psutil.Process(int(done.stdout))
    assert alive(stray.pid)
    end_of(stray)

    result = pinfold.run(ARGV, capture_output=True, timeout=5)
    assert result.outcome == "exited"
    assert result.receipt.strays == 1
    assert not alive(int(result.stdout))
