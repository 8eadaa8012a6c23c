"""Leases: what a dead owner leaves is ended, by its guard or by a sweep, and nothing that lives is touched."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import pinfold
from pinfold.cgroup import places
from pinfold.lease import owner, record, sweep
from pinfold.lease.record import OwnerRecord, RunRecord
from pinfold.lease.sweep import Swept

SLEEP = ["sh", "-c", "echo ready; exec sleep 60"]
NOBODY = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another")

# An owner: it opens a fold, starts what it is told to, does what it is told to, and stays.
OWNER = """
import ctypes, json, multiprocessing, os, sys, time
import pinfold

def say(**what):
    print(json.dumps(what), flush=True)

exec(sys.argv[3])
fold = pinfold.Fold(backend="cgroupfs")
runs = [fold.start(argv, stdout=pinfold.PIPE) for argv in json.loads(sys.argv[1])]
for run in runs:
    run.stdout.readline()
say(base=fold._backend._base.place.directory, guard=fold.guard, pids=[run.pid for run in runs],
    ids=[run.run_id for run in runs])
exec(sys.argv[2])
sys.stdin.read()
"""

# Under this filter what wants a SIGCHLD of its child has no child (EAGAIN), as where a limit on processes is reached;
# our own starts do not.
NO_FORKS = """
import platform, struct
load, masked, equal, ret = 0x20, 0x54, 0x15, 0x06
clone, forks = {"x86_64": (56, [57, 58]), "aarch64": (220, [])}[platform.machine()]
lines = [(load, 0, 0, 0)]
lines += [line for number in forks for line in ((equal, 0, 1, number), (ret, 0, 0, 0x00050000 | 11))]
lines += [(equal, 0, 4, clone), (load, 0, 0, 16), (masked, 0, 0, 0xFF), (equal, 0, 1, 17)]
lines += [(ret, 0, 0, 0x00050000 | 11), (ret, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(lines), ctypes.addressof(program)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, header, 0, 0) == 0, os.strerror(ctypes.get_errno())
"""


class Holder:
    """A started owner, and what it said of its fold."""

    def __init__(self, commands, then, before):
        argv = [sys.executable, "-W", "error", "-c", OWNER, json.dumps(commands), then, before]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            said = self.said()
        except BaseException:
            self.end()
            raise
        self.base, self.guard, self.pids = Path(said["base"]), said["guard"], said["pids"]
        self.runs = [self.base / f"run-{run_id}" for run_id in said["ids"]]
        self.name = self.base.name

    def said(self):
        line = self.process.stdout.readline()
        assert line, f"the owner ended with {self.process.wait(20)}"
        return json.loads(line)

    def die(self):
        """By a SIGKILL."""
        self.process.kill()
        self.process.wait(20)

    def end(self):
        self.die()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def start(cgroup2):
    """`start(*commands, then, before)`: an owner with these runs. Each is killed in the end; its guard cleans up."""
    started = []

    def begin(*commands, then="", before=""):
        started.append(Holder(commands, then, before))
        return started[-1]

    yield begin
    for holder in started:
        holder.end()


@pytest.fixture
def unguard(alive, wait_until):
    """End the guard of an owner, so that only a sweep is left."""

    def end(holder):
        os.kill(holder.guard, signal.SIGKILL)
        wait_until(lambda: not alive(holder.guard), "the end of the guard")

    return end


@pytest.fixture
def live(start):
    """A fold with one run, opened before the dead one: afterwards it would sweep that."""
    return start(SLEEP)


@pytest.fixture
def dead(start, unguard):
    """A fold with one run, whose owner and guard were killed."""
    holder = start(SLEEP)
    unguard(holder)
    holder.die()
    return holder


@pytest.fixture
def place(cgroup2):
    """The cgroup of the session."""
    own = places.own_place()
    return next(at for at in (own, *places.ancestors(own)) if at.directory == str(cgroup2))


@pytest.fixture
def swept(place):
    """`swept()`: what a sweep of the session's cgroup says."""
    return lambda **options: list(sweep.sweep(place, **options))


@pytest.fixture
def make(cgroup2):
    """`make(name)`: a cgroup of nobody's, removed in the end with what is in it."""
    made = []

    def mkdir(name):
        made.append(cgroup2 / name)
        made[-1].mkdir()
        return made[-1]

    yield mkdir
    for directory in made:
        end = time.monotonic() + 5
        while directory.exists():
            with contextlib.suppress(OSError):
                (directory / "cgroup.kill").write_text("1")
                directory.rmdir()
            assert time.monotonic() < end


@pytest.fixture
def sleeper():
    """`sleeper(directory)`: a process in this cgroup."""
    started = []

    def sleep(directory):
        started.append(subprocess.Popen(["sleep", "60"]))
        (directory / "cgroup.procs").write_text(str(started[-1].pid))
        return started[-1]

    yield sleep
    for process in started:
        process.kill()
        process.wait(20)


def of_the_dead(**changes):
    """The record of a process that was here and is not."""
    return OwnerRecord(2**22 + 1, 5, *owner.world(), os.geteuid(), 1.0)._replace(**changes)


def sign(directory, attribute, what):
    fd = os.open(directory, os.O_RDONLY)
    try:
        assert record.write(fd, attribute, what)
    finally:
        os.close(fd)


def gone(place, holder, pids=None, action="removed"):
    """What a sweep says of a fold whose owner is dead."""
    why = f"its owner, process {holder.process.pid}, is gone"
    return Swept(f"{place.path.rstrip('/')}/{holder.name}", "fold", action, pids or holder.pids, [], why)


class TestSweep:
    def test_a_dead_fold_is_removed_and_a_live_one_goes_on(self, live, dead, place, swept, alive):
        assert swept() == [gone(place, dead)]
        assert not dead.base.exists()
        assert not any(map(alive, dead.pids))
        assert all(map(alive, [*live.pids, live.guard]))
        assert all(run.is_dir() for run in live.runs)
        assert swept() == []

    def test_a_dry_run_says_the_same_and_touches_nothing(self, dead, place, swept, alive):
        assert swept(dry_run=True) == [gone(place, dead, action="would remove")]
        assert swept(dry_run=True) == [gone(place, dead, action="would remove")]
        assert all(map(alive, dead.pids))
        assert (dead.runs[0] / "cgroup.events").read_text() == "populated 1\nfrozen 0\n"
        assert swept() == [gone(place, dead)]

    def test_what_a_fold_that_was_closed_could_not_remove_is_removed(self, make, sleeper, place, swept, wait_until):
        base = make("pinfold-00000000c105")
        (run := base / "run-0123456789abcdef").mkdir()
        process = sleeper(run)
        sign(base, record.OWNER, owner.this_process({}, None)._replace(closed=True))
        assert swept() == [
            Swept(f"{place.path.rstrip('/')}/{base.name}", "fold", "removed", [process.pid], [], "its fold was closed")
        ]
        assert process.wait(20) == -signal.SIGKILL

    def test_a_fold_within_the_run_of_another_is_found(self, start, unguard, swept, alive):
        """Its owner dies; that of the run lives on."""
        outer = start(SLEEP)
        (inner := outer.runs[0] / "pinfold-00000000beef").mkdir()
        sign(inner, record.OWNER, of_the_dead())
        assert [(one.what, one.action) for one in swept()] == [("fold", "removed")]
        assert not inner.exists()
        assert all(map(alive, outer.pids))

    def test_it_and_the_guard_do_not_hinder_each_other(self, start, swept, alive, wait_until):
        for _ in range(5):
            holder = start(SLEEP)
            holder.die()
            assert {one.action for one in swept()} <= {"removed"}
            wait_until(lambda base=holder.base: not base.exists(), "its removal")
            wait_until(lambda guard=holder.guard: not alive(guard), "the end of the guard")
            assert not any(map(alive, holder.pids))

    def test_what_hides_is_found(self, start, unguard, compiled, villain, place, swept, alive):
        holder = start([compiled("leader_exited"), "3"], villain("nested_subcgroups", 4, "000"))
        unguard(holder)
        holder.die()
        (one,) = swept()
        assert (one.action, one.left, len(one.pids)) == ("removed", [], 9)
        assert not holder.base.exists()

    def test_the_largest_labels_are_in_the_record(self, cgroup2):
        labels = {f"{number:064d}": "\N{GRINNING FACE}" * 256 for number in range(32)}
        with pinfold.Fold(backend="cgroupfs", labels=labels) as fold:
            data = os.getxattr(fold._backend._base.place.directory, record.OWNER)
            assert OwnerRecord.parse(data).labels == labels


class TestForeign:
    @pytest.fixture
    def reported(self, swept, place):
        """`reported(directory)`: why a sweep has left this one alone, if it has, and if all it did was to say so."""

        def report(directory):
            (one,) = swept()
            assert one._replace(why="", what="") == Swept(
                f"{place.path.rstrip('/')}/{directory.name}", "", "foreign", [], [], ""
            )
            assert directory.is_dir()
            return one.what, one.why

        return report

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"\xff", "it is no JSON"),
            (b"{}", "its schema is None, known is 1"),
            (b'{"schema":2}', "its schema is 2, known is 1"),
            (b'{"schema":1,"pid":0}', "its start_time is None"),
        ],
    )
    def test_a_record_that_cannot_be_read(self, make, sleeper, reported, data, why):
        base = make("pinfold-0123456789ab")
        os.setxattr(base, record.OWNER, data)
        process = sleeper(base)
        assert reported(base) == ("cgroup", f"its owner record cannot be read: {why}")
        assert process.poll() is None

    @pytest.mark.parametrize("name", ["mine", "pinfold-0123456789a", "pinfold-0123456789AB", "xpinfold-0123456789ab"])
    def test_a_record_on_what_is_not_named_like_a_fold(self, make, sleeper, reported, name):
        """Anybody who may write the cgroup can put it there; killing it would be on their word."""
        base = make(name)
        sign(base, record.OWNER, of_the_dead())
        process = sleeper(base)
        assert reported(base) == ("fold", "it has an owner record, and is not named like a fold")
        assert process.poll() is None

    @root
    def test_the_fold_of_another_user(self, dead, place, swept, alive):
        def as_nobody():
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            return [tuple(one) for one in sweep.sweep(place)]

        path = f"{place.path.rstrip('/')}/{dead.name}"
        assert in_a_fork(as_nobody) == [[path, "fold", "foreign", [], [], "it belongs to uid 0"]]
        assert all(map(alive, dead.pids))
        assert swept() == [gone(place, dead)]

    @root
    def test_root_takes_the_fold_of_another_user_that_is_dead(self, make, sleeper, swept):
        base = make("pinfold-0123456789ab")
        sign(base, record.OWNER, of_the_dead(uid=NOBODY))
        os.chown(base, NOBODY, NOBODY)
        sleeper(base)
        assert [one.action for one in swept()] == ["removed"]

    @root
    def test_an_unsigned_cgroup_of_another_user(self, make, place, swept):
        def as_nobody():
            os.setresuid(NOBODY, NOBODY, NOBODY)
            return [one.action for one in sweep.sweep(place)]

        base = make("pinfold-0123456789ab")
        assert in_a_fork(as_nobody) == ["foreign"]
        assert base.exists()


def in_a_fork(function):
    """What a function returns in a forked child."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writes, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with open(reads, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    assert said, "the forked child has said nothing"
    return json.loads(said)


class TestUnsigned:
    """What somebody made and did not live to sign; or is about to."""

    NAME = "pinfold-0123456789ab"

    def test_it_is_removed_where_nobody_makes_it(self, make, place, swept):
        base = make(self.NAME)
        expected = Swept(f"{place.path.rstrip('/')}/{self.NAME}", "cgroup", "would remove", [], [],
                         "it was never signed, and nobody is making it")  # fmt: skip
        assert swept(dry_run=True) == [expected]
        assert base.exists()
        assert swept() == [expected._replace(action="removed")]
        assert not base.exists()

    def test_with_a_process_in_it_it_is_left_and_reported(self, make, sleeper, swept):
        base = make(self.NAME)
        (sub := base / "sub").mkdir()
        process = sleeper(sub)
        assert [(one.action, one.why) for one in swept()] == [("foreign", "it has no owner record")]
        assert process.poll() is None
        process.kill()
        process.wait(20)
        sub.rmdir()

    def test_with_a_cgroup_in_it_it_is_left_and_reported(self, make, swept):
        base = make(self.NAME)
        (sub := base / "sub").mkdir()
        assert [one.action for one in swept()] == ["foreign"]
        sub.rmdir()
        assert [one.action for one in swept()] == ["removed"]

    @pytest.mark.parametrize("held", ["the directory it is made in", "itself"])
    def test_while_somebody_is_making_it_it_is_left(self, cgroup2, make, swept, held):
        base = make(self.NAME)
        fd = os.open(base if held == "itself" else cgroup2, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            assert swept() == []
            assert base.exists()
        finally:
            os.close(fd)
        assert [one.action for one in swept()] == ["removed"]

    @pytest.mark.parametrize(
        "name", ["pinfold-0123456789a", "pinfold-tests-17", "pinfold-xyz456789abc", "run-0123456789ab"]
    )
    def test_another_name_is_none_of_ours(self, make, swept, name):
        base = make(name)
        assert swept() == []
        assert base.exists()

    def test_folds_can_be_opened_while_it_sweeps(self, cgroup2, place):
        """Neither keeps the other from its lock for good, and no fold is taken for one that nobody makes."""
        reads, writes = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            os.close(writes)
            found = []
            try:
                while not found and not select.select([reads], [], [], 0)[0]:
                    found += sweep.sweep(place)
            finally:
                os._exit(len(found))
        try:
            for _ in range(20):
                with pinfold.Fold(backend="cgroupfs") as fold:
                    assert fold.run(["true"]).outcome == "exited"
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # it still looks, and has found nothing
        finally:
            os.close(writes)
            os.close(reads)
            os.waitpid(pid, 0)


class TestQuarantine:
    def test_a_run_that_was_given_up_is_ended_in_a_live_fold(self, start, place, swept, alive, wait_until):
        holder = start(SLEEP, SLEEP)
        given_up, other = holder.runs
        sign(given_up, record.RUN, RunRecord(None, 1.0, quarantined=True))
        path = f"{place.path.rstrip('/')}/{holder.name}/{given_up.name}"
        expected = Swept(path, "run", "would remove", holder.pids[:1], [], "it is over and was not empty")
        assert swept(dry_run=True) == [expected]
        assert alive(holder.pids[0])
        assert swept() == [expected._replace(action="removed")]
        assert not given_up.exists()
        assert not alive(holder.pids[0])
        assert other.exists()
        assert alive(holder.pids[1])
        assert swept() == []

    def test_a_run_that_goes_on_is_none(self, start, swept, alive):
        holder = start(SLEEP)
        sign(holder.runs[0], record.RUN, RunRecord(holder.pids[0], 1.0, quarantined=False))
        assert swept() == []
        os.setxattr(holder.runs[0], record.RUN, b'{"schema":1,"started":1,"quarantined":"yes"}')
        assert swept() == []
        assert alive(holder.pids[0])


class TestBeside:
    def test_opening_a_fold_ends_what_a_dead_one_has_left_there(self, start, dead, alive):
        live = start(SLEEP, then="")
        assert not dead.base.exists()  # its opening was one
        assert not any(map(alive, dead.pids))
        assert all(map(alive, live.pids))

    def test_in_this_process_too_and_not_what_is_foreign(self, dead, make):
        strange = make("pinfold-0123456789ab")
        os.setxattr(strange, record.OWNER, b"?")
        unsigned, used = make("pinfold-0123456789ac"), make("pinfold-0123456789ad")
        (used / "below").mkdir()
        with pinfold.Fold(backend="cgroupfs") as fold:
            assert not dead.base.exists()
            assert fold.run(["true"]).returncode == 0
        assert strange.exists()
        assert not unsigned.exists()
        assert (used / "below").exists()
        (used / "below").rmdir()


class TestGuard:
    @pytest.fixture
    def ended(self, alive, wait_until, slowness):
        """`ended(holder)`: all of its fold has ended by itself, and so has the guard."""

        def wait(holder, bound=10):
            wait_until(lambda: not holder.base.exists(), "the removal of its fold", bound * slowness)
            wait_until(lambda: not alive(holder.guard), "the end of the guard", 10 * slowness)

        return wait

    def test_it_ends_what_a_killed_owner_has_left(self, start, ended, alive):
        holder = start(SLEEP, SLEEP)
        holder.die()
        ended(holder)
        assert not any(map(alive, holder.pids))

    def test_a_process_without_a_leader_thread_ends_too(self, start, compiled, ended):
        """One `cgroup.kill` misses it (6.18)."""
        holder = start([compiled("leader_exited"), "3"])
        assert "populated 1" in (holder.base / "cgroup.events").read_text()
        holder.die()
        ended(holder)

    def test_stopped_daemons_in_sessions_of_their_own_end_too(self, start, villain, ended, alive):
        holder = start(villain("stopped_daemons", 5))
        pids = [int(pid) for pid in (holder.runs[0] / "cgroup.procs").read_text().split()]
        assert len(pids) == 6
        holder.die()
        ended(holder)
        assert not any(map(alive, pids))

    @pytest.mark.parametrize("name", ["frozen_subcgroup", "locked_cgroup", "threaded_subcgroup", "term_ignorer"])
    def test_what_else_there_is_ends_too(self, start, villain, ended, alive, name):
        holder = start(villain(name))
        holder.die()
        ended(holder)
        assert not any(map(alive, holder.pids))

    def test_a_fork_bomb_ends_too(self, start, villain, ended):
        holder = start(villain("fork_bomb", 300))
        holder.die()
        ended(holder)

    def test_where_it_cannot_fork_it_ends_the_fold_all_the_same(self, start, compiled, ended):
        """Such as in a container whose pids.max the fold has used up. A bash tries for 15 s before it gives up."""
        forks = "try: os.fork()\nexcept BlockingIOError: say(forks=False)"
        holder = start([compiled("leader_exited")], SLEEP, before=NO_FORKS, then=forks)
        assert holder.said() == {"forks": False}
        holder.die()
        ended(holder, bound=30)

    def test_of_a_group_that_is_killed_at_once_it_is_not_one(self, start, ended, alive):
        """A terminal's ^C and ^\\, a closed one, a job control `kill -TERM -PGID`, a KILL to the group."""
        holder = start(SLEEP, then="os.setpgid(0, 0); say()")
        assert holder.said() == {}
        os.killpg(holder.process.pid, signal.SIGKILL)
        holder.process.wait(20)
        ended(holder)
        assert not any(map(alive, holder.pids))

    def test_a_new_one_is_there_for_the_next_run_where_it_was_killed(self, start, ended, unguard, alive):
        again = "sys.stdin.readline(); r = fold.start(['sleep', '60']); say(guard=fold.guard, pid=r.pid)"
        holder = start(then=again)
        unguard(holder)
        holder.process.stdin.write(b"\n")
        holder.process.stdin.flush()
        said = holder.said()
        assert said["guard"] != holder.guard
        assert alive(said["guard"])
        holder.guard = said["guard"]
        holder.die()
        ended(holder)
        assert not alive(said["pid"])


FORKS = {
    "os.fork": "pid = os.fork()\nif not pid: {child}; os._exit(0)",
    "fork": "p = multiprocessing.get_context('fork').Process(target={target}); p.start(); pid = p.pid",
    "spawn": "p = multiprocessing.get_context('spawn').Process(target={target}); p.start(); pid = p.pid",
}


def forking(how, *, stays):
    """Code of an owner that forks; the child stays for a minute, or ends at once and has ended when it is said."""
    child, target = ("time.sleep(60)", "time.sleep, args=(60,)") if stays else ("fold.close()", "time.time")
    code = FORKS[how].format(child=child, target=target)
    if not stays:
        code += "\n" + ("os.waitpid(pid, 0)" if how == "os.fork" else "p.join(30)")
    return code + "\nsay(child=pid)"


@pytest.mark.parametrize("how", FORKS)
class TestForkedChildren:
    def test_one_that_stays_does_not_keep_the_fold_from_its_guard(self, start, how, alive, end_of, wait_until):
        holder = start(SLEEP, then=forking(how, stays=True))
        child = psutil.Process(holder.said()["child"])
        try:
            holder.die()
            wait_until(lambda: not holder.base.exists(), "the removal of its fold")
            assert not any(map(alive, holder.pids))
            assert alive(child.pid)  # it was there all the time
        finally:
            end_of(child)

    def test_nor_from_a_sweep(self, start, unguard, how, place, swept, alive, end_of):
        holder = start(SLEEP, then=forking(how, stays=True))
        child = psutil.Process(holder.said()["child"])
        try:
            unguard(holder)
            holder.die()
            assert swept() == [gone(place, holder)]
            assert alive(child.pid)
        finally:
            end_of(child)

    def test_one_that_ends_does_not_end_a_live_fold(self, start, how, swept, alive):
        holder = start(SLEEP, then=forking(how, stays=False))
        assert not alive(holder.said()["child"])
        assert swept() == []
        assert alive(holder.guard)
        assert all(map(alive, holder.pids))
        assert holder.runs[0].is_dir()


def test_a_child_that_python_did_not_fork_delays_the_guard_and_not_a_sweep(
    start, place, swept, alive, end_of, wait_until
):
    """It has the lease open, and no hook of ours was run there."""
    code = "pid = ctypes.PyDLL(None).fork()\nif not pid:\n    time.sleep(60)\n    os._exit(0)\nsay(child=pid)"
    holder = start(SLEEP, then=code)
    child = psutil.Process(holder.said()["child"])
    try:
        holder.die()
        assert swept() == [gone(place, holder)]
        assert not any(map(alive, holder.pids))
        assert alive(holder.guard)  # a few kilobytes, until the last copy of its lease is closed
    finally:
        end_of(child)
    wait_until(lambda: not alive(holder.guard), "the end of the guard")


def test_a_forked_child_does_not_hold_the_lease_for_those_who_cannot_see_its_owner(cgroup2, place2):
    code = """
import os, signal, time
import pinfold
fold = pinfold.Fold(backend="cgroupfs")
ready, done = os.pipe()
child = os.fork()
if child == 0:
    os.close(1)
    os.write(done, b"1")
    signal.pause()
os.read(ready, 1)
os.kill(fold.guard, signal.SIGKILL)
print(fold.path, child, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=30, check=True)
    path, child = done.stdout.split()
    base = cgroup2 / os.path.basename(path)
    try:
        directory = os.open(base, os.O_RDONLY)
        try:
            assert not owner.is_locked(directory)
        finally:
            os.close(directory)
        assert [one.action for one in sweep.sweep(place2)] == ["removed"]
    finally:
        os.kill(int(child), signal.SIGKILL)
