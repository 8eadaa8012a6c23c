"""`--result` and `--result-fd`: the JSON of the contract, written or refused before anything runs."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

CONTRACT = {
    "schema": int, "run_id": str, "argv": list, "outcome": str, "returncode": int, "pid": int, "started_at": str,
    "duration_usec": int,
    "stdout": {"bytes": (int, None), "kept": (int, None), "truncated": bool},
    "stderr": {"bytes": (int, None), "kept": (int, None), "truncated": bool},
    "usage": {
        "cpu_usage_usec": int, "cpu_user_usec": int, "cpu_system_usec": int, "memory_peak": (int, None),
        "pids_peak": (int, None), "io_rbytes": (int, None), "io_wbytes": (int, None),
        "pressure": {"cpu_some_usec": (int, None), "memory_full_usec": (int, None), "io_full_usec": (int, None)},
    },
    "events": {"oom": (int, None), "oom_kill": (int, None), "pids_max": (int, None)},
    "limits": {"asked": {}, "applied": {}},
    "receipt": {
        "emptied": bool, "strays": int, "stray_processes": list, "kill_rounds": int,
        "kill_to_empty_usec": (int, None), "bytes_after_kill": int, "pipe_held": bool, "stuck_pids": list,
        "removed": bool,
    },
    "placement": {"backend": str, "cgroup": str, "unit": (str, None)},
    "guarantee": str, "error": None,
}  # fmt: skip


def deviations(found, contract, at="result"):
    """Where a value is not of the contract's shape; more keys than it has are no deviation."""
    if isinstance(contract, dict):
        if not isinstance(found, dict):
            return [f"{at} is {found!r}"]
        return [
            deviation
            for key, shape in contract.items()
            for deviation in (deviations(found[key], shape, f"{at}.{key}") if key in found else [f"{at}.{key} missing"])
        ]
    kinds = contract if isinstance(contract, tuple) else (contract,)
    fits = (found is None and None in kinds) or type(found) in kinds
    return [] if fits else [f"{at} is {found!r}"]


def test_shape_is_the_contract(pinfold):
    result = pinfold("--timeout", "500ms", "sh", "-c", "echo; sleep 30").result
    assert deviations(result, CONTRACT) == []
    assert result["schema"] == 1
    assert (result["outcome"], result["returncode"], result["guarantee"]) == ("timed_out", -9, "cooperative")


def test_facts_are_those_of_the_run(pinfold):
    before = datetime.now(UTC)
    result = pinfold("sh", "-c", "echo $$; sleep 0.2").result
    assert result["argv"] == ["sh", "-c", "echo $$; sleep 0.2"]
    assert before - timedelta(seconds=1) <= datetime.fromisoformat(result["started_at"]) <= datetime.now(UTC)
    assert 200_000 <= result["duration_usec"] < 5_000_000
    assert result["placement"]["cgroup"].endswith("run-" + result["run_id"])
    assert result["receipt"] | {"emptied": True, "strays": 0, "stuck_pids": [], "removed": True} == result["receipt"]


def test_pid_is_the_main_process(pinfold):
    ended = pinfold("sh", "-c", "echo $$")
    assert int(ended.out) == ended.result["pid"]


def test_strays_are_named(pinfold):
    result = pinfold("sh", "-c", "setsid sleep 33 & sleep 0.2").result
    receipt = result["receipt"]
    assert (receipt["strays"], receipt["emptied"], receipt["kill_rounds"]) == (1, True, 1)
    stray = receipt["stray_processes"][0]
    assert (stray["comm"], stray["argv"], stray["sid"]) == ("sleep", ["sleep", "33"], stray["pid"])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: unshare -p")
def test_strays_are_counted_and_not_named_where_proc_is_of_another_pid_namespace(start, tmp_path):
    # Its numbers are those of other processes there, and must not be taken for anybody's here.
    line = 'sleep 60 & "$@"; code=$?; kill -0 $! && echo alive; exit $code'
    process = start(
        *("--result", tmp_path / "result", "sh", "-c", "setsid sleep 60 & sleep 0.2; exit 3"),
        before=("unshare", "-p", "-f", "sh", "-c", line, "sh"),
    )
    assert (process.communicate(timeout=20)[0], process.returncode) == (b"alive\n", 3)
    receipt = json.loads((tmp_path / "result").read_text())["receipt"]
    assert (receipt["strays"], receipt["emptied"], receipt["escaped_processes"]) == (1, True, [])
    assert [stray["comm"] for stray in receipt["stray_processes"]] == [None]


@pytest.mark.parametrize("options", [("--idle-timeout", "20"), ("--output-limit", "1M")])
def test_bytes_are_counted_where_they_pass_through_us(pinfold, options):
    result = pinfold(*options, "sh", "-c", "echo four5; echo no >&2").result
    assert result["stdout"] == {"bytes": 6, "kept": 6, "truncated": False}
    assert result["stderr"] == {"bytes": 3, "kept": 3, "truncated": False}


def test_bytes_are_unknown_where_they_do_not(pinfold):
    assert pinfold("echo").result["stdout"] == {"bytes": None, "kept": None, "truncated": False}


def test_result_fd(pinfold):
    read, write = os.pipe()
    try:
        ended = pinfold(
            "--result-fd", str(write), "sh", "-c", f"[ -e /proc/self/fd/{write} ]; exit $?", pass_fds=[write]
        )
        assert ended.code == 1, "the command does not have it"
        assert json.loads(os.read(read, 1 << 16)) == ended.result
    finally:
        os.close(read)
        os.close(write)


def test_result_fd_may_be_stderr(pinfold):
    ended = pinfold("--result-fd", "2", "-q", "sh", "-c", "echo theirs >&2", result=False)
    theirs, ours = ended.err.splitlines()
    assert (theirs, json.loads(ours)["outcome"]) == ("theirs", "exited")


@pytest.mark.parametrize("place", ["no-such-directory/result", ".", "", "r" * 5000])
def test_place_that_cannot_be_written_is_refused_before_anything_runs(pinfold, tmp_path, place):
    ended = pinfold("--result", place, "touch", "ran", result=False, cwd=tmp_path)
    assert ended.code == 125
    assert len(ended.err.splitlines()) == 1
    assert ended.lines[0].startswith("--result ")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("number", ["9", "-1", "1000000", "99999999999999999999"])
def test_descriptor_that_is_not_open_is_refused_before_anything_runs(pinfold, tmp_path, number):
    ended = pinfold(f"--result-fd={number}", "touch", "ran", result=False, cwd=tmp_path)
    assert ended.code == 125
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "ran").exists()


def test_descriptor_for_reading_only_is_refused(pinfold):
    ended = pinfold("--result-fd", "0", "true", result=False)
    assert (ended.code, len(ended.err.splitlines())) == (125, 1)


def test_result_that_cannot_be_kept_is_our_failure(pinfold):
    ended = pinfold("--result", "/dev/full", "true", result=False)
    assert ended.code == 125
    assert len(ended.err.splitlines()) == 1
    assert "/dev/full" in ended.err


def test_result_whose_reader_has_gone_is_our_failure(pinfold):
    read, write = os.pipe()
    os.close(read)
    try:
        ended = pinfold("--result-fd", str(write), "true", result=False, pass_fds=[write])
        assert ended.code == 125
        assert len(ended.err.splitlines()) == 1
    finally:
        os.close(write)


def test_place_that_fails_does_not_cost_the_other_one_nor_our_line(pinfold):
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        ended = pinfold("--result-fd", str(full), "--timeout", "300ms", "sleep", "30", pass_fds=[full])
    finally:
        os.close(full)
    assert ended.code == 125
    assert ended.result["outcome"] == "timed_out"
    assert ended.lines[0].startswith("timed out ")
    assert ended.lines[1:] == [f"the result could not be written to {full}: No space left on device"]


def test_result_that_cannot_be_kept_hides_not_why_nothing_was_started(pinfold):
    ended = pinfold("--result", "/dev/full", "no-such-command-anywhere", result=False)
    assert ended.code == 125
    assert "no-such-command-anywhere" in ended.lines[0]
    assert "/dev/full" in ended.lines[1]


@pytest.mark.parametrize(
    ("refused", "left"),
    [
        (("--timeout", "soon"), "earlier"),
        (("--result-fd", "99"), "earlier"),
        (("--backend", "systemd"), ""),
        (("--user", "no-such-user"), ""),
    ],
)
def test_an_earlier_result_is_gone_once_the_options_are_understood(pinfold, tmp_path, refused, left):
    """Who reads it after a failure must not take it for the present one."""
    place = tmp_path / "place"
    place.write_text("earlier")
    ended = pinfold("--result", place, *refused, "true", result=False)
    assert (ended.code, place.read_text()) == (125, left)


def test_a_result_comes_whole_and_keeps_the_mode_and_the_link_of_the_file(pinfold, tmp_path):
    place, link = tmp_path / "place", tmp_path / "link"
    place.write_text("earlier")
    place.chmod(0o640)
    link.symlink_to(place)
    before = place.stat().st_ino
    seen = pinfold("--result", link, "cat", str(place), result=False)
    assert seen.out == b"", "empty while the command runs"
    assert json.loads(place.read_text())["outcome"] == "exited"
    assert (link.is_symlink(), stat.S_IMODE(place.stat().st_mode)) == (True, 0o640)
    assert place.stat().st_ino != before, "it was renamed into its place"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "place"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any directory")
def test_in_a_directory_that_is_not_ours_the_file_is_written_in_place(pinfold, tmp_path):
    place = tmp_path / "place"
    place.touch()
    tmp_path.chmod(0o555)
    try:
        pinfold("--result", place, "true", result=False)
    finally:
        tmp_path.chmod(0o755)
    assert json.loads(place.read_text())["outcome"] == "exited"


def test_the_file_that_is_our_stdout_is_appended_to(cgroup2, tmp_path):
    log = tmp_path / "log"
    argv = [sys.executable, "-m", "pinfold", "run", "--result", "/dev/stdout", "--", "echo", "important"]
    with log.open("wb") as file:
        assert subprocess.run(argv, stdout=file, timeout=30, check=False).returncode == 0
    first, second = log.read_text().splitlines()
    assert (first, json.loads(second)["outcome"]) == ("important", "exited")


def test_command_that_was_not_started_has_a_result_too(pinfold):
    result = pinfold("no-such-command-anywhere").result
    assert deviations(result, CONTRACT | {"error": dict, "returncode": None, "pid": None, "usage": dict}) == []
    assert (result["error"]["step"], result["error"]["errno"]) == ("exec", "ENOENT")


def test_longer_result_of_an_earlier_run_is_gone(pinfold, tmp_path):
    place = tmp_path / "place"
    place.write_text("x" * 100_000)
    pinfold("--result", place, "true", result=False)
    assert json.loads(place.read_text())["outcome"] == "exited"


def test_arguments_that_are_no_text_stay_valid_json(pinfold):
    ended = pinfold("echo", b"\xff\xfe\x1b\n")
    assert ended.out == b"\xff\xfe\x1b\n\n"
    assert ended.result["argv"] == ["echo", "\\xff\\xfe\x1b\n"]
