"""What the manifest asks of single programs beyond their outcome."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

FORKBOMBS = int(os.environ.get("FORKBOMBS", "50"))


@pytest.mark.slow
def test_fork_bomb_is_put_out_at_whatever_moment_it_is_hit(caller, compiled, tally):
    argv = compiled("out_forkbomb.py")

    def trial(n: int) -> str | None:
        ending = caller.run(argv, "--timeout", f"{20 + 25 * n}ms")  # from before its first fork to long after its last
        ok = ending.code == 124 and not (ending.processes or ending.cgroups) and ending.result["receipt"]["emptied"]
        tally("out_forkbomb, hit early", caller.name, ok)
        return None if ok else f"{n}: {ending}"

    with ThreadPoolExecutor(2) as pool:
        assert [problem for problem in pool.map(trial, range(FORKBOMBS)) if problem] == []


def test_flood_does_not_fill_the_executor(caller, compiled):
    cap = 1 << 20
    quiet = caller.run([sys.executable, "-c", "import time; time.sleep(0.3)"], "--output-limit", str(cap))
    flood = caller.run(compiled("pipe_flood.py"), "--timeout", "5", "--output-limit", str(cap))
    assert flood.code == 137
    assert len(flood.out) == cap
    assert flood.result["stdout"] == {"bytes": flood.result["stdout"]["bytes"], "kept": cap, "truncated": True}
    assert 0 < flood.peak_kib - quiet.peak_kib < (cap >> 10) + 32 * 1024 or flood.peak_kib <= quiet.peak_kib


def test_flood_without_a_limit_reaches_the_caller_and_not_the_executor(caller, compiled):
    flood = caller.run(compiled("pipe_flood.py"), "--timeout", "200ms")
    assert flood.code == 124
    assert len(flood.out) > 1 << 20
    assert flood.peak_kib < 96 * 1024
    assert not flood.processes


def test_descriptors_shared_with_the_command_are_blocking_again_afterwards(caller, compiled):
    # Without an output limit the command has the caller's own open files, and sets O_NONBLOCK on them.
    ending = caller.run(compiled("pipe_nonblock_shared.py"), "--timeout", "15")
    assert ending.code == 0
    assert hashlib.sha256(ending.out).hexdigest().startswith("f01540fc")
    assert ending.nonblocking == []


def test_descriptors_are_blocking_again_after_a_timeout_too(caller):
    program = "import os, time; [os.set_blocking(fd, False) for fd in (0, 1, 2)]; time.sleep(30)"
    ending = caller.run([sys.executable, "-c", program], "--timeout", "500ms")
    assert (ending.code, ending.nonblocking) == (124, [])


def test_memory_limit_holds_a_hog_or_is_refused(caller, compiled):
    ending = caller.run(compiled("mt_memory_hog.py"), "--memory", "64M", "--swap", "0", "--timeout", "30")
    assert not ending.cgroups
    assert ending.err.count(b"\n") == 1
    if ending.result is None:
        assert (ending.code, b"controller memory" in ending.err) == (125, True)
        return
    assert (ending.code, ending.result["outcome"], ending.result["events"]["oom_by"]) == (137, "oom_killed", "own")
    assert ending.result["usage"]["memory_peak"] <= 64 << 20


def test_fork_bomb_is_held_at_its_limit_or_refused(caller, compiled):
    ending = caller.run(compiled("out_forkbomb.py"), "--pids", "32", "--timeout", "3")
    assert (ending.processes, ending.cgroups) == ([], [])
    if ending.result is None:
        assert (ending.code, b"controller pids" in ending.err) == (125, True)
        return
    assert (ending.code, ending.result["outcome"]) == (124, "timed_out")
    assert ending.result["usage"]["pids_peak"] == 32
    assert ending.result["events"]["pids_max"] > 0


def test_other_tenants_run_while_one_hoards_handles(caller, compiled):
    hoarding = threading.Event()
    endings = {}
    hoarder = threading.Thread(
        target=lambda: endings.update(
            hoarder=caller.run(
                compiled("mt_exhaust_handles.py"), "--timeout", "15", on_start=lambda _pid: hoarding.set()
            )
        )
    )
    hoarder.start()
    assert hoarding.wait(10)
    others = [caller.run([sys.executable, "-c", "print('fine')"], "--timeout", "10") for _ in range(8)]
    hoarder.join(30)
    assert [(other.code, other.out) for other in others] == [(0, b"fine\n")] * 8
    assert endings["hoarder"].code == 0


def test_nothing_a_program_calls_itself_reaches_our_lines_raw(caller):
    name = b"x) R 1 (\\n\\x1b[31m".decode()
    program = f"import ctypes, os, time; ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0); os.fork() and time.sleep(0.2)"
    ending = caller.run([sys.executable, "-c", program + "; time.sleep(30 if os.getppid() == 1 else 0.3)"], "-v")
    lines = ending.err.decode().splitlines()
    assert lines
    assert all(line.startswith("pinfold: ") and line.isprintable() for line in lines), lines
    assert not ending.processes


def test_log_injection_changes_no_line_of_ours(caller, compiled):
    ending = caller.run(compiled("mt_log_injection.py"), "--timeout", "15", "-v")
    theirs, ours = ending.err.split(b"pinfold: ", 1)
    assert theirs == b"Traceback (most recent call last):\n  forged\n"
    assert all(line.removeprefix("pinfold: ").isprintable() for line in ours.decode().splitlines())
    assert len(ending.out) > 1 << 20


def test_what_the_command_is_given(caller, compiled):
    ending = caller.run(compiled("priv_report.py"))
    report = json.loads(ending.out)
    assert report["status"]["NoNewPrivs"] == "1"
    # Python itself ignores SIGPIPE and SIGXFSZ.
    assert (report["status"]["SigIgn"], report["status"]["SigBlk"]) == ("0000000001001000", "0" * 16)
    assert set(report["fds"]) == {"0", "1", "2"}
    assert report["core"] == [0, 0]
    assert (report["tty"], report["sid_is_self"]) == (False, True)
    assert report["uid"] == [caller.uid] * 3
    if caller.uid:
        assert sorted(report["groups"]) == ([] if os.geteuid() == 0 else sorted(os.getgroups()))
        assert report["status"]["CapEff"] == "0" * 16


@pytest.mark.parametrize("file", ["priv_tiocsti.py", "priv_report.py"])
def test_on_a_terminal_nothing_is_left_either(file, caller, compiled):
    master, terminal = os.openpty()
    os.fchmod(terminal, 0o666)  # uid 65534 opens /dev/tty, which is this
    try:
        ending = caller.run(compiled(file), "--timeout", "15", terminal=terminal)
        shown = os.read(master, 1 << 16)
    finally:
        os.close(terminal)
        with contextlib.suppress(OSError):
            os.close(master)
    assert ending.code == 0
    assert shown
    assert (ending.processes, ending.cgroups) == ([], [])


def test_pushing_input_is_blocked_where_no_terminal_is_shared(caller, compiled):
    ending = caller.run(compiled("priv_tiocsti.py"))
    assert b"ADV-VERDICT priv_tiocsti blocked" in ending.out


def test_who_left_its_cgroup_is_found_by_descent(caller, compiled):
    ending = caller.run(compiled("esc_parent_procs.py"), "--timeout", "15")
    escaped = ending.result["receipt"]["escaped_processes"]
    verdict = ending.out.split()[2]
    assert (verdict == b"open") == bool(escaped), ending
    assert ending.processes == []
    if caller.uid == 0:
        assert verdict == b"open"
        assert b"outside the cgroup" in ending.err
