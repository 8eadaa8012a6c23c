"""Every wrong value: one clear line, the right status, nothing run and nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

USAGE = [
    (["--"], "no command"),
    ([], "no command"),
    ([""], "empty"),
    (["--nonsense", "true"], "--nonsense"),
    (["-Z", "true"], "-Z"),
    (["--timeout"], "--timeout"),
    *(
        (["--timeout", value, "true"], "--timeout")
        for value in ("", " ", "abc", "5M", "1 month", "10" * 12, "-1", "nan")
    ),
    (["--timeout", "0", "true"], "--timeout 0"),
    *((["--grace", value, "true"], "--grace") for value in ("-1", "nan", "x", "1e3")),
    *((["--idle-timeout", value, "true"], "--idle-timeout") for value in ("0", "-1", "nan", "")),
    *((["--cpu-timeout", value, "true"], "--cpu-timeout") for value in ("0", "-1", "nan", "")),
    *((["--output-limit", value, "true"], "--output-limit") for value in ("64MB", "-1", "", "x", "nan", "1e9", "16E")),
    (["--output-limit", "64MB", "true"], "two readings"),
    *((["--memory", value, "true"], "memory") for value in ("64MB", "-1", "", "x")),
    *((["--pids", value, "true"], "pids") for value in ("0", "-1", "", "1.5", "many")),
    *((["--cpus", value, "true"], "cpu") for value in ("0", "-1", "nan", "inf", "many", "")),
    *(
        ([option, value, "true"], option.removeprefix("--").replace("-", "_"))
        for option in ("--memory-high", "--memory-low", "--cpu-weight", "--io-weight", "--cpuset-cpus", "--cpuset-mems")
        for value in ("-1", "", "x", "1e3")
    ),
    *((["--swap", value, "true"], "memory_swap_max") for value in ("64MB", "-1", "")),
    *((["--io-max", value, "true"], "io_max") for value in ("", "8:0", "8:0 bps=1", "/no-such-device rbps=1")),
    *((["--hugetlb", value, "true"], "hugetlb") for value in ("", "2MB", "2M=1", "2MB=1MB")),
    *((["--rlimit", value, "true"], "--rlimit") for value in ("", "nofile", "files=5", "=5", "NOFILE=5", "as_=5")),
    *((["--rlimit", value, "true"], "nofile") for value in ("nofile=", "nofile=1K", "nofile=2:1", "nofile=-1")),
    *((["--stall-timeout", value, "true"], "--stall-timeout") for value in ("0", "-1", "nan", "")),
    (["--memory", "64M", "-p", "MemoryMax=64M", "true"], "memory_max is asked for twice"),
    (["--rlimit", "core=0", "-p", "LimitCORE=0", "true"], "core is asked for twice"),
    (["-p", "CPUQuotaPeriodSec=50ms", "true"], "cpu_period_usec"),
    (["--backend", "cgroupfs", "--slice", "x.slice", "true"], "cgroupfs makes none"),
    (["--backend", "cgroupfs", "--unit", "x.scope", "true"], "cgroupfs makes none"),
    (["-p", "MemoryMax", "true"], "NAME=VALUE"),
    (["-p", "MemoryMax=0", "true"], "MemoryMax"),
    (["-p", "Memorymax=1M", "true"], "known are"),
    (["-p", "=1M", "true"], "known are"),
    (["-p", "CPUQuota=2", "true"], "percentage"),
    (["--user", "no-such-user-here", "true"], "no-such-user-here"),
    (["--user", "", "true"], "user"),
    (["--user", "4294967295", "true"], "user"),
    (["--user", "99999999999", "true"], "user"),
    *((["--signal", value, "true"], "signal") for value in ("NOPE", "0", "-1", "65", "")),
    (["--strays", "maybe", "true"], "--strays"),
    (["--profile", "soft", "true"], "--profile"),
    (["--backend", "docker", "true"], "--backend"),
    (["--backend", "systemd", "true"], "systemd"),
    (["--profile", "hardened", "true"], "hardened"),
    (["--env", "PINFOLD_NOT_SET_HERE", "true"], "PINFOLD_NOT_SET_HERE"),
    (["--env", "=x", "true"], "environment name"),
    (["--env", "", "true"], "--env"),
    (["--chdir", "/no-such-directory", "true"], "/no-such-directory"),
    (["--chdir", "/etc/passwd", "true"], "/etc/passwd"),
    (["--chdir", "", "true"], ""),
    (["--result-fd", "one", "true"], "--result-fd"),
]


@pytest.mark.parametrize(
    ("arguments", "named"), USAGE, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_wrong_usage_is_one_line_and_125(pinfold, arguments, named):
    ended = pinfold(*arguments)
    assert ended.code == 125, ended
    assert len(ended.err.splitlines()) == len(ended.lines) == 1, ended.err
    assert named in ended.err
    assert ended.out == b""


def _script(directory, text, mode=0o755):
    file = directory / "script"
    file.write_bytes(text)
    file.chmod(mode)
    return file


@pytest.mark.parametrize(
    ("text", "mode", "errno", "told"),
    [
        (b"#!/bin/sh\n", 0o644, "EACCES", "not executable"),
        (b"#!/no/such/interpreter\n", 0o755, "ENOENT", "interpreter"),
        (b"echo no first line\n", 0o755, "ENOEXEC", "#! line"),
        (b"", 0o755, "ENOEXEC", "#! line"),
        (b"\x7fELF" + bytes(60), 0o755, "ENOEXEC", "no program of this machine"),
    ],
)
def test_file_that_cannot_be_executed_is_126(pinfold, tmp_path, text, mode, errno, told):
    ended = pinfold(_script(tmp_path, text, mode))
    assert (ended.code, ended.result["error"]["errno"]) == (126, errno)
    assert len(ended.err.splitlines()) == 1
    assert told in ended.err


def test_directory_is_126_and_said_to_be_one(pinfold, tmp_path):
    ended = pinfold(tmp_path)
    assert ended.code == 126
    assert "directory" in ended.err


def test_path_through_a_file_is_127(pinfold, tmp_path):
    (tmp_path / "file").touch()
    assert pinfold(tmp_path / "file" / "x").code == 127


def test_name_that_is_too_long(pinfold):
    ended = pinfold("x" * 300)
    assert ended.code in (126, 127)
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("arguments", ["['true', 'x' * 200_000]", "['--env=X=' + 'x' * 200_000, 'true']"])
def test_argument_that_is_too_long_is_126(cgroup2, arguments):
    # One string may have 128 KiB (execve(2)), ours too: so main() is handed what no caller could pass.
    program = f"from pinfold.cli.main import main; main(['run', *{arguments}])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 126
    assert ended.stderr.count("\n") == 1
    assert "too long" in ended.stderr


@pytest.mark.parametrize("gone", [True, False])
def test_directory_of_the_caller_that_is_gone(start, tmp_path, gone):
    directory = tmp_path / "gone"
    directory.mkdir()
    line = f'cd {directory} && {"rmdir " + str(directory) if gone else ":"} && exec "$@"'
    process = start("echo", "ran", before=("sh", "-c", line, "sh"))
    out, err = process.communicate(timeout=20)
    # From a path with spaces pip makes `pinfold` a script of /bin/sh, which has its own word on this.
    ours = [line for line in err.splitlines() if not line.startswith(b"sh: 0: getcwd() failed")]
    assert (process.returncode, out, ours) == (0, b"ran\n", [])


def test_unknown_subcommand_is_one_line():
    ended = subprocess.run(
        [Path(sys.executable).with_name("pinfold"), "nonsense"], capture_output=True, text=True, timeout=20, check=False
    )
    assert ended.returncode != 0
    assert ended.stderr.startswith("pinfold: ")
    assert ended.stderr.count("\n") == 1


def test_bytes_that_are_no_utf8_pass_through(pinfold):
    data = bytes(range(1, 256))
    ended = pinfold("--env", b"V=" + data, "sh", "-c", 'printf %s "$1" "$V"', "sh", data)
    assert (ended.code, ended.out) == (0, data + data)


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_bytes_that_are_no_utf8_pass_in_any_locale(pinfold, locale):
    ended = pinfold("printf", "%s", b"\xe9\xff\xc3\xa9", env={**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0"})
    assert (ended.code, ended.out) == (0, b"\xe9\xff\xc3\xa9")


def test_our_lines_can_be_written_in_an_ascii_locale(pinfold):
    ended = pinfold("nö-such\udcff", env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert ended.code == 127
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    [
        ["echo", "-t", "5", "--timeout", "x", "--help", "--"],
        ["--", "echo", "-v"],
        ["echo", "--", "x"],
        ["--", "echo", "--nonsense"],
    ],
)
def test_options_after_the_command_belong_to_the_command(pinfold, command):
    ended = pinfold(*command)
    expected = command[2:] if command[0] == "--" else command[1:]
    assert (ended.code, ended.out.decode().split()) == (0, expected)


def test_command_may_look_like_an_option_after_two_dashes(pinfold, tmp_path):
    (tmp_path / "-t").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "-t").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert pinfold("--", "-t", env={**os.environ, "PATH": path}).out == b"ran\n"


@pytest.mark.parametrize("option", ["--memory=64MB", "-pMemoryMax=64MB", "--rlimit=nofile=1K", "--io-max=8:0"])
def test_nothing_is_made_for_a_limit_that_is_none(pinfold, tmp_path, option):
    made = tmp_path / "made"
    ended = pinfold(option, "--result", tmp_path / "second", "touch", made)
    assert (ended.code, ended.result) == (125, None)
    assert not made.exists()
    assert not (tmp_path / "second").exists()
