"""Errors: one tree, the standard library's classes beside it, facts that survive."""

from __future__ import annotations

import copy
import errno
import pickle
import subprocess

import pytest

import pinfold
from pinfold import errors, run_errors

ENOENT = OSError(errno.ENOENT, "No such file or directory")


EXAMPLES = [
    errors.UsageError("timeout -1: must not be negative"),
    errors.Unsupported("feature", "found", "fix"),
    errors.NoCgroup2("cgroup v2", "not mounted", "mount it"),
    errors.NotDelegated("a cgroup of our own", "uid 1 may not", "ask"),
    errors.NoSystemd("systemd", "no bus", "start it"),
    errors.CgroupError("write", "/x/memory.max", OSError(errno.EBUSY, "Device or resource busy"), "1"),
    errors.SpawnError("cwd", errno.ENOENT, "'sh'", "the directory is '/x'"),
    errors.CommandNotFound("exec", errno.ENOENT, "'nope'", "not found on PATH '/bin'"),
    errors.CommandNotExecutable("exec", errno.EACCES, "'/etc'", "it is a directory"),
    errors.UnitError("x.scope", "start", "the job failed", "see the journal"),
]
OF_A_RESULT = {
    run_errors.TimeoutExpired: lambda a_result: run_errors.TimeoutExpired(a_result(outcome="timed_out"), 2.0),
    run_errors.CommandFailed: lambda a_result: run_errors.CommandFailed(a_result(returncode=3)),
}


def test_there_is_an_example_of_every_error():
    public = {
        kind
        for kind in {**vars(errors), **vars(run_errors)}.values()
        if isinstance(kind, type) and issubclass(kind, errors.Error)
    }
    assert public - {type(error) for error in EXAMPLES} - set(OF_A_RESULT) == {errors.Error, run_errors.RunError}


@pytest.mark.parametrize(
    ("kind", "parents"),
    [
        (errors.UsageError, (ValueError,)),
        (errors.NoCgroup2, (errors.Unsupported,)),
        (errors.NotDelegated, (errors.Unsupported,)),
        (errors.NoSystemd, (errors.Unsupported,)),
        (errors.CgroupError, (OSError,)),
        (errors.SpawnError, (OSError,)),
        (errors.CommandNotFound, (errors.SpawnError, FileNotFoundError)),
        (errors.CommandNotExecutable, (errors.SpawnError, PermissionError)),
        (run_errors.TimeoutExpired, (run_errors.RunError, subprocess.TimeoutExpired)),
        (run_errors.CommandFailed, (run_errors.RunError, subprocess.CalledProcessError)),
    ],
)
def test_an_error_is_also_what_existing_handlers_catch(kind, parents):
    assert all(issubclass(kind, parent) for parent in (*parents, pinfold.Error))


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UsageError, 125), (errors.Unsupported, 125), (errors.NoCgroup2, 125), (errors.CgroupError, 125),
        (errors.UnitError, 125),
        (errors.SpawnError, 125), (errors.CommandNotFound, 127), (errors.CommandNotExecutable, 126),
        (run_errors.TimeoutExpired, 124),
    ],
)  # fmt: skip
def test_an_error_has_the_exit_code_of_the_contract(kind, code):
    assert kind.exit_code == code


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (EXAMPLES[1], "feature: found (fix)"),
        (EXAMPLES[5], "write /x/memory.max=1: Device or resource busy"),
        (errors.CgroupError("rmdir", "/x", ENOENT), "rmdir /x: No such file or directory"),
        (EXAMPLES[6], "cannot run 'sh': cwd: No such file or directory (the directory is '/x')"),
        (errors.SpawnError("clone", errno.EAGAIN, "'sh'"), "cannot run 'sh': clone: Resource temporarily unavailable"),
        (EXAMPLES[9], "start x.scope: the job failed (see the journal)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_message_says_what_was_done_and_what_happened(error, text):
    assert str(error) == text


def test_the_message_of_a_failed_command_is_that_of_subprocess(a_result):
    failed = OF_A_RESULT[run_errors.CommandFailed](a_result)
    assert str(failed) == "Command '['sh']' returned non-zero exit status 3."


def test_the_facts_are_attributes():
    unsupported, cgroup, spawn = EXAMPLES[1], EXAMPLES[5], EXAMPLES[7]
    assert (unsupported.feature, unsupported.found, unsupported.fix) == ("feature", "found", "fix")
    assert (cgroup.op, cgroup.file, cgroup.value, cgroup.errno) == ("write", "/x/memory.max", "1", errno.EBUSY)
    assert (spawn.step, spawn.errno, spawn.subject, spawn.errno_name) == ("exec", errno.ENOENT, "'nope'", "ENOENT")
    assert spawn.result is None


def test_an_errno_without_a_name_is_its_number():
    assert errors.SpawnError("clone", 9999, "'sh'").errno_name == "9999"


@pytest.mark.parametrize("example", [*EXAMPLES, *OF_A_RESULT.values()], ids=lambda example: type(example).__name__)
@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy], ids=["pickle", "copy"])
def test_an_error_survives_the_way_to_another_process(a_result, example, again):
    """A process pool whose worker raises what cannot be unpickled breaks, or hangs (multiprocessing.Pool)."""
    error = example if isinstance(example, Exception) else example(a_result)
    other = again(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)
