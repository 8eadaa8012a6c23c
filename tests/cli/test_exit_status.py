"""Exit statuses: the command's own, and timeout(1)'s."""

from __future__ import annotations

import signal

import pytest


@pytest.mark.parametrize("status", [0, 1, 2, 42, 124, 125, 126, 127, 130, 255])
def test_own_status_of_the_command(pinfold, status):
    ended = pinfold("--", "sh", "-c", f"exit {status}")
    assert (ended.code, ended.err) == (status, "")
    assert (ended.result["outcome"], ended.result["returncode"]) == ("exited", status)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMIN + 1, signal.SIGPIPE]
)
def test_signal_n_is_128_plus_n(pinfold, number):
    ended = pinfold("--", "sh", "-c", f"kill -{int(number)} $$")
    assert ended.code == 128 + number
    assert (ended.result["outcome"], ended.result["returncode"]) == ("signaled", -number)
    assert len(ended.lines) == 1


@pytest.mark.parametrize("limit", ["--timeout", "--idle-timeout"])
def test_time_limit_is_124(pinfold, limit):
    ended = pinfold(limit, "200ms", "sleep", "30")
    assert ended.code == 124
    assert ended.result["returncode"] == -9
    assert ended.wall < 3


def test_cpu_time_limit_is_124(pinfold):
    ended = pinfold("--cpu-timeout", "200ms", "--timeout", "20", "sh", "-c", "while :; do :; done")
    assert (ended.code, ended.result["outcome"]) == (124, "cpu_timed_out")
    assert 0.2 <= ended.result["usage"]["cpu_usage_usec"] / 1e6 < 0.4


def test_cpu_time_limit_counts_the_whole_tree_and_not_sleep(pinfold):
    tree = "for i in 1 2; do (while :; do :; done) & done; wait"
    assert pinfold("--cpu-timeout", "300ms", "--timeout", "20", "sh", "-c", tree).result["outcome"] == "cpu_timed_out"
    assert pinfold("--cpu-timeout", "300ms", "sleep", "0.6").code == 0


def test_output_limit_is_137(pinfold):
    ended = pinfold("--output-limit", "1K", "yes")
    assert (ended.code, ended.result["outcome"]) == (137, "output_exceeded")
    assert ended.out == b"y\n" * 512


def test_command_not_found_is_127(pinfold):
    ended = pinfold("no-such-command-anywhere")
    assert (ended.code, ended.result["outcome"], ended.result["returncode"]) == (127, "spawn_failed", None)


def test_command_that_cannot_be_executed_is_126(pinfold, tmp_path):
    assert pinfold(tmp_path).code == 126


def test_wrong_usage_is_125(pinfold):
    assert pinfold("--timeout", "soon", "true").code == 125


def test_exit_before_the_timeout_is_not_a_timeout(pinfold):
    assert pinfold("--timeout", "20", "sh", "-c", "exit 3").code == 3
