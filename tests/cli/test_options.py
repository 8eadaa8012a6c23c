"""Options that change what the command is given, and how it is ended."""

from __future__ import annotations

import os
import pwd

import pytest

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users")


class TestEnvironment:
    def test_is_ours_by_default(self, pinfold):
        env = {**os.environ, "PINFOLD_TEST": "ours"}
        out = pinfold("env", "-0", env=env).out
        assert set(out.rstrip(b"\0").split(b"\0")) == {f"{k}={v}".encode() for k, v in env.items()}

    def test_env_sets_and_replaces(self, pinfold):
        ended = pinfold(
            "-E",
            "A=1",
            "--env",
            "B=x=y",
            "--env=C=",
            "sh",
            "-c",
            'echo "$A,$B,${C-unset}"',
            env=os.environ | {"A": "0"},
        )
        assert ended.out == b"1,x=y,\n"

    def test_clear_env_leaves_only_what_is_set_or_passed_on(self, pinfold):
        env = {**os.environ, "KEPT": "kept", "GONE": "gone"}
        out = pinfold("--clear-env", "-E", "KEPT", "-E", "NEW=new", "env", env=env).out
        assert sorted(out.split()) == [b"KEPT=kept", b"NEW=new"]

    def test_clear_env_finds_programs_on_the_default_path(self, pinfold):
        assert pinfold("--clear-env", "env").out == b""

    def test_program_is_looked_up_on_the_path_of_the_command(self, pinfold, tmp_path):
        (tmp_path / "only-here").write_text("#!/bin/sh\necho found\n")
        (tmp_path / "only-here").chmod(0o755)
        assert pinfold("-E", f"PATH={tmp_path}:{os.environ['PATH']}", "only-here").out == b"found\n"
        assert pinfold("only-here").code == 127


class TestDirectory:
    def test_chdir(self, pinfold, tmp_path):
        (tmp_path / "there").mkdir()
        assert pinfold("-C", tmp_path / "there", "pwd", "-P").out.decode().strip() == os.path.realpath(
            tmp_path / "there"
        )

    def test_program_and_result_with_relative_names(self, pinfold, tmp_path):
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "program").write_text("#!/bin/sh\necho relative\n")
        (tmp_path / "there" / "program").chmod(0o755)
        ended = pinfold("-C", "there", "--result", "here.json", "./program", result=False, cwd=tmp_path)
        assert ended.out == b"relative\n"
        assert (tmp_path / "here.json").exists(), "--result is relative to our directory, not to the command's"

    def test_directory_whose_name_is_no_text(self, pinfold, tmp_path):
        directory = os.fsencode(tmp_path) + b"/\xff"
        os.mkdir(directory)
        assert pinfold("-C", directory, "true").code == 0


@root_only
class TestUser:
    @pytest.mark.parametrize("by", ["name", "uid"])
    def test_user_brings_its_ids_and_groups(self, pinfold, by):
        nobody = pwd.getpwnam("nobody")
        user = "nobody" if by == "name" else str(nobody.pw_uid)
        ended = pinfold("--user", user, "sh", "-c", "id -u; id -g; id -G; grep -E 'Cap(Eff|Prm|Amb)' /proc/self/status")
        uid, gid, groups, *caps = ended.out.decode().splitlines()
        assert (int(uid), int(gid)) == (nobody.pw_uid, nobody.pw_gid)
        assert sorted(map(int, groups.split())) == sorted(os.getgrouplist("nobody", nobody.pw_gid))
        assert {line.split()[1] for line in caps} == {"0" * 16}

    def test_user_cannot_leave_its_cgroup(self, pinfold, cgroup2):
        ended = pinfold("--user", "nobody", "sh", "-c", f"echo $$ > {cgroup2}/cgroup.procs")
        assert ended.code != 0
        assert ended.out == b""
        assert ended.result["receipt"]["escaped_processes"] == []

    def test_strays_of_another_user_are_killed(self, pinfold):
        ended = pinfold("--user", "nobody", "sh", "-c", "setsid sleep 30 & sleep 0.2")
        assert (ended.code, ended.result["receipt"]["strays"]) == (0, 1)

    def test_program_out_of_reach_of_the_user(self, pinfold, tmp_path):
        (tmp_path / "closed").mkdir(mode=0o700)
        (tmp_path / "closed" / "program").write_text("#!/bin/sh\n")
        (tmp_path / "closed" / "program").chmod(0o755)
        ended = pinfold("--user", "nobody", tmp_path / "closed" / "program")
        assert ended.code == 126
        assert len(ended.err.splitlines()) == 1


class TestStrays:
    LINE = "(sleep 0.4; echo late) & echo early"

    def test_wait_waits_for_them_and_their_output(self, pinfold):
        ended = pinfold("--strays", "wait", "sh", "-c", self.LINE + "; exit 3")
        assert (ended.code, ended.out, ended.err) == (3, b"early\nlate\n", "")
        assert ended.result["receipt"]["strays"] == 0

    def test_kill_does_not(self, pinfold):
        ended = pinfold("--strays", "kill", "sh", "-c", self.LINE)
        assert ended.out == b"early\n"
        assert ended.wall < 3

    def test_wait_ends_with_the_timeout(self, pinfold):
        ended = pinfold("--strays", "wait", "--timeout", "500ms", "sh", "-c", "setsid sleep 30 & exit 0")
        assert (ended.code, ended.result["outcome"], ended.result["returncode"]) == (124, "timed_out", 0)
        assert ended.result["receipt"]["strays"] == 1


class TestGrace:
    TRAP = "trap 'echo got {0}; exit 5' {0}; echo ready; while :; do sleep 0.05; done"

    @pytest.mark.parametrize("name", ["TERM", "INT", "USR1"])
    def test_signal_comes_first_and_may_be_obeyed(self, pinfold, name):
        options = [] if name == "TERM" else ["--signal", name]
        ended = pinfold("--timeout", "500ms", "--grace", "10", *options, "sh", "-c", self.TRAP.format(name))
        assert ended.out == f"ready\ngot {name}\n".encode()
        assert (ended.code, ended.result["outcome"], ended.result["returncode"]) == (124, "timed_out", 5)
        assert ended.wall < 5

    def test_kill_comes_after_the_grace(self, pinfold):
        ended = pinfold(
            "-t", "300ms", "-k", "400ms", "-s", "15", "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"
        )
        assert (ended.code, ended.result["returncode"]) == (124, -9)
        assert 700_000 <= ended.result["duration_usec"] < 3_000_000

    def test_without_grace_no_signal_is_sent(self, pinfold):
        ended = pinfold("--timeout", "300ms", "sh", "-c", self.TRAP.format("TERM"))
        assert (ended.out, ended.result["returncode"]) == (b"ready\n", -9)

    def test_descendants_get_the_signal_and_the_rest_of_the_grace(self, pinfold):
        child = 'trap "sleep 0.3; echo child done; exit" TERM; while :; do sleep 0.05; done'
        line = f"sh -c '{child}' & trap exit TERM; wait"
        ended = pinfold("--timeout", "400ms", "--grace", "10", "sh", "-c", line)
        assert ended.out == b"child done\n"

    def test_stopped_command_gets_the_signal_too(self, pinfold):
        ended = pinfold("-t", "500ms", "-k", "10", "sh", "-c", "trap 'echo bye; exit' TERM; kill -STOP $$; sleep 30")
        assert (ended.code, ended.out) == (124, b"bye\n")


class TestIdle:
    def test_silence_is_a_timeout(self, pinfold):
        ended = pinfold("--idle-timeout", "400ms", "sh", "-c", "echo; sleep 0.2; echo; sleep 30")
        assert (ended.code, ended.result["outcome"], ended.out) == (124, "idle_timed_out", b"\n\n")
        assert 600_000 <= ended.result["duration_usec"] < 3_000_000

    @pytest.mark.parametrize("stream", [1, 2])
    def test_output_on_either_stream_keeps_it_alive(self, pinfold, stream):
        line = f"for i in 1 2 3 4 5 6; do sleep 0.2; echo >&{stream}; done"
        assert pinfold("--idle-timeout", "800ms", "sh", "-c", line).code == 0


@pytest.mark.parametrize("span", ["300ms", "0.3", ".3s", "300000us", "0min 0.3s"])
def test_ways_to_say_a_time(pinfold, span):
    ended = pinfold("--timeout", span, "sleep", "30")
    assert ended.code == 124
    assert 300_000 <= ended.result["duration_usec"] < 2_000_000


def test_infinity_is_no_limit(pinfold):
    assert pinfold("--timeout", "infinity", "--idle-timeout", "inf", "true").code == 0


def test_the_last_of_an_option_counts(pinfold):
    assert pinfold("--timeout", "1us", "--timeout", "20", "true").code == 0


def test_signals_are_those_of_a_fresh_process(pinfold):
    ended = pinfold("grep", "-E", "Sig(Ign|Blk)", "/proc/self/status")
    assert {value.split()[-1].strip("0") for value in ended.out.decode().splitlines()} == {""}


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_the_umask_is_the_callers(pinfold, umask):
    """As under env(1) and timeout(1)."""
    before = os.umask(umask)
    try:
        assert int(pinfold("sh", "-c", "umask").out, 8) == umask
    finally:
        os.umask(before)


def test_core_files_are_not_made(pinfold, tmp_path):
    pinfold("sh", "-c", "ulimit -c; kill -ABRT $$", cwd=tmp_path)
    assert not list(tmp_path.glob("core*"))
