"""The arguments of `run` and `start`: all checked before anything exists, each refusal names its argument."""

from __future__ import annotations

import math
import resource
from datetime import timedelta

import pytest
from pinfold.runs.bounds import Bounds

from pinfold.backend import ScopeRequest
from pinfold.errors import Unsupported, UsageError
from pinfold.limits import Limits
from pinfold.policy import Policy
from pinfold.runs.request import Request
from pinfold.runs.stdio import DEVNULL, PIPE, STDOUT, Stdio

TIMES = ("timeout", "idle_timeout", "cpu_timeout", "stall_timeout", "grace")
BAD_SPANS = (-1, math.nan, "", "abc", "5M", True, [], 10**30)


def ids(value):
    return ascii(value)[:40]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        *[({name: bad}, name) for name in TIMES for bad in BAD_SPANS],
        ({"grace": False}, "grace"),
        ({"stop_signal": "NOPE"}, "stop_signal"), ({"stop_signal": 0, "timeout": 1}, "stop_signal"),
        ({"stop_signal": None, "timeout": 1}, "stop_signal"),
        ({"strays": "maybe"}, "strays"), ({"strays": None}, "strays"), ({"strays": []}, "strays"),
        ({"limits": 5}, "limits"), ({"limits": {"bogus": 1}}, "limits: bogus"), ({"limits": {1: 2}}, "limits: 1"),
        ({"limits": {"memory_max": "64MB"}}, "memory_max"), ({"limits": {"pids_max": 0}}, "pids_max"),
        ({"limits": {"cpu_max": "lots"}}, "cpu_max"),
        ({"policy": "plain"}, "policy"), ({"policy": {"bogus": 1}}, "policy: bogus"),
        ({"policy": {"profile": "x"}}, "profile"), ({"policy": {"umask": "022"}}, "umask"),
        ({"output_limit": -1}, "output_limit"), ({"output_limit": "64MB"}, "output_limit"),
        ({"output_limit": 1.5}, "output_limit"), ({"output_limit": True}, "output_limit"),
        ({"input": "text"}, "input"), ({"input": 5}, "input"), ({"input": ["a"], "text": True}, "input"),
        ({"input": b"", "stdin": DEVNULL}, "input"), ({"input": b"", "stdin": 0}, "input"),
        ({"input": "é", "encoding": "ascii"}, "input"),
        ({"capture_output": True, "stdout": DEVNULL}, "capture_output"),
        ({"capture_output": True, "stderr": STDOUT}, "capture_output"),
        ({"encoding": "no-such-encoding"}, "encoding"), ({"encoding": 5}, "encoding"),
        ({"encoding": "base64"}, "encoding"),
        ({"env": []}, "env"), ({"env": {"A": 1}}, "environment variable A"), ({"cwd": 5}, "cwd"),
        ({"user": "no-such-user"}, "user"), ({"group": "no-such-group"}, "group"),
    ],
    ids=ids,
)  # fmt: skip
def test_a_bad_argument_is_refused_by_name(options, named):
    with pytest.raises(UsageError, match=f"^{named}"):
        Request.of(["true"], **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"stdin": STDOUT}, "stdin"), ({"stdout": STDOUT}, "stdout"), ({"stdout": -9}, "stdout"),
        ({"stdout": 1.5}, "stdout"), ({"stdout": True}, "stdout"), ({"stdout": b"/dev/null"}, "stdout"),
        ({"stderr": []}, "stderr"), ({"stdout": PIPE, "stderr": object()}, "stderr"), ({"stdin": "a\0b"}, "stdin"),
    ],
    ids=ids,
)  # fmt: skip
def test_a_bad_stream_is_refused_by_name_and_leaves_no_fd_open(options, named):
    request, io = Request.of(["true"], **options), Stdio()
    with pytest.raises(UsageError, match=f"^{named}"):
        request.stdio.open(io)
    io.close()


def test_an_fd_that_is_closed_is_the_callers_error():
    io = Stdio()
    with pytest.raises(OSError, match="Bad file descriptor"):
        Request.of(["true"], stdin=PIPE, stdout=99999).stdio.open(io)
    io.close()


@pytest.mark.parametrize("option", ["bogus", "shell", "preexec_fn", "check"])
def test_an_unknown_keyword_is_a_type_error_that_names_it(option):
    with pytest.raises(TypeError, match=option):
        Request.of(["true"], **{option: True})


@pytest.mark.parametrize("watched", [{"idle_timeout": 1}, {"output_limit": 10}])
def test_streams_that_the_caller_reads_cannot_be_watched(watched):
    with pytest.raises(UsageError, match="idle_timeout and output_limit"):
        Request.of(["true"], manual=True, stdout=PIPE, **watched)
    assert Request.of(["true"], manual=True, stdout=DEVNULL, **watched).stdio.watched


def test_times_become_seconds_and_signals_numbers():
    bounds = Request.of(
        ["true"], timeout="1min 30s", grace=timedelta(seconds=2), idle_timeout=3, cpu_timeout="4", stop_signal="INT",
        stall_timeout="5s",
    ).bounds  # fmt: skip
    assert bounds == Bounds(timeout=90.0, grace=2.0, idle=3.0, cpu=4.0, signal=2, stall=5.0)


@pytest.mark.parametrize("timeout", [None, "infinity", math.inf])
def test_no_timeout_is_infinite(timeout):
    assert Request.of(["true"], timeout=timeout).bounds == Bounds()


@pytest.mark.parametrize("name", ["timeout", "idle_timeout", "cpu_timeout", "stall_timeout"])
def test_zero_is_a_limit_and_not_the_lack_of_one(name):
    bounds = Request.of(["true"], **{name: 0}).bounds
    assert getattr(bounds, name.removesuffix("_timeout")) == 0


@pytest.mark.parametrize(
    ("options", "controllers"),
    [
        ({}, set()), ({"limits": {}}, set()), ({"limits": {"nofile": 5}}, set()), ({"unit": "x.scope"}, set()),
        ({"stall_timeout": 5}, {"memory"}), ({"limits": {"memory_max": "64M"}}, {"memory"}),
        ({"limits": {"memory_low": "1M", "pids_max": 5}}, {"memory", "pids"}),
        ({"limits": {"cpu_max": 1}, "stall_timeout": "5s"}, {"cpu", "memory"}),
        ({"limits": {"cpuset_cpus": "0", "io_weight": 5, "hugetlb": "2MB=0"}}, {"cpuset", "io", "hugetlb"}),
    ],
    ids=ids,
)  # fmt: skip
def test_a_run_asks_for_the_controllers_that_its_limits_need_and_no_others(options, controllers):
    assert Request.of(["true"], **options).asked.controllers == controllers


def test_limits_may_be_a_mapping_of_their_fields():
    limits = Limits(memory_max="64M", nofile=(5, 6))
    request = Request.of(["true"], limits={"memory_max": "64M", "nofile": "5:6"})
    assert request == Request.of(["true"], limits=limits)._replace(command=request.command, stdio=request.stdio)
    assert request.asked.limits == limits
    assert request.rlimits == {resource.RLIMIT_NOFILE: (5, 6)}


def test_without_limits_unit_or_stall_guard_nothing_is_asked_of_the_home():
    request = Request.of(["true"])
    assert (request.asked, request.rlimits) == (ScopeRequest(), {})


def test_the_unit_of_a_run_is_described_by_its_command_in_one_printable_line():
    asked = Request.of(["/bin/sh", "-c", "echo \x1b[31m\n" + "x" * 500], unit="job").asked
    assert (asked.unit, asked.limits) == ("job", None)
    assert asked.description.startswith("/bin/sh -c echo ?[31m?xxx")
    assert len(asked.description) == 120
    assert asked.description.isprintable()


def test_a_policy_may_be_a_mapping_of_its_fields():
    assert Request.of(["true"], policy={"umask": 0}).policy == Policy(umask=0)
    assert Request.of(["true"], policy=Policy(umask=0)).policy == Policy(umask=0)
    with pytest.raises(Unsupported, match="not available yet"):
        Request.of(["true"], policy={"profile": "hardened"})


@pytest.mark.parametrize("data", [b"\xff", bytearray(b"\xff"), memoryview(b"\xff")])
def test_input_may_be_any_bytes_and_makes_stdin_a_pipe(data):
    plan = Request.of(["cat"], input=data).stdio
    assert (plan.input, plan.stdin) == (b"\xff", PIPE)


def test_input_text_is_encoded_with_surrogates_as_the_bytes_they_stand_for():
    assert Request.of(["cat"], input="é\udcff", encoding="utf-8").stdio.input == b"\xc3\xa9\xff"
    assert Request.of(["cat"], input="e", text=True).stdio.input == b"e"


@pytest.mark.parametrize(
    ("options", "data", "expected"),
    [
        ({}, b"a\r\n\xff", b"a\r\n\xff"),
        ({"text": False}, b"a", b"a"),
        ({"encoding": "utf-8"}, b"a\xffb", "a\udcffb"),
        ({"encoding": "utf-8"}, b"1\r\n2\r3\n", "1\n2\n3\n"),
        ({"encoding": "latin-1", "text": True}, b"\xe9", "é"),
        ({"encoding": "utf-8"}, None, None),
        ({"encoding": "utf-8"}, b"", ""),
    ],
)
def test_captured_bytes_come_back_as_asked(options, data, expected):
    assert Request.of(["true"], **options).decode(data) == expected


def test_text_means_the_locales_encoding(monkeypatch):
    monkeypatch.setattr("locale.getencoding", lambda: "latin-1")
    assert Request.of(["true"], text=True).decode(b"\xe9") == "é"


@pytest.mark.parametrize(("encoding", "data"), [("utf-16-le", b"a\0b"), ("iso2022_jp", b"\x1b$Axx")])
def test_output_that_breaks_off_in_the_middle_of_a_character_loses_nothing_else(encoding, data):
    assert isinstance(Request.of(["true"], encoding=encoding).decode(data), str)
