"""Whether an owner lives: what /proc says of a process, and what a lock says where that means nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from pinfold import proc
from pinfold.lease import owner
from pinfold.lease.owner import World
from pinfold.lease.record import OwnerRecord

# A process whose leader thread leaves, and whose other one stays until stdin ends.
WITHOUT_LEADER = """
import ctypes, os, platform, threading

def stay():
    os.read(0, 1)
    os._exit(0)

threading.Thread(target=stay).start()
exit = {"x86_64": 60, "aarch64": 93}[platform.machine()]
ctypes.CDLL(None).syscall(ctypes.c_long(exit), ctypes.c_long(0))
"""
ELSEWHERE = {"boot_id": "another", "pid_ns": 1, "time_ns": 2}


@pytest.fixture
def child():
    """A process that lives until the test is over."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def opened(tmp_path):
    """`opened()`: one more open file description of the same directory, as a fold's cgroup is opened by several."""
    (directory := tmp_path / "cgroup").mkdir()
    with contextlib.ExitStack() as fds:

        def open_():
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            fds.callback(os.close, fd)
            return fd

        yield open_


@pytest.fixture
def forked():
    """`forked(function)`: call it in a forked child, and return what it returned, as an exit status."""

    def run(function):
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                code = int(function())
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return run


@pytest.fixture
def forked_holder():
    """`with forked_holder():` a forked child is there that has inherited everything, and does nothing."""

    @contextlib.contextmanager
    def hold():
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writes)
            os.read(reads, 1)
            os._exit(0)
        os.close(reads)
        try:
            yield
        finally:
            os.close(writes)
            os.waitpid(pid, 0)

    return hold


def stat_line(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()


class TestStartTime:
    def test_ours_is_between_boot_and_now(self):
        started = owner.start_time(os.getpid())
        assert 0 < started <= time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
        assert owner.start_time(os.getpid()) == started

    def test_a_later_process_started_later(self, child):
        assert owner.start_time(child.pid) >= owner.start_time(os.getpid())

    def test_a_zombie_has_none(self, child, wait_until):
        assert owner.start_time(child.pid) is not None
        child.kill()
        wait_until(lambda: stat_line(child.pid)[0] == "Z", "its end")
        assert owner.start_time(child.pid) is None
        child.wait()
        assert owner.start_time(child.pid) is None

    def test_a_process_whose_leader_thread_has_exited_lives(self, wait_until):
        """/proc calls it a zombie; its other threads may still own a fold."""
        with subprocess.Popen([sys.executable, "-S", "-c", WITHOUT_LEADER], stdin=subprocess.PIPE) as process:
            wait_until(lambda: stat_line(process.pid)[0] == "Z", "the end of its leader")
            assert owner.start_time(process.pid) == int(stat_line(process.pid)[19])
            process.stdin.close()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert owner.start_time(process.pid) is None

    @pytest.mark.parametrize("name", [") Z 1 2", "a b) c (d", ")", "((", ") X 0 0 0 0 ", "\n) Z 0", "\xff"])
    def test_a_name_that_looks_like_the_rest_of_the_line_is_a_name(self, name):
        with open("/proc/thread-self/comm", "r+b", buffering=0) as file:
            before = file.read().rstrip(b"\n")
            try:
                file.write(name.encode("latin-1"))
                found = owner.start_time(os.getpid())
                assert int(stat_line_of_latin(os.getpid())[19]) == found
            finally:
                file.write(before)
        assert owner.start_time(os.getpid()) == found

    @pytest.mark.parametrize("pid", [0, 2**22 + 1, 2**31, 2**63 - 1])
    def test_what_is_no_process_has_none(self, pid):
        assert owner.start_time(pid) is None

    def test_a_stat_that_cannot_be_read_is_a_process_that_has_ended(self, monkeypatch):
        """It may end between the open and the read (ESRCH)."""

        def gone(*_, **__):
            raise ProcessLookupError

        monkeypatch.setattr(proc, "open", gone, raising=False)
        assert owner.start_time(os.getpid()) is None


def stat_line_of_latin(pid):
    with open(f"/proc/{pid}/stat", encoding="latin-1", newline="") as file:
        return file.read().rpartition(")")[2].split()


def of(pid, **changes):
    """The record of a process here and now, with something of it changed."""
    there = {"start_time": owner.start_time(pid), **owner.world()._asdict(), **changes}
    return OwnerRecord(pid=pid, uid=os.geteuid(), opened=1.0, **there)


def refuse(*_):
    raise PermissionError


class TestState:
    def test_a_record_of_this_process_is_of_a_live_one(self, opened):
        found = owner.this_process({"job": "1"}, 17)
        assert found == of(os.getpid())._replace(opened=found.opened, guard=17, labels={"job": "1"})
        assert abs(found.opened - time.time()) < 60
        holder = opened()
        assert owner.lock_shared(holder)
        assert owner.state(found, opened()) == "live"

    def test_it_dies_with_the_process(self, child, opened, wait_until):
        found, holder = of(child.pid), opened()
        assert owner.lock_shared(holder)
        assert owner.state(found, opened()) == "live"
        child.kill()
        wait_until(lambda: owner.state(found, opened()) == "dead", "its end")
        child.wait()
        assert owner.state(found, opened()) == "dead"

    @pytest.mark.parametrize("later", [1, -1, 10**9])
    def test_a_pid_that_is_somebody_elses_now_is_dead(self, opened, later):
        found = of(os.getpid(), start_time=owner.start_time(os.getpid()) + later)
        assert owner.state(found, opened()) == "dead"

    def test_a_lock_that_a_forked_child_has_inherited_keeps_no_dead_owner_alive(self, child, opened, forked_holder):
        found, ours = of(child.pid), opened()
        assert owner.lock_shared(ours)
        with forked_holder():
            child.kill()
            child.wait()
            probe = opened()
            assert owner.is_locked(probe)
            assert owner.state(found, probe) == "dead"

    def test_an_owner_that_has_lost_its_lock_has_become_another_program(self, opened):
        probe = opened()
        assert not owner.is_locked(probe)
        assert owner.state(of(os.getpid()), probe) == "dead"

    @pytest.mark.parametrize("kind", ELSEWHERE)
    def test_where_the_numbers_are_those_of_another_world_the_lock_decides(self, opened, kind):
        """For a pid that is live here, and for one that is not."""
        holder, probe = opened(), opened()
        for pid, started in ((os.getpid(), None), (2**22 + 1, 5)):
            found = of(pid, start_time=started or owner.start_time(pid), **{kind: ELSEWHERE[kind]})
            assert owner.state(found, probe) == "dead"
            assert owner.lock_shared(holder)
            assert owner.state(found, probe) == "live"
            owner.unlock(holder)
            assert owner.state(found, probe) == "dead"

    def test_so_it_does_where_proc_is_that_of_another_pid_namespace(self, opened, monkeypatch):
        monkeypatch.setattr(owner, "proc_is_ours", lambda: False)
        holder, probe = opened(), opened()
        assert owner.state(of(os.getpid()), probe) == "dead"
        assert owner.lock_shared(holder)
        assert owner.state(of(2**22 + 1, start_time=5), probe) == "live"

    @pytest.mark.parametrize("refusal", [FileNotFoundError, PermissionError])
    def test_so_it_does_for_a_process_that_proc_does_not_show(self, child, opened, monkeypatch, refusal):
        """With hidepid= an undumpable process of our own uid is not there, and may be at work (proc(5))."""

        def hide(*_, **__):
            raise refusal

        found, holder, probe = of(child.pid), opened(), opened()
        monkeypatch.setattr(proc, "open", hide, raising=False)
        monkeypatch.setattr(os.path, "exists", lambda path: not path.startswith("/proc/"))
        assert owner.lock_shared(holder)
        monkeypatch.setattr(owner, "world", lambda: World(found.boot_id, found.pid_ns, found.time_ns))
        assert owner.state(found, probe) == "live"
        monkeypatch.setattr(os, "kill", refuse)  # it is another user's
        assert owner.state(found, probe) == "live"
        monkeypatch.undo()
        child.kill()
        child.wait()
        assert owner.state(found, probe) == "dead"

    @pytest.mark.parametrize("pid", [2**22 + 1, 2**31, 2**63 - 1])
    def test_a_lock_says_nothing_for_a_pid_that_nobody_has(self, opened, pid):
        assert owner.lock_shared(opened())
        assert owner.state(of(pid, start_time=5), opened()) == "dead"

    def test_a_closed_fold_has_no_owner_whoever_lives_or_holds_it(self, opened):
        assert owner.lock_shared(opened())
        for found in (of(os.getpid()), of(os.getpid(), **ELSEWHERE)):
            assert owner.state(found._replace(closed=True), opened()) == "dead"

    def test_asking_leaves_no_lock(self, opened):
        probe = opened()
        owner.state(of(os.getpid(), **ELSEWHERE), probe)
        assert not owner.is_locked(opened())


class TestWorld:
    def test_it_is_that_of_our_namespaces(self):
        world = owner.world()
        assert len(world.boot_id) == 36
        assert os.readlink("/proc/self/ns/pid") == f"pid:[{world.pid_ns}]"
        assert world == owner.world()

    def test_a_kernel_without_time_namespaces_has_one(self, monkeypatch):
        stat = os.stat

        def old(path, *rest, **how):
            if path == "/proc/self/ns/time":
                raise FileNotFoundError
            return stat(path, *rest, **how)

        monkeypatch.setattr(os, "stat", old)
        assert owner.world() == World(owner.world().boot_id, stat("/proc/self/ns/pid").st_ino, 0)


class TestLease:
    def test_many_hold_it_and_it_is_free_after_the_last(self, opened):
        one, two, probe = opened(), opened(), opened()
        assert not owner.is_locked(probe)
        assert owner.lock_shared(one)
        assert owner.lock_shared(two)
        assert owner.is_locked(probe)
        owner.unlock(one)
        assert owner.is_locked(probe)
        owner.unlock(two)
        assert not owner.is_locked(probe)

    def test_closing_lets_go(self, tmp_path, opened):
        probe, holder = opened(), os.open(tmp_path / "cgroup", os.O_RDONLY)
        try:
            assert owner.lock_shared(holder)
            assert owner.is_locked(probe)
        finally:
            os.close(holder)
        assert not owner.is_locked(probe)

    def test_a_forked_child_sees_it_held_by_its_parent(self, opened, forked):
        probe = opened()
        assert forked(lambda: owner.is_locked(probe)) == 0
        assert owner.lock_shared(opened())
        assert forked(lambda: owner.is_locked(probe)) == 1

    def test_a_forked_child_that_has_inherited_it_holds_it_for_itself(self, tmp_path, opened, forked_holder):
        holder, probe = os.open(tmp_path / "cgroup", os.O_RDONLY), opened()
        try:
            assert owner.lock_shared(holder)
            with forked_holder():
                fd, holder = holder, -1
                os.close(fd)
                assert owner.is_locked(probe)
            assert not owner.is_locked(probe)
        finally:
            if holder >= 0:
                os.close(holder)

    def test_letting_go_in_a_forked_child_lets_go_for_all(self, opened, forked):
        """A lock is of the open file description: whoever forks must close, not unlock."""
        holder, probe = opened(), opened()
        assert owner.lock_shared(holder)
        assert forked(lambda: owner.unlock(holder) or 0) == 0
        assert not owner.is_locked(probe)

    def test_who_probes_for_long_keeps_us_from_it_and_that_is_said(self, opened):
        prober = opened()
        fcntl.flock(prober, fcntl.LOCK_EX)
        began = time.monotonic()
        assert not owner.lock_shared(opened(), bound=0.02)
        assert 0.02 <= time.monotonic() - began < 2

    def test_who_probes_for_a_moment_does_not(self, opened):
        prober, holder = opened(), opened()
        fcntl.flock(prober, fcntl.LOCK_EX)
        held = []
        thread = threading.Thread(target=lambda: held.append(owner.lock_shared(holder, bound=20)))
        thread.start()
        fcntl.flock(prober, fcntl.LOCK_UN)
        thread.join(20)
        assert held == [True]
        assert owner.is_locked(prober)


class TestWithoutMakers:
    def test_while_somebody_makes_one_there_is_no_looking(self, opened):
        maker, sweeper = opened(), opened()
        assert owner.lock_shared(maker)
        with owner.without_makers(sweeper) as alone:
            assert alone is False
        assert owner.is_locked(sweeper)  # the maker's, still
        owner.unlock(maker)
        with owner.without_makers(sweeper) as alone:
            assert alone is True

    def test_while_somebody_looks_nobody_makes_one(self, opened):
        maker, sweeper = opened(), opened()
        with owner.without_makers(sweeper) as alone:
            assert alone
            assert not owner.lock_shared(maker, bound=0)
        assert owner.lock_shared(maker, bound=0)

    def test_two_do_not_look_at_once(self, opened):
        one, two = opened(), opened()
        with owner.without_makers(one) as first, owner.without_makers(two) as second:
            assert (first, second) == (True, False)
        with owner.without_makers(two) as alone:
            assert alone

    def test_an_error_meanwhile_ends_it(self, opened):
        with pytest.raises(ZeroDivisionError), owner.without_makers(opened()):
            raise ZeroDivisionError
        assert owner.lock_shared(opened(), bound=0)
