"""How a command starts: where it lands, what it brings along, and what is said when it cannot be started."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

import pinfold
from pinfold.command import PLAIN, TRANSPARENT, Identity
from pinfold.runs import request
from pinfold.spawn import lent
from pinfold.spawn import start as spawn
from pinfold.spawn._spawn import Child, prctl
from pinfold.spawn.steps import HELPER, compose, descriptors, rlimit

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: user=")
SUBSETS = [numbers for n in (1, 2, 3) for numbers in itertools.combinations((0, 1, 2), n)]


@pytest.fixture
def report(cgroup2, villain):
    """Run the villain that says what it was born with."""

    def run(**options):
        return json.loads(pinfold.run(villain("report"), stdout=pinfold.PIPE, timeout=10, **options).stdout)

    return run


def refused(argv, **options) -> pinfold.SpawnError:
    """The error of a command that cannot be started; nothing is left of it."""
    with pytest.raises(pinfold.SpawnError) as raised:
        pinfold.run(argv, timeout=5, **options)
    error = raised.value
    assert error.result.outcome == "spawn_failed"
    assert error.result.pid is None
    assert (error.result.receipt.emptied, error.result.receipt.removed) == (True, True)
    return error


# ---- where it lands ------------------------------------------------------------------------------------------


def test_every_process_of_a_command_is_in_its_cgroup_from_its_first_instruction(cgroup2):
    for _ in range(200):
        result = pinfold.run(["sh", "-c", "cat /proc/self/cgroup & cat /proc/self/cgroup; wait"], capture_output=True)
        lines = [line for line in result.stdout.decode().splitlines() if line.startswith("0::")]
        assert lines == [f"0::{result.placement.cgroup}"] * 2
        assert result.placement.entry == "clone3"


def test_each_run_has_a_cgroup_of_its_own(cgroup2):
    paths = [pinfold.run(["true"]).placement.cgroup for _ in range(20)]
    assert len(set(paths)) == 20


def test_thirty_two_threads_start_commands_at_once(cgroup2):
    found: list[tuple[int, int | None, bool]] = []

    def work(number: int) -> None:
        for at in range(10):
            result = pinfold.run(["sh", "-c", f"exit {number}"], timeout=20)
            found.append((number * 10 + at, result.returncode, result.receipt.removed))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == [(number, number // 10, True) for number in range(320)]


def test_a_big_heap_is_not_copied(host):
    faults = host("big_heap", 1024)
    assert faults["fork"] > faults["pages"] / 2, "the control: a fork makes the pages fault again"
    assert faults["pinfold"] < faults["pages"] / 10


# ---- steps that refuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "number"),
    [
        ("/no/such/program", pinfold.CommandNotFound, errno.ENOENT),
        ("no-such-program-on-path", pinfold.CommandNotFound, errno.ENOENT),
        ("/etc/passwd/program", pinfold.CommandNotFound, errno.ENOTDIR),
        ("/etc/passwd", pinfold.CommandNotExecutable, errno.EACCES),
        ("/tmp", pinfold.CommandNotExecutable, errno.EACCES),
    ],
)
def test_a_program_that_cannot_be_executed_says_exec_and_the_errno(cgroup2, name, kind, number):
    error = refused([name])
    assert type(error) is kind
    assert (error.step, error.errno) == ("exec", number)


def script(directory, text: str) -> str:
    """An executable file of this text."""
    path = directory / "script"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_a_bad_interpreter_is_not_called_a_missing_command(cgroup2, tmp_path):
    error = refused([script(tmp_path, "#!/no/such/interpreter\n")])
    assert (type(error), error.step, error.errno) == (pinfold.CommandNotExecutable, "exec", errno.ENOENT)
    assert "interpreter" in str(error)


def test_a_file_that_is_no_program_is_not_handed_to_a_shell(cgroup2, tmp_path):
    marker = tmp_path / "marker"
    path = script(tmp_path, f"echo ran > {marker}\n")
    error = refused([path])
    assert (type(error), error.errno) == (pinfold.CommandNotExecutable, errno.ENOEXEC)
    by_name = refused(["script"], env={"PATH": str(tmp_path)})
    assert by_name.errno == errno.ENOEXEC
    assert not marker.exists()


def test_an_empty_file_that_is_executable_is_enoexec(cgroup2, tmp_path):
    assert refused([script(tmp_path, "")]).errno == errno.ENOEXEC


def test_too_long_arguments_say_e2big(cgroup2):
    error = refused(["true", *["x" * 100_000] * 40])
    assert (error.step, error.errno) == ("exec", errno.E2BIG)


def test_one_argument_over_the_kernels_bound_says_e2big(cgroup2):
    assert refused(["true", "x" * (1 << 17)]).errno == errno.E2BIG


def test_a_missing_directory_says_cwd(cgroup2, tmp_path):
    error = refused(["true"], cwd=tmp_path / "gone")
    assert (error.step, error.errno) == ("cwd", errno.ENOENT)


def test_a_directory_that_is_a_file_says_cwd(cgroup2):
    error = refused(["true"], cwd="/etc/passwd")
    assert (error.step, error.errno) == ("cwd", errno.ENOTDIR)


def test_a_removed_working_directory_of_the_host_does_not_stop_an_absolute_command(cgroup2, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert pinfold.run(["/bin/true"]).ok


def test_becoming_another_user_without_privilege_says_which_step(host, delegated):
    found = host("user_change_as_nobody", delegated)
    assert (found["root"]["step"], found["root"]["errno"]) == ("groups", "EPERM")
    assert (found["group"]["step"], found["group"]["errno"]) == ("gid", "EPERM")
    assert found["root"]["removed"]
    assert (found["self"], found["plain"]) == ("65534", "65534")


BAD_LIMITS = [rlimit(9999, 0, 0), rlimit(resource.RLIMIT_NOFILE, 2, 1)]


def composed(cwd=None, **attributes):
    """Steps with these attributes."""
    return compose(PLAIN._replace(**attributes), cwd, (), Identity(), no_new_privs=True)


@pytest.mark.parametrize(
    ("changes", "step", "number"),
    [
        ({"fds": (9999, -1, -1)}, "fds", errno.EBADF),
        ({"steps": composed(b"/nowhere/at/all")}, "cwd", errno.ENOENT),
        ({"steps": BAD_LIMITS[0]}, "rlimits", errno.EINVAL),
        ({"steps": BAD_LIMITS[1]}, "rlimits", errno.EINVAL),
        ({"steps": composed(keep_fds=(9999,))}, "fds", errno.EBADF),
        ({"steps": composed(new_session=False, process_group=2**30)}, "session", errno.EPERM),
        ({"paths": [b"/nowhere"]}, "exec", errno.ENOENT),
        ({"cgroup": 9999}, "clone", errno.EBADF),
    ],
    ids=["fds", "cwd", "no such limit", "soft above hard", "kept fd", "process group", "exec", "cgroup"],
)
@pytest.mark.parametrize("detach", [0, 3], ids=["copied table", "shared table"])
def test_the_step_that_refuses_is_named_with_its_errno_and_no_child_is_left(cgroup2, changes, step, number, detach):
    """umask and no_new_privs cannot be made to fail; groups, gid and uid have the test above."""
    directory = os.open(cgroup2, os.O_RDONLY)
    given = {"fds": (-1, -1, -1), "steps": b"", "paths": [b"/bin/true"], "cgroup": directory, **changes}
    detach = 0 if max(given["fds"]) > 2 else detach
    child = Child()
    try:
        steps = descriptors(*given["fds"]) + given["steps"]
        child.start([b"true"], given["paths"], [], steps, given["cgroup"], detach)
        assert child.wait_exec(10)
        failed = child.failure()
        if child.pid > 0:
            assert os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT | 0x40000000)  # __WALL
            assert child.reap() == 127
    finally:
        child.close()
        os.close(directory)
    assert failed[:2] == (number, step)
    assert failed[2] == (given["paths"][0] if step == "exec" else None)


def test_what_is_started_shares_nothing_once_it_has_execed(cgroup2):
    directory, child = os.open(cgroup2, os.O_RDONLY), Child()
    try:
        child.start([b"sleep", b"60"], [b"/bin/sleep"], [], descriptors(-1, -1, -1) + HELPER, directory, 3)
        assert child.wait_exec(10)
        assert child.wait_detached(0)
        assert (child.failure(), child.reap()) == (None, None)
        assert {"0", "1", "2"} <= set(os.listdir(f"/proc/{child.pid}/fd"))
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        assert os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
        assert child.reap() == -9
    finally:
        child.close()
        os.close(directory)


def test_a_child_is_started_once(cgroup2):
    directory, child = os.open(cgroup2, os.O_RDONLY), Child()
    try:
        child.start([b"true"], [b"/bin/true"], [], descriptors(-1, -1, -1), directory, 3)
        with pytest.raises(RuntimeError, match="started already"):
            child.start([b"true"], [b"/bin/true"], [], descriptors(-1, -1, -1), directory, 3)
        assert child.wait_exec(10)
        assert os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
        assert child.reap() == 0
    finally:
        child.close()
        os.close(directory)


# ---- what it inherits ----------------------------------------------------------------------------------------

SAYS = """
import json, os, resource
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
umask = os.umask(0)
group = [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()]
fds = sorted(map(int, os.listdir("/proc/self/fd")))[:-1]
print(json.dumps([status["SigBlk"], status["SigIgn"], umask, group, resource.getrlimit(resource.RLIMIT_CORE), fds]))
"""


def test_transparent_attributes_are_what_subprocess_gives(cgroup2):
    argv = [sys.executable, "-I", "-S", "-c", SAYS]
    before, blocked = signal.signal(signal.SIGUSR2, signal.SIG_IGN), signal.pthread_sigmask(signal.SIG_BLOCK, [10])
    try:
        there = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout
        wanted = request.plan(argv, stdout=pinfold.PIPE, policy={"no_new_privs": False})
        command = wanted.command._replace(attributes=TRANSPARENT)
        steps = compose(TRANSPARENT, None, (), Identity(), no_new_privs=False)
        with pinfold.Fold() as fold:
            ours = fold.carry_out(wanted._replace(command=command, steps=steps)).stdout
            plain = fold.run(argv, stdout=pinfold.PIPE).stdout
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert json.loads(ours) == json.loads(there)
    assert json.loads(plain)[:2] != json.loads(there)[:2], "the control: plain resets them"


def test_descriptors_that_are_passed_on_are_all_that_it_gets(cgroup2):
    pipes = [os.pipe() for _ in range(3)]
    passed = [pipes[0][1], pipes[2][0]]
    try:
        argv = [sys.executable, "-I", "-S", "-c", SAYS]
        result = pinfold.run(argv, capture_output=True, pass_fds=passed)
    finally:
        for ends in pipes:
            os.close(ends[0])
            os.close(ends[1])
    # Listing them takes one more, the last or one in between.
    assert {0, 1, 2, *passed} >= set(json.loads(result.stdout)[-1]) - {3, 4, 5}
    assert set(passed) <= {*json.loads(result.stdout)[-1], max(passed)}


@pytest.mark.parametrize("fds", [[-1], ["1"], [9999], [True]])
def test_what_cannot_be_passed_on_is_refused(cgroup2, fds):
    with pytest.raises(pinfold.UsageError, match="pass_fds"):
        pinfold.run(["true"], pass_fds=fds)


# ---- a program that holds many descriptors -------------------------------------------------------------------


def test_in_a_program_with_many_descriptors_a_command_gets_low_numbers_and_gives_them_back(cgroup2):
    with pinfold.Fold() as fold:
        free = sorted(lent._free)
        assert free
        assert all(fd < lent.LOW for fd in free)
        many = [os.open("/dev/null", os.O_RDONLY) for _ in range(300)]
        try:
            for _ in range(3):
                result = fold.run(["cat"], input=b"x" * 100_000, capture_output=True, timeout=20)
                assert (len(result.stdout), result.receipt.pipe_held) == (100_000, False)
            with fold.start(["cat"], stdin=pinfold.PIPE, stdout=pinfold.PIPE, timeout=20) as run:
                assert run.communicate(b"abc")[0] == b"abc"
            lent.take_back()
            assert (sorted(lent._free), list(lent._out)) == (free, [])
            assert {os.readlink(f"/proc/self/fd/{fd}") for fd in free} == {"/dev/null"}
        finally:
            for fd in many:
                os.close(fd)


def test_our_standard_descriptors_stay_as_they_were(cgroup2):
    """The table is shared with each child until it has its own."""
    before = [os.fstat(fd)[:3] for fd in (0, 1, 2)]
    with pinfold.Fold() as fold:
        for _ in range(50):
            fold.run(["sh", "-c", "exec 0<&- 1<&- 2<&-; exit 0"], stdin=pinfold.DEVNULL, capture_output=True)
    assert [os.fstat(fd)[:3] for fd in (0, 1, 2)] == before


@root_only
def test_whether_our_memory_may_be_dumped_is_as_before(cgroup2):
    get_dumpable = 3  # prctl(2)
    before = prctl(get_dumpable, 0)
    for _ in range(5):
        assert pinfold.run(["true"], user=65534, group=65534).ok
        assert prctl(get_dumpable, 0) == before
    with pinfold.start(["sleep", "60"], user=65534, group=65534) as run:
        pinfold.run(["true"], user=65534, group=65534)
        assert prctl(get_dumpable, 0) == before
        run.kill()


def test_start_raises_what_run_raises(cgroup2):
    with pytest.raises(pinfold.CommandNotFound) as raised:
        pinfold.start(["/no/such/program"], stdin=pinfold.PIPE, stdout=pinfold.PIPE)
    assert raised.value.result.outcome == "spawn_failed"


def test_a_refused_start_is_quick_whatever_the_input(cgroup2):
    assert refused(["/no/such/program"], input=b"x" * (4 << 20), capture_output=True).errno == errno.ENOENT


# ---- PATH ----------------------------------------------------------------------------------------------------


def test_the_path_of_the_commands_own_environment_is_searched(cgroup2, tmp_path):
    script(tmp_path, "#!/bin/sh\necho found $1\n")
    result = pinfold.run(["script", "it"], env={"PATH": f"/nowhere:{tmp_path}"}, capture_output=True)
    assert result.stdout == b"found it\n"


def test_a_program_on_our_path_is_not_found_when_the_commands_path_lacks_it(cgroup2, tmp_path):
    assert refused(["true"], env={"PATH": str(tmp_path)}).errno == errno.ENOENT


def test_a_refused_candidate_does_not_hide_a_later_good_one(cgroup2, tmp_path):
    (tmp_path / "true").write_text("not executable")
    assert pinfold.run(["true"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}).ok


def test_a_relative_program_is_looked_for_in_the_commands_directory(cgroup2, tmp_path):
    script(tmp_path, "#!/bin/sh\npwd\n")
    result = pinfold.run(["./script"], cwd=tmp_path, capture_output=True)
    assert result.stdout.decode().strip() == os.path.realpath(tmp_path)


def test_an_environment_that_another_thread_changes_meanwhile_arrives_whole(host):
    """Passing `environ` itself to execve is a race with putenv, which moves and frees it."""
    # Each run waits for the busy thread's GIL many times; as it was, one run in five went wrong.
    assert host("changing_environment", 60) == []


# ---- descriptors ---------------------------------------------------------------------------------------------


def test_a_command_gets_no_descriptor_but_0_to_2(report):
    extra = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
    try:
        for fd in extra:
            os.set_inheritable(fd, True)
        fds = report()["fds"]
    finally:
        for fd in extra:
            os.close(fd)
    assert [fd for fd in fds if fd > 2] == []


def test_a_high_descriptor_is_closed_too(report):
    high = 1000
    os.dup2(0, high, inheritable=True)
    try:
        assert report()["fds"] == [0, 1, 2]
    finally:
        os.close(high)


@pytest.mark.parametrize("numbers", SUBSETS, ids=lambda numbers: "".join(map(str, numbers)))
def test_it_works_when_the_hosts_own_standard_descriptors_are_closed(host, numbers):
    found = host("closed_fds", *numbers)
    assert found["captured"] == ["in out\n", "err\n"]
    assert (found["inherit"], found["started"], found["left"]) == (3, "through", 0)
    seen = dict(enumerate(found["seen"]))
    assert seen[1].startswith("pipe:")
    assert [seen[number] for number in numbers if number != 1] == ["/dev/null"] * len([n for n in numbers if n != 1])


@pytest.mark.parametrize("numbers", [(1,), (0, 1, 2)], ids=["1", "012"])
def test_a_closed_stdout_of_the_host_can_be_relayed_to(host, numbers):
    assert host("closed_fds_idle", *numbers) == 3


@pytest.mark.parametrize("numbers", [(1,), (1, 2), (0, 1, 2)], ids=["1", "12", "012"])
def test_stderr_can_follow_a_stdout_that_the_host_has_closed(host, numbers):
    assert host("closed_fds_combined", *numbers) == [0, "/dev/null"]


@pytest.mark.parametrize("swapped", [(1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 2, 2)])
def test_the_standard_descriptors_can_be_given_in_any_order(cgroup2, tmp_path, swapped):
    """dup2 in a loop would overwrite one that is still wanted."""
    files = [os.open(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(3)]
    saved = [os.dup(n) for n in range(3)]
    try:
        for n in range(3):
            os.dup2(files[n], n)
        result = pinfold.run(
            ["sh", "-c", "l=$(for n in 0 1 2; do readlink /proc/$$/fd/$n; done); echo $l > $RESULT"],
            env={**os.environ, "RESULT": str(tmp_path / "result")},
            stdin=swapped[0],
            stdout=swapped[1],
            stderr=swapped[2],
        )
    finally:
        for n in range(3):
            os.dup2(saved[n], n)
        for fd in (*files, *saved):
            os.close(fd)
    assert result.ok
    assert [int(path[-1]) for path in (tmp_path / "result").read_text().split()] == list(swapped)


def test_the_hosts_descriptors_stay_blocking(report):
    before = [os.get_blocking(fd) for fd in range(3)]
    assert report()["nonblocking"][1] is False
    assert [os.get_blocking(fd) for fd in range(3)] == before


# ---- state ---------------------------------------------------------------------------------------------------


def test_signals_are_at_their_defaults_and_unblocked(report):
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD})
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        found = pinfold.run(["cat", "/proc/self/status"], capture_output=True).stdout.decode()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) >= {signal.SIGTERM, signal.SIGUSR1}
    finally:
        signal.signal(signal.SIGHUP, ignored)
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    status = dict(line.split(":\t", 1) for line in found.splitlines() if ":\t" in line)
    assert (int(status["SigIgn"], 16), int(status["SigBlk"], 16), int(status["SigCgt"], 16)) == (0, 0, 0)


def test_the_control_subprocess_passes_ignored_and_blocked_signals_on():
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        done = subprocess.run(["cat", "/proc/self/status"], capture_output=True, check=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    blocked = next(line for line in done.stdout.decode().splitlines() if line.startswith("SigBlk"))
    assert int(blocked.split()[1], 16) != 0


def test_umask_core_limit_privileges_and_session_are_the_plain_profiles(report):
    old = os.umask(0o077)
    try:
        found = report()
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(old)
    assert (found["umask"], found["core"], found["no_new_privs"]) == (0o022, [0, 0], "1")
    assert found["pid"] == found["sid"] == found["pgid"] != os.getsid(0)


def test_other_attributes_than_the_plain_ones_can_be_asked_for(report):
    found = report(policy={"no_new_privs": False}, umask=0o027, start_new_session=False, core_files=True)
    assert (found["umask"], found["no_new_privs"]) == (0o027, "0")
    assert (found["sid"], found["pgid"]) == (os.getsid(0), os.getpgid(0))


@root_only
def test_the_groups_of_another_user_are_exactly_its_own(cgroup2):
    result = pinfold.run(["cat", "/proc/self/status"], user="nobody", capture_output=True)
    status = dict(line.split(":\t", 1) for line in result.stdout.decode().splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["65534"] * 4
    assert status["Gid"].split() == ["65534"] * 4
    assert sorted(map(int, status["Groups"].split())) == sorted(os.getgrouplist("nobody", 65534))
    assert int(status["CapEff"], 16) == 0


@root_only
def test_starting_as_another_user_leaves_the_host_dumpable(host, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    found = host("dumpable", closed)
    assert found["before"] == found["after"] == 1
    assert found["uids"] == [0, 0, 0]
    assert found["failed"] == "EACCES"


# ---- the host's own children ---------------------------------------------------------------------------------


def test_return_codes_are_right_where_the_host_ignores_sigchld(host):
    found = host("sigchld_ignored")
    assert found["codes"] == [0, 7, 255, -9, 5]
    assert (found["missing"]["errno"], found["children"]) == ("ENOENT", [])


def test_return_codes_are_right_where_another_thread_waits_for_any_child(host):
    found = host("foreign_waiter")
    assert (found["codes"], found["outcomes"]) == (list(range(100)), ["exited"])
    assert found["missing"] == "ENOENT"


@pytest.mark.timeout(30)
def test_a_host_program_keeps_all_that_is_its_own(host):
    found = host("embedded")
    assert found["same"]
    assert (found["children"], found["waited"]) == (2, [3, 4])
    assert found["its pipe ended"]
    assert found["guard"]


def test_the_hosts_children_and_its_handler_are_left_alone(host):
    found = host("own_children")
    assert (found["mine"], found["theirs"]) == ([3, 4, 5], [9] * 5)
    assert found["handler"] is True
    assert (found["failed"], found["heard of failure"]) == ("ENOENT", 0)


# ---- without clone3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["ENOSYS", "EPERM"])
def test_where_clone3_is_refused_the_command_is_moved_into_its_cgroup_and_contained(host, alive, number):
    found = host("clone3_refused", number)
    assert (found["entry"], found["inside"]) == ("cgroup.procs", True)
    user = "65534" if os.geteuid() == 0 else str(os.geteuid())
    assert (found["outcome"], found["emptied"], found["user"]) == ("timed_out", True, user)
    assert not alive(found["stray"])
    assert (found["missing"]["step"], found["missing"]["errno"]) == ("exec", "ENOENT")
    assert (found["cwd"]["step"], found["cwd"]["errno"]) == ("cwd", "ENOENT")
    assert found["children"] == []


@root_only
def test_what_was_changed_for_the_exec_is_restored_before_start_returns(cgroup2, monkeypatch):
    """Whoever looks first, the loop by its timer or the caller: the caller does not go on before it is done."""
    settle, done = spawn.settle, []

    def slow(child, command):
        threading.Event().wait(0.1)
        done.append(settle(child, command))
        return done[-1]

    monkeypatch.setattr(spawn, "settle", slow)
    with pinfold.start(["sleep", "60"], user=65534, group=65534, timeout=30) as run:
        assert done == [True]
        assert prctl(3, 0) == 1  # PR_GET_DUMPABLE
        run.kill()


# ---- by vfork, in a thread -----------------------------------------------------------------------------------


@pytest.fixture
def by_vfork(monkeypatch):
    """As where the cgroup has a memory controller."""
    start = spawn.start
    monkeypatch.setattr(spawn, "start", lambda *args, vfork: start(*args, vfork=True))


def test_what_asks_to_die_with_its_parent_does_not_die_with_a_start(cgroup2, by_vfork):
    """To the kernel its parent is the thread that has started it: that one has to live on."""
    argv = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", "echo ready; read -r line"]
    with pinfold.Fold() as fold:
        runs = [fold.start(argv, stdin=pinfold.PIPE, stdout=pinfold.PIPE, timeout=30) for _ in range(5)]
        assert [run.stdout.readline() for run in runs] == [b"ready\n"] * 5
        fold.run(["true"])
        for run in runs:
            run.stdin.write(b"go\n")
            run.stdin.close()
        assert [run.wait(20).returncode for run in runs] == [0] * 5
        for run in runs:
            run.stdout.close()


def test_its_threads_are_few_and_go_with_the_last_fold(cgroup2, by_vfork):
    def launchers() -> int:
        return sum(thread.name == "pinfold-start" for thread in threading.enumerate())

    with pinfold.Fold() as fold:
        for _ in range(50):
            fold.run(["true"])
        assert 1 <= launchers() <= 3  # it may be busy yet when the next one is wanted
    for thread in threading.enumerate():
        if thread.name == "pinfold-start":
            thread.join(10)
    assert launchers() == 0


def test_without_a_thread_for_it_the_start_is_refused(cgroup2, by_vfork, monkeypatch):
    def refuse(_thread) -> None:
        raise RuntimeError("can't start new thread")

    with pinfold.Fold() as fold:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(pinfold.SpawnError, match="no thread to start it from") as raised:
            fold.run(["true"])
        assert (raised.value.step, raised.value.errno) == ("clone", errno.EAGAIN)
        assert raised.value.result.receipt.removed


def test_a_failing_start_by_vfork_says_the_same(cgroup2, by_vfork):
    assert type(refused(["/no/such/program"])) is pinfold.CommandNotFound
    assert type(refused(["/"])) is pinfold.CommandNotExecutable
    assert pinfold.run(["sh", "-c", "exit 3"]).returncode == 3
