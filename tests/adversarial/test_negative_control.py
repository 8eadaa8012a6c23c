"""That these programs are bad: under plain subprocess, with its process group killed, they leave processes."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CORPUS = Path(__file__).parent / "corpus"


def with_token(token: str) -> list[int]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if token.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def strayed(token: str, session: int) -> list[int]:
    found = []
    for pid in with_token(token):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) != session:
                found.append(pid)
    return found


@pytest.mark.parametrize(
    ("program", "strays"), [("out_double_fork", 3), ("pipe_grandchild_holds", 1), ("out_signals_ignored", 8)]
)
def test_killing_the_process_group_leaves_processes(program, strays, wait_until):
    token = f"adv-token={secrets.token_hex(8)}"
    process = subprocess.Popen(
        [sys.executable, "-I", CORPUS / f"{program}.py", token], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        process.stdout.readline()
        wait_until(lambda: len(strayed(token, process.pid)) >= strays, "sessions of their own")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
        assert with_token(token)
    finally:
        for pid in with_token(token):
            os.kill(pid, signal.SIGKILL)
        process.stdout.close()
        wait_until(lambda: not with_token(token), "the end of what was left")
