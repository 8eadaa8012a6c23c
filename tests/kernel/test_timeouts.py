"""The ends of patience: each does what it says, when it says it, and says so."""

from __future__ import annotations

import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import pinfold

QUIET_THEN_DEAD = "trap 'echo got it; exit 7' TERM; echo ready; while :; do sleep 0.02; done"


def test_a_timeout_ends_it_when_it_says(cgroup2, slowness):
    result = pinfold.run(["sleep", "60"], timeout=0.5)
    assert (result.outcome, result.returncode, result.limit_hit) == ("timed_out", -9, 0.5)
    assert 0.5 <= result.duration < 0.5 + slowness


def test_a_timeout_of_nothing_is_over_at_once(cgroup2, slowness):
    result = pinfold.run(["sleep", "60"], timeout=0)
    assert (result.outcome, result.returncode, result.duration < slowness) == ("timed_out", -9, True)


def test_check_raises_what_subprocess_handlers_catch(cgroup2, slowness):
    import subprocess

    with pytest.raises(subprocess.TimeoutExpired) as expired:
        pinfold.run(["sh", "-c", "echo partly; sleep 60"], timeout=0.3 * slowness, check=True, capture_output=True)
    assert (expired.value.timeout, expired.value.output, expired.value.result.outcome) == (
        0.3 * slowness,
        b"partly\n",
        "timed_out",
    )
    with pytest.raises(subprocess.CalledProcessError) as failed:
        pinfold.run(["sh", "-c", "exit 3"], check=True)
    assert (failed.value.returncode, failed.value.result.outcome) == (3, "exited")


def test_within_the_grace_a_command_can_end_by_itself(cgroup2, slowness):
    result = pinfold.run(["sh", "-c", QUIET_THEN_DEAD], timeout=0.3 * slowness, grace=10, capture_output=True)
    assert (result.outcome, result.returncode, result.stdout) == ("timed_out", 7, b"ready\ngot it\n")
    assert (result.receipt.kill_rounds, result.duration < 3 * slowness) == (0, True)


def test_without_grace_no_signal_is_sent(cgroup2, slowness):
    result = pinfold.run(["sh", "-c", QUIET_THEN_DEAD], timeout=0.3 * slowness, capture_output=True)
    assert (result.outcome, result.returncode, result.stdout) == ("timed_out", -9, b"ready\n")


def test_after_the_grace_comes_the_kill(cgroup2, slowness):
    result = pinfold.run(["sh", "-c", "trap '' TERM; sleep 60 & wait; sleep 60"], timeout=0.2 * slowness, grace="300ms")
    assert (result.outcome, result.returncode) == ("timed_out", -9)
    assert 0.2 * slowness + 0.3 <= result.duration < 2 * slowness


def test_descendants_get_the_grace_too(cgroup2, tmp_path, slowness):
    line = f"(trap 'sleep 0.2; echo done > {tmp_path}/child; exit' TERM; while :; do sleep 0.02; done) & wait"
    result = pinfold.run(["sh", "-c", line], timeout=0.3 * slowness, grace=10)
    assert (result.outcome, result.returncode) == ("timed_out", -15)
    assert (tmp_path / "child").read_text() == "done\n"


def test_the_signal_can_be_chosen(cgroup2, slowness):
    line = "trap 'exit 9' HUP; while :; do sleep 0.02; done"
    result = pinfold.run(["sh", "-c", line], timeout=0.3 * slowness, grace=10, stop_signal="HUP")
    assert (result.outcome, result.returncode) == ("timed_out", 9)


def test_silence_is_ended_and_output_is_not(cgroup2, slowness):
    quiet = pinfold.run(["sh", "-c", "echo hello; sleep 60"], idle_timeout=0.4 * slowness, capture_output=True)
    line = f"for n in 1 2 3 4 5 6 7 8; do echo $n; sleep {0.1 * slowness}; done"
    busy = pinfold.run(["sh", "-c", line], idle_timeout=0.4 * slowness, stdout=pinfold.DEVNULL)
    assert (quiet.outcome, quiet.stdout, quiet.limit_hit) == ("idle_timed_out", b"hello\n", 0.4 * slowness)
    assert (busy.outcome, busy.duration > 0.7 * slowness) == ("exited", True)


def test_cpu_time_is_counted_over_all_processes(cgroup2, villain, slowness):
    result = pinfold.run(villain("cpu_burner"), cpu_timeout=0.5, timeout=20)
    assert (result.outcome, result.returncode) == ("cpu_timed_out", -9)
    assert 450_000 <= result.usage.cpu_usage_usec < 500_000 + 1_500_000 * slowness


def test_sleeping_costs_no_cpu_time(cgroup2):
    result = pinfold.run(["sleep", "0.5"], cpu_timeout=0.3, timeout=20)
    assert (result.outcome, result.returncode) == ("exited", 0)


def test_strays_can_be_waited_for(cgroup2):
    line = "(sleep 0.3; echo late) & echo early"
    result = pinfold.run(["sh", "-c", line], strays="wait", capture_output=True, timeout=10)
    assert (result.outcome, result.returncode, result.stdout) == ("exited", 0, b"early\nlate\n")
    assert (result.receipt.strays, result.receipt.kill_rounds) == (0, 0)


def test_strays_that_are_waited_for_end_with_the_timeout(cgroup2, slowness):
    result = pinfold.run(["sh", "-c", "setsid sleep 60 & exit 3"], strays="wait", timeout=0.4 * slowness)
    assert (result.outcome, result.returncode) == ("timed_out", 3)
    assert (result.receipt.strays, result.receipt.emptied) == (1, True)


@pytest.mark.slow
def test_an_exit_at_the_moment_of_the_timeout_has_one_consistent_story(cgroup2):
    """1000 runs; the limits are drawn around the ends, and both outcomes must come up."""
    draw = random.Random(4711)
    counts = {"exited": 0, "timed_out": 0}
    lock = threading.Lock()

    def one(length: float, limit: float, grace: float) -> str | None:
        result = pinfold.run(["sleep", f"{length:.4f}"], timeout=limit, grace=grace)
        with lock:
            counts[result.outcome] += 1
        expected = {"exited": [0], "timed_out": [-15, -9, 0] if grace else [-9]}[result.outcome]
        good = (
            result.returncode in expected
            and result.receipt.emptied
            and result.receipt.removed
            and result.receipt.strays == 0
            and (result.outcome != "timed_out" or result.duration >= limit)
            and (result.outcome != "exited" or result.duration >= length)
        )
        return None if good else f"{length} {limit} {grace} {result}"

    cases = []
    for at in range(1000):
        length = draw.uniform(0, 0.5)
        limit = max(0.0, length + draw.uniform(-0.004, 0.030))
        cases.append((length, limit, 0.2 if at % 4 == 0 else 0))
    with ThreadPoolExecutor(24) as pool:
        wrong = [story for story in pool.map(lambda case: one(*case), cases) if story]
    print(f"\n1000 runs: {counts}")
    assert wrong == []
    assert min(counts.values()) > 20


def test_a_timer_that_falls_due_while_the_run_ends_harms_nobody(cgroup2, monkeypatch):
    """The end and a timer in one turn."""
    from pinfold.runs.loop import Loop

    real = Loop._wait

    def late(self, seconds):
        ready = real(self, seconds)
        time.sleep(0.02)  # as a busy machine does: now every timer is due
        return ready

    monkeypatch.setattr(Loop, "_wait", late)
    for limit in (0.01, 0.02, 0.03, 5):
        result = pinfold.run(["sh", "-c", "setsid sleep 60 & sleep 0.02"], timeout=limit, capture_output=True)
        assert result.receipt.removed
        result = pinfold.run(["sh", "-c", "trap '' TERM; sleep 60"], timeout=limit / 10, grace=0.01, stdout=-1)
        assert (result.outcome, result.receipt.removed) == ("timed_out", True)


# ---- start ---------------------------------------------------------------------------------------------------


def test_a_started_run_can_be_killed(cgroup2):
    with pinfold.start(["sh", "-c", "setsid sleep 60 & sleep 60"]) as run:
        assert run.poll() is None
        run.kill()
        result = run.wait(5)
    assert (result.outcome, run.returncode, result.receipt.emptied) == ("canceled", -9, True)


def test_a_started_run_can_be_terminated(cgroup2):
    with pinfold.start(["sh", "-c", QUIET_THEN_DEAD], grace=10, stdout=pinfold.PIPE) as run:
        assert run.stdout.readline() == b"ready\n"
        run.terminate()
        result = run.wait(5)
    assert (result.outcome, result.returncode) == ("canceled", 7)


def test_a_signal_goes_to_the_main_process(cgroup2):
    with pinfold.start(["sh", "-c", "trap 'exit 5' USR1; echo ready; while :; do sleep 0.02; done"], stdout=-1) as run:
        run.stdout.readline()
        run.send_signal(signal.SIGUSR1)
        result = run.wait(5)
    assert (result.outcome, result.returncode) == ("exited", 5)


def test_verbs_after_the_end_do_nothing(cgroup2):
    with pinfold.start(["true"]) as run:
        run.wait(5)
        run.kill()
        run.terminate()
        run.send_signal("TERM")
    run.kill()
    assert (run.returncode, run.wait().outcome) == (0, "exited")


def test_waiting_has_its_own_patience_and_the_run_goes_on(cgroup2):
    with pinfold.start(["sleep", "60"]) as run:
        with pytest.raises(TimeoutError):
            run.wait(0.2)
        assert run.poll() is None
        run.kill()


def test_an_exception_in_the_with_block_kills_the_run(cgroup2):
    class OopsError(Exception):
        pass

    with pytest.raises(OopsError), pinfold.start(["sleep", "60"]) as run:
        raise OopsError
    assert run.wait(0).outcome == "canceled"


def test_the_timeout_of_a_started_run_needs_nobody_to_wait(cgroup2, wait_until):
    with pinfold.start(["sleep", "60"], timeout=0.2) as run:
        wait_until(lambda: run.poll() is not None, "the end")
        assert run.wait().outcome == "timed_out"


@pytest.mark.timeout(20)
def test_a_thread_that_cannot_be_started_leaves_no_command_behind(cgroup2, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    with pinfold.Fold() as fold:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(pinfold.Error, match="no thread for the started runs"):
            fold.start(["sleep", "60"], stdout=pinfold.PIPE)
        monkeypatch.undo()
        base = cgroup2 / fold.path.rpartition("/")[2]
        alive = [pid for path in base.glob("run-*/cgroup.procs") for pid in path.read_text().split()]
    assert alive == []
