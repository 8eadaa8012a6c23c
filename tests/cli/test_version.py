"""`pinfold version`, `--help`, and the names of the subcommands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest


def ask(*arguments, program=None):
    command = program or [Path(sys.executable).with_name("pinfold")]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=20, check=False)


def test_version_for_people():
    ended = ask("version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"pinfold {version('pinfold')}\n", "")


def test_version_for_programs():
    facts = json.loads(ask("version", "--json").stdout)
    assert facts["pinfold"] == version("pinfold")
    assert facts["kernel"] == os.uname().release
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))


def test_module_is_the_same_program():
    assert ask("version", program=[sys.executable, "-m", "pinfold"]).stdout == ask("version").stdout


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("run", "--help"), ("version", "--help")])
def test_help_is_on_stdout(arguments):
    ended = ask(*arguments)
    assert ended.returncode == 0
    assert ended.stdout.startswith("Usage: pinfold")
    assert ended.stderr == ""


def test_help_of_run_tells_the_exit_statuses():
    assert {"124", "125", "126", "127", "128+N"} <= set(ask("run", "--help").stdout.replace(";", " ").split())


def test_no_subcommand_shows_the_help():
    ended = ask()
    assert ended.returncode != 0
    assert "Usage:" in ended.stderr
    assert ended.stdout == ""


def test_version_into_a_closed_pipe_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    try:
        command = [Path(sys.executable).with_name("pinfold"), "version"]
        ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=20, check=False)
    finally:
        os.close(write)
    assert b"Traceback" not in ended.stderr
