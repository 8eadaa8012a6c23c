"""The arguments of `run` and `start`: all checked before anything exists, each refusal names its argument."""

from __future__ import annotations

import math
import resource
from datetime import timedelta

import pytest

from pinfold.backend import ScopeRequest
from pinfold.command import PLAIN
from pinfold.errors import Unsupported, UsageError
from pinfold.limits import Limits
from pinfold.policy import Policy
from pinfold.runs.request import plan, plan_again
from pinfold.runs.states import Bounds
from pinfold.runs.stdio import DEVNULL, PIPE, STDOUT, Stdio
from pinfold.spawn.steps import rlimit

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
        ({"policy": {"profile": "x"}}, "profile"), ({"policy": {"umask": 0o22}}, "policy: umask"),
        ({"umask": -1}, "umask"), ({"umask": 0o1000}, "umask"), ({"umask": "022"}, "umask"), ({"umask": 18.5}, "umask"),
        ({"umask": True}, "umask"),
        ({"output_exceeded": "ignore"}, "output_exceeded"), ({"output_exceeded": None}, "output_exceeded"),
        ({"output_exceeded": []}, "output_exceeded"),
        ({"keep_ignored": [0]}, "keep_ignored"), ({"keep_ignored": ["NOPE"]}, "keep_ignored"),
        ({"pass_fds": [-1]}, "pass_fds has -1"), ({"pass_fds": [99999]}, "pass_fds has 99999"),
        ({"pass_fds": [True]}, "pass_fds has True"), ({"pass_fds": [2**40]}, "pass_fds has"),
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
        plan(["true"], **options)


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
    wanted, io = plan(["true"], **options), Stdio()
    with pytest.raises(UsageError, match=f"^{named}"):
        wanted.stdio.open(io)
    io.close()


def test_an_fd_that_is_closed_is_the_callers_error():
    io = Stdio()
    with pytest.raises(OSError, match="Bad file descriptor"):
        plan(["true"], stdin=PIPE, stdout=99999).stdio.open(io)
    io.close()


@pytest.mark.parametrize("option", ["bogus", "shell", "preexec_fn", "check"])
def test_an_unknown_keyword_is_a_type_error_that_names_it(option):
    with pytest.raises(TypeError, match=option):
        plan(["true"], **{option: True})


@pytest.mark.parametrize("watched", [{"idle_timeout": 1}, {"output_limit": 10}])
def test_streams_that_the_caller_reads_cannot_be_watched(watched):
    with pytest.raises(UsageError, match="idle_timeout and output_limit"):
        plan(["true"], manual=True, stdout=PIPE, **watched)
    assert plan(["true"], manual=True, stdout=DEVNULL, **watched).stdio.watched


def test_times_become_seconds_and_signals_numbers():
    bounds = plan(
        ["true"], timeout="1min 30s", grace=timedelta(seconds=2), idle_timeout=3, cpu_timeout="4", stop_signal="INT",
        stall_timeout="5s",
    ).bounds  # fmt: skip
    assert bounds == Bounds(timeout=90.0, grace=2.0, idle=3.0, cpu=4.0, signal=2, stall=5.0)


@pytest.mark.parametrize("timeout", [None, "infinity", math.inf])
def test_no_timeout_is_infinite(timeout):
    assert plan(["true"], timeout=timeout).bounds == Bounds()


@pytest.mark.parametrize("name", ["timeout", "idle_timeout", "cpu_timeout", "stall_timeout"])
def test_zero_is_a_limit_and_not_the_lack_of_one(name):
    bounds = plan(["true"], **{name: 0}).bounds
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
    assert plan(["true"], **options).asked.controllers == controllers


def test_limits_may_be_a_mapping_of_their_fields():
    limits = Limits(memory_max="64M", nofile=(5, 6))
    wanted = plan(["true"], limits={"memory_max": "64M", "nofile": "5:6"})
    assert wanted == plan(["true"], limits=limits)
    assert wanted.asked.limits == limits


def test_limits_of_processes_are_steps_of_the_child():
    assert rlimit(resource.RLIMIT_NOFILE, 5, 6) in plan(["true"], limits={"nofile": "5:6"}).steps
    assert rlimit(resource.RLIMIT_NOFILE, 5, 6) not in plan(["true"]).steps


def test_without_limits_unit_or_stall_guard_nothing_is_asked_of_the_backend():
    assert plan(["true"]).asked == ScopeRequest()


def test_the_unit_of_a_run_is_described_by_its_command_in_one_printable_line():
    asked = plan(["/bin/sh", "-c", "echo \x1b[31m\n" + "x" * 500], unit="job").asked
    assert (asked.unit, asked.limits) == ("job", None)
    assert asked.description.startswith("/bin/sh -c echo ?[31m?xxx")
    assert len(asked.description) == 120
    assert asked.description.isprintable()


def test_a_policy_may_be_a_mapping_of_its_fields():
    assert plan(["true"], policy={"no_new_privs": False}).policy == Policy(no_new_privs=False)
    assert plan(["true"], policy=Policy(no_new_privs=False)).policy == Policy(no_new_privs=False)
    assert plan(["true"]).policy == Policy()
    with pytest.raises(Unsupported, match="not available yet"):
        plan(["true"], policy={"profile": "hardened"})


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({}, {}),
        ({"umask": 0}, {"umask": 0}), ({"umask": 0o777}, {"umask": 0o777}), ({"umask": None}, {"umask": None}),
        ({"core_files": True}, {"core_files": True}), ({"start_new_session": False}, {"new_session": False}),
        ({"keep_ignored": ["INT", 13]}, {"keep_ignored": (2, 13)}),
        ({"pass_fds": [2, 1, 1, 0]}, {}), ({"pass_fds": (), "keep_ignored": []}, {}),
    ],
    ids=ids,
)  # fmt: skip
def test_what_a_command_inherits_is_plain_but_for_what_was_asked(options, changed):
    wanted = plan(["true"], **options)
    assert wanted.command.attributes == PLAIN._replace(**changed)
    assert (wanted.steps == plan(["true"]).steps) == (not changed)


def test_the_descriptors_that_are_passed_are_kept_once_and_in_order(tmp_path):
    with open(tmp_path / "a", "w") as one, open(tmp_path / "b", "w") as two:
        fds = [one.fileno(), two.fileno()]
        assert plan(["true"], pass_fds=[*reversed(fds), *fds]).command.attributes.keep_fds == tuple(sorted(fds))


@pytest.mark.parametrize(("asked", "kills"), [({}, False), ({"output_exceeded": "truncate"}, False),
                                              ({"output_exceeded": "kill"}, True)])  # fmt: skip
def test_a_run_ends_at_its_output_limit_only_if_asked_to(asked, kills):
    assert plan(["true"], output_limit=5, **asked).kill_at_limit == kills


# ---- a call that repeats the last one ----


AGAIN = {"capture_output": True, "timeout": 5}


def test_what_was_asked_for_the_last_time_is_not_checked_again():
    first = plan_again(["echo", "1"], dict(AGAIN))
    assert plan_again(["echo", "1"], dict(AGAIN)) is first
    assert first == plan(["echo", "1"], **AGAIN)


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        (["echo", "2"], AGAIN), (["echo"], AGAIN), (["echo", "1", "1"], AGAIN), (["echo", b"1"], AGAIN),
        (["echo", "1"], {"capture_output": True, "timeout": 6}), (["echo", "1"], {"capture_output": True}),
        (["echo", "1"], {"capture_output": True, "idle_timeout": 5}), (["echo", "1"], {}),
        (["echo", "1"], {**AGAIN, "env": {}}), (["echo", "1"], {**AGAIN, "labels": {"a": "b"}}),
    ],
    ids=ids,
)  # fmt: skip
def test_what_differs_in_anything_is_planned_anew(argv, options):
    plan_again(["echo", "1"], dict(AGAIN))
    assert plan_again(argv, options) == plan(argv, **options)


def test_equal_values_of_another_type_are_another_thing():
    plan_again(["echo"], {"timeout": 1})
    with pytest.raises(UsageError, match=r"^timeout"):
        plan_again(["echo"], {"timeout": True})
    plan_again(["echo", "1"], {})
    with pytest.raises(UsageError, match=r"^argv"):
        plan_again("echo", {})


def test_a_changed_environment_is_seen(monkeypatch):
    plan_again(["echo"], {})
    monkeypatch.setenv("PINFOLD_TEST", "new")
    assert b"PINFOLD_TEST=new" in plan_again(["echo"], {}).command.env
    monkeypatch.delenv("PINFOLD_TEST")
    assert b"PINFOLD_TEST=new" not in plan_again(["echo"], {}).command.env


def test_the_callers_list_may_change_after_the_call():
    argv = ["echo", "1"]
    plan_again(argv, {})
    argv[1] = "2"
    assert plan_again(argv, {}).command.argv == [b"echo", b"2"]
    assert plan_again(["echo", "1"], {}).command.argv == [b"echo", b"1"]


def test_a_refusal_is_not_remembered():
    for _ in range(2):
        with pytest.raises(UsageError, match=r"^timeout"):
            plan_again(["echo"], {"timeout": -1})


# ---- text ----


@pytest.mark.parametrize("data", [b"\xff", bytearray(b"\xff"), memoryview(b"\xff")])
def test_input_may_be_any_bytes_and_makes_stdin_a_pipe(data):
    stdio = plan(["cat"], input=data).stdio
    assert (stdio.input, stdio.stdin) == (b"\xff", PIPE)


def test_input_text_is_encoded_with_surrogates_as_the_bytes_they_stand_for():
    assert plan(["cat"], input="é\udcff", encoding="utf-8").stdio.input == b"\xc3\xa9\xff"
    assert plan(["cat"], input="e", text=True).stdio.input == b"e"


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
    assert plan(["true"], **options).decode(data) == expected


def test_text_means_the_locales_encoding(monkeypatch):
    monkeypatch.setattr("locale.getencoding", lambda: "latin-1")
    assert plan(["true"], text=True).decode(b"\xe9") == "é"


@pytest.mark.parametrize(("encoding", "data"), [("utf-16-le", b"a\0b"), ("iso2022_jp", b"\x1b$Axx")])
def test_output_that_breaks_off_in_the_middle_of_a_character_loses_nothing_else(encoding, data):
    assert isinstance(plan(["true"], encoding=encoding).decode(data), str)
