"""Result: the JSON that others build on, and what `check` raises."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess

import pytest

import pinfold
from pinfold.result import Placement, Receipt, Stray, Stream, Usage
from pinfold.runs import strays

LIMIT_OUTCOMES = ("timed_out", "idle_timed_out", "cpu_timed_out")
OTHER_OUTCOMES = ("signaled", "oom_killed", "output_exceeded", "canceled", "spawn_failed", "lost")


NOTHING_LEFT = Receipt(
    emptied=True, strays=0, stray_processes=[], kill_rounds=0, kill_to_empty_usec=None, bytes_after_kill=0,
    pipe_held=False, stuck_pids=[], removed=True, escaped_processes=[],
    stuck_processes=[],
)  # fmt: skip


# DESIGN, section 5; with what the code adds: `entry`, `why`, `escaped_processes`, `stuck_processes`, `missing`, and
# more figures of usage, pressure and events.
EXPECTED = {
    "schema": 1, "run_id": "abc", "argv": ["sh", "-c", "x"], "outcome": "timed_out", "returncode": -9, "pid": 4711,
    "started_at": "2026-01-01T00:00:00.250000Z", "duration_usec": 5003121,
    "stdout": {"bytes": 6, "kept": 6, "truncated": False}, "stderr": {"bytes": 0, "kept": 0, "truncated": False},
    "usage": {
        "cpu_usage_usec": 1, "cpu_user_usec": 1, "cpu_system_usec": 0, "memory_peak": None, "pids_peak": None,
        "io_rbytes": None, "io_wbytes": None,
        "pressure": {
            "cpu_some_usec": None, "memory_full_usec": None, "io_full_usec": None, "memory_some_usec": None,
            "io_some_usec": None,
        },
        "memory_swap_peak": None, "memory_anon": None, "memory_file": None, "memory_shmem": None,
        "memory_kernel": None, "cpu_throttled_usec": None, "cpu_throttled_periods": None,
    },
    "events": {
        "oom": None, "oom_kill": None, "pids_max": None, "oom_by": None, "oom_cgroup": None, "oom_process": None,
        "stall": False,
    },
    "limits": {"asked": {}, "applied": {}, "missing": {}},
    "receipt": {
        "emptied": True, "strays": 1,
        "stray_processes": [{"pid": 4712, "ppid": 1, "sid": 4712, "comm": "sleep", "argv": ["sleep", "10"]}],
        "kill_rounds": 1, "kill_to_empty_usec": 412, "bytes_after_kill": 0, "pipe_held": False, "stuck_pids": [],
        "removed": True, "escaped_processes": [], "stuck_processes": [], "unlisted_cgroups": 0,
        "receiver_stalled": False,
    },
    "placement": {"backend": "cgroupfs", "cgroup": "/pinfold-1/run-2", "unit": None, "entry": "clone3", "why": None},
    "guarantee": "cooperative", "error": None,
}  # fmt: skip


@pytest.fixture
def the_expected_result(a_result):
    stray = Stray(4712, 1, 4712, "sleep", ["sleep", "10"])
    return a_result(
        argv=["sh", "-c", "x"], outcome="timed_out", returncode=-9, started_at=1767225600.25, duration=5.0031214,
        stdout_stream=Stream(6, 6), stderr_stream=Stream(0, 0), usage=Usage(1, 1, 0),
        receipt=NOTHING_LEFT._replace(strays=1, stray_processes=[stray], kill_rounds=1, kill_to_empty_usec=412),
        placement=Placement("cgroupfs", "/pinfold-1/run-2", entry="clone3"),
    )  # fmt: skip


def test_the_json_has_exactly_the_shape_of_schema_1(the_expected_result):
    assert the_expected_result.to_dict() == EXPECTED


def test_the_keys_come_in_the_order_of_the_document(the_expected_result):
    found = the_expected_result.to_dict()
    assert list(found) == list(EXPECTED)
    for part in ("usage", "events", "limits", "receipt", "placement"):
        assert list(found[part]) == list(EXPECTED[part])
    assert list(found["usage"]["pressure"]) == list(EXPECTED["usage"]["pressure"])


@pytest.mark.parametrize("indent", [None, 2])
def test_the_json_text_is_the_dict_and_ascii(the_expected_result, indent):
    text = the_expected_result.to_json(indent=indent)
    assert json.loads(text) == EXPECTED
    assert text.isascii()
    assert ("\n" in text) == (indent is not None)


def test_what_the_host_cannot_tell_is_null(a_result):
    found = a_result(returncode=None, pid=None, outcome="lost").to_dict()
    assert found["stdout"] == {"bytes": None, "kept": None, "truncated": False}
    pressure = found["usage"].pop("pressure")
    assert found["events"].pop("stall") is False  # not what the host tells: whether we ended it
    assert {*found["usage"].values(), *pressure.values(), *found["events"].values()} == {None}
    assert (found["returncode"], found["pid"]) == (None, None)


def test_an_argv_that_is_no_utf8_still_makes_valid_json(a_result):
    argv = [strays.printable(os.fsdecode(argument)) for argument in (b"echo", b"\xff\xc3\xa9")]
    text = a_result(argv=argv).to_json()
    assert json.loads(text)["argv"] == ["echo", "\\xffé"]
    assert json.loads(text)["argv"][1].encode()  # no lone surrogate, which strict readers refuse


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "1970-01-01T00:00:00.000000Z"), (1.5, "1970-01-01T00:00:01.500000Z")]
)
def test_the_start_is_utc_with_microseconds_whatever_the_time_zone(a_result, monkeypatch, seconds, text):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert a_result(started_at=seconds).to_dict()["started_at"] == text


@pytest.mark.parametrize(
    "changes",
    [
        {"stdout_stream": Stream(1, 1)},
        {"stderr_stream": Stream(1, 1)},
        {"usage": Usage(1)},
        {"run_id": "x"},
        {"args": ()},
    ],
)
def test_results_are_equal_by_what_they_say(a_result, changes):
    asked = a_result()
    asked.to_dict()
    assert asked == a_result()  # put into words or not
    assert asked != "a result"
    assert a_result() != a_result(**changes)


def test_what_it_is_asked_for_later_is_found_out_once_and_only_when_asked(a_result):
    result = a_result(usage=Usage(7))
    late = result._late
    assert (result.ok, result.duration, late.asked) == (True, 1.5, [])
    assert result.usage is result.usage
    assert (result.usage, late.asked) == (Usage(7), ["usage"])


def test_what_there_is_no_field_for_is_an_attribute_error(a_result):
    with pytest.raises(AttributeError, match="'Result' object has no attribute 'output'"):
        a_result().output  # noqa: B018


@pytest.mark.parametrize("again", [lambda r: pickle.loads(pickle.dumps(r)), copy.copy, copy.deepcopy])
def test_a_copy_needs_nothing_of_what_the_first_was_made_of(a_result, again):
    result = a_result(usage=Usage(7), limit_hit=2.5, stdout=b"out")
    other = again(result)
    assert not hasattr(other, "_late")
    assert other == result
    assert (other.usage, other.limit_hit, other.to_dict()) == (Usage(7), 2.5, result.to_dict())


def test_success_is_an_exit_with_status_0_and_nothing_else(a_result):
    assert a_result().ok
    assert a_result().check_returncode() is None
    assert not a_result(returncode=1).ok
    assert not any(a_result(outcome=outcome).ok for outcome in LIMIT_OUTCOMES + OTHER_OUTCOMES)


@pytest.mark.parametrize("outcome", LIMIT_OUTCOMES)
def test_a_time_limit_is_a_timeout_of_subprocess_too(a_result, outcome):
    result = a_result(outcome=outcome, returncode=-9, stdout=b"out", stderr=b"err", limit_hit=2.5)
    with pytest.raises(pinfold.TimeoutExpired) as caught:
        result.check_returncode()
    error = caught.value
    assert isinstance(error, subprocess.TimeoutExpired)
    assert (error.cmd, error.timeout, error.stdout, error.stderr) == (["sh"], 2.5, b"out", b"err")
    assert error.result is result
    assert "timed out after 2.5 seconds" in str(error)


@pytest.mark.parametrize("outcome", ["exited", *OTHER_OUTCOMES])
def test_any_other_failure_is_a_called_process_error_of_subprocess_too(a_result, outcome):
    returncode = {"exited": 3, "signaled": -11}.get(outcome, -9)
    result = a_result(outcome=outcome, returncode=returncode, stdout=b"out", stderr=b"err")
    with pytest.raises(pinfold.CommandFailed) as caught:
        result.check_returncode()
    error = caught.value
    assert isinstance(error, subprocess.CalledProcessError)
    assert (error.returncode, error.cmd, error.output, error.stderr) == (returncode, ["sh"], b"out", b"err")
    assert error.result is result


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outcome": "exited", "returncode": 3}, "exit status 3"),
        ({"outcome": "signaled", "returncode": -11}, "SIGSEGV"),
        ({"outcome": "output_exceeded", "returncode": -9}, "outcome output_exceeded"),
        ({"outcome": "lost", "returncode": None}, "outcome lost"),
    ],
)
def test_the_message_of_a_failure_says_how_it_ended(a_result, changes, words):
    with pytest.raises(pinfold.CommandFailed, match=words):
        a_result(**changes).check_returncode()


@pytest.mark.parametrize("text", ["plain", "é", "日本"])
def test_printable_leaves_text_as_it_is(text):
    assert strays.printable(text) == text


@pytest.mark.parametrize("data", [b"\xff", b"a\x80b", b"\xed\xa0\x80"])
def test_printable_text_can_be_encoded_whatever_the_bytes_were(data):
    assert strays.printable(os.fsdecode(data)).encode("utf-8")
