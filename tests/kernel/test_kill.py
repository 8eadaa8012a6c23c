"""The kill: whoever hides, it ends, and the receipt says what had to be done."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import pinfold
from pinfold.cgroup.group import Cgroup
from pinfold.runs import actions

NESTED = """
set -e
top=$(sed -n 's/^0:://p' /proc/self/cgroup)
for point in $(awk '/ - cgroup2 / {print $5}' /proc/self/mountinfo); do
    test -d "$point$top" && here=$point$top
done
sub=$here/one
mkdir -p $sub/two/three
for place in $sub $sub/two $sub/two/three; do
    sleep 60 &
    echo $! > $place/cgroup.procs
done
chmod 000 $sub/two
chmod 000 $sub $here/cgroup.kill $here/cgroup.procs $here/cgroup.events
chmod 000 $here
echo ready
sleep 60
"""


def check(result: pinfold.Result, *, strays: int, outcome: str = "timed_out") -> None:
    """What every kill has to show."""
    receipt = result.receipt
    assert result.outcome == outcome
    assert (receipt.emptied, receipt.removed, receipt.stuck_pids) == (True, True, [])
    assert receipt.strays == strays
    assert len(receipt.stray_processes) == min(strays, 64)
    assert receipt.kill_rounds >= 1
    assert receipt.kill_to_empty_usec is not None


def run_until_ready(argv, **options) -> pinfold.Result:
    """Kill it once it has said that it is ready."""
    with pinfold.start(argv, stdout=pinfold.PIPE, timeout=10, **options) as run:
        assert run.stdout.readline() == b"ready\n"
        run.kill()
        return run.wait(10)


def test_nothing_to_kill_is_said_so(cgroup2):
    receipt = pinfold.run(["true"], timeout=5).receipt
    assert (receipt.kill_rounds, receipt.strays, receipt.kill_to_empty_usec) == (0, 0, None)
    assert (receipt.emptied, receipt.removed) == (True, True)


def test_a_stray_is_counted_and_named(cgroup2):
    result = pinfold.run(["sh", "-c", "setsid sleep 61 & setsid sleep 62 & sleep 0.1"], timeout=5)
    check(result, strays=2, outcome="exited")
    named = result.receipt.stray_processes
    assert sorted(stray.argv for stray in named) == [["sleep", "61"], ["sleep", "62"]]
    assert {stray.comm for stray in named} == {"sleep"}
    assert all(stray.sid == stray.pid for stray in named)


def test_a_main_process_whose_leader_thread_has_exited_is_killed_by_its_pidfd(cgroup2, compiled, wait_until, slowness):
    """`cgroup.kill` alone misses it (6.18); strays of that kind take a second round, see below."""
    with pinfold.start([compiled("leader_exited")], stdout=pinfold.PIPE, timeout=20) as run:
        status = Path(f"/proc/{run.pid}/status")
        wait_until(lambda: "State:\tZ" in status.read_text(), "the end of the leader thread")
        run.kill()
        result = run.wait(3 * slowness)
    assert (result.receipt.emptied, result.receipt.removed, result.outcome) == (True, True, "canceled")
    assert result.receipt.kill_rounds == 1


def test_four_processes_without_leaders_end_too(cgroup2, compiled, slowness):
    result = pinfold.run([compiled("leader_exited"), "3"], timeout=0.5 * slowness, stdout=pinfold.PIPE)
    check(result, strays=3)
    assert result.receipt.kill_rounds >= 2


def test_a_stray_without_leader_is_found_after_a_normal_exit(cgroup2, compiled):
    result = pinfold.run(["sh", "-c", f"{compiled('leader_exited')} & sleep 0.2"], stdout=pinfold.PIPE, timeout=10)
    check(result, strays=1, outcome="exited")
    assert result.receipt.stray_processes[0].comm == "leader_exited"


def test_a_round_of_the_kill_that_is_cut_short_thaws_it(cgroup2, compiled, monkeypatch, slowness):
    """Each round freezes the tree; the last one may be given up in the middle, as nobody is left."""
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    monkeypatch.setattr(actions, "_SLICE", -1)  # a step at a time,
    monkeypatch.setattr(actions, "_LOOK", 5.0)  # and the second one too late
    thawed, thaw = [], Cgroup.thaw
    monkeypatch.setattr(Cgroup, "thaw", lambda self: thawed.append(self.dirfd >= 0) or thaw(self))
    result = pinfold.run([compiled("leader_exited"), "3"], timeout=0.5 * slowness, stdout=pinfold.PIPE)
    assert result.receipt.kill_rounds >= 2
    assert (result.receipt.emptied, result.receipt.removed) == (True, True)
    gc.collect()
    assert thawed
    assert all(thawed)
    assert [str(each.exc_value) for each in lost] == []


def test_parents_that_wait_in_vfork_end(cgroup2, compiled, slowness):
    with pinfold.start([compiled("vfork_parents")], stdout=pinfold.PIPE, timeout=1 * slowness) as run:
        assert run.stdout.read() == b"ready\n"
        check(run.wait(10), strays=9)


def test_a_frozen_cgroup_below_does_not_outlive_the_kill(cgroup2, villain):
    check(run_until_ready(villain("frozen_subcgroup")), strays=3, outcome="canceled")


@pytest.mark.parametrize("mode", ["755", "000"])
def test_cgroups_nested_below_are_emptied_and_removed(cgroup2, villain, mode):
    check(run_until_ready(villain("nested_subcgroups", 6, mode)), strays=6, outcome="canceled")


def test_very_deep_cgroups_are_removed_with_few_descriptors(cgroup2, villain):
    check(run_until_ready(villain("nested_subcgroups", 60, "755")), strays=60, outcome="canceled")


def test_a_command_that_locks_its_own_cgroup_is_killed_through_what_is_open(cgroup2, villain):
    check(run_until_ready(villain("locked_cgroup")), strays=1, outcome="canceled")


def test_threads_in_a_threaded_cgroup_below_end(cgroup2, villain):
    check(run_until_ready(villain("threaded_subcgroup")), strays=1, outcome="canceled")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to leave the run's cgroup and come back")
def test_a_run_whose_own_cgroup_was_made_threaded_ends(cgroup2, villain, slowness):
    """Such a cgroup refuses `cgroup.kill` and does not list its processes, only their threads."""
    argv = villain("threaded_own_cgroup")
    check(run_until_ready(argv), strays=3, outcome="canceled")
    late = pinfold.run(argv, stdout=pinfold.PIPE, timeout=slowness)
    check(late, strays=3)
    obedient = pinfold.run(argv, stdout=pinfold.PIPE, timeout=slowness, grace=10)
    assert (late.stdout, obedient.stdout) == (b"ready\n", b"ready\n")
    assert (obedient.outcome, obedient.returncode, obedient.receipt.kill_rounds) == ("timed_out", -15, 0)


def test_an_unprivileged_owner_kills_and_removes_what_the_command_locked(host, delegated):
    found = host("kills_as_nobody", delegated, NESTED)
    assert (found["stdout"], found["stderr"]) == ("ready\n", "")
    assert (found["outcome"], found["strays"]) == ("timed_out", 4)
    assert (found["emptied"], found["removed"], found["stuck"]) == (True, True, [])


def test_closing_a_fold_ends_what_its_kill_misses(cgroup2, compiled, slowness, wait_until):
    """Processes whose leader thread has exited: `cgroup.kill` says nothing to them."""
    argv = [compiled("leader_exited"), "3"]
    fold = pinfold.Fold()
    runs = [fold.start(argv, stdout=pinfold.DEVNULL) for _ in range(3)]
    for run in runs:
        wait_until(lambda run=run: psutil.Process(run.pid).status() == "zombie", "the end of its leader")
    began = time.monotonic()
    fold.close()
    assert time.monotonic() - began < 3 * slowness
    for run in runs:
        with run:
            assert run.wait(5).receipt.emptied


def test_a_fork_bomb_ends_at_once(cgroup2, villain, slowness, wait_until):
    def grown() -> bool:
        return sum(len(procs.read_text().split()) for procs in cgroup2.glob("pinfold-*/run-*/cgroup.procs")) == 301

    with pinfold.start(villain("fork_bomb", 300), stdout=pinfold.PIPE) as run:
        wait_until(grown, "300 children", 10 * slowness)
        run.kill()
        result = run.wait(10)
    check(result, strays=300, outcome="canceled")
    assert result.receipt.kill_to_empty_usec < 2_000_000 * slowness


def test_a_fork_bomb_ends_while_it_grows(cgroup2, villain):
    result = run_until_ready(villain("fork_bomb", 300))
    assert (result.receipt.emptied, result.receipt.removed) == (True, True)


def test_a_tree_that_has_stopped_itself_ends(cgroup2, villain):
    check(run_until_ready(villain("self_stopper")), strays=5, outcome="canceled")


def test_a_stopped_tree_gets_the_signal_and_a_chance_to_obey_it(cgroup2, villain, slowness):
    with pinfold.start(villain("self_stopper"), stdout=pinfold.PIPE, timeout=20, grace=10) as run:
        assert run.stdout.readline() == b"ready\n"
        run.terminate()
        result = run.wait(5 * slowness)
    assert (result.outcome, result.returncode, result.receipt.kill_rounds) == ("canceled", -15, 0)


def test_each_process_gets_the_signal_once(cgroup2, villain, tmp_path, wait_until):
    """Servers take the second SIGTERM for: leave at once."""
    told = tmp_path / "told"
    with pinfold.start(villain("term_counter", told), stdout=pinfold.PIPE, timeout=20, grace=0.5) as run:
        assert run.stdout.readline() == b"ready\n"
        run.terminate()
        assert run.wait(10).returncode == -9
    assert list(told.read_bytes()).count(15) == 1


def test_a_zombie_of_the_commands_is_no_stray(cgroup2, villain):
    line = "import os, time; os.fork() or os._exit(0); time.sleep(0.2)"
    argv = [villain("x")[0], "-I", "-S", "-c", line]
    assert pinfold.run(argv, timeout=10).receipt.strays == 0


class _OnceError(BaseException):
    """What an unlucky moment raises."""


MOMENTS = [
    "pinfold.cgroup.group.Cgroup.list_pids",
    "pinfold.cgroup.group.Cgroup.kill",
    "pinfold.cgroup.group.Cgroup.populated",
    "pinfold.cgroup.group.Cgroup.read_accounts",
    "pinfold.cgroup.group.Cgroup.remove_until",
    "pinfold.cgroup.kill.signal_each",
    "pinfold.backend.cgroupfs.CgroupfsBackend.prepare",
    "pinfold.runs.strays.Naming.__init__",
    "pinfold.runs.pipes.Capture.ready",
    "pinfold.runs.pipes.Capture.watch",
    "pinfold.runs.loop.Loop._wait",
    "pinfold.runs.loop.Loop.aside",
    "pinfold.runs.lifecycle.Lifecycle.on",
    "pinfold.runs.supervise.Supervision.attach",
    "pinfold.runs.supervise.Supervision._let_go",
    "pinfold.runs.supervise.Supervision._look_for_exit",
    "pinfold.runs.supervise.Supervision._reap",
    "pinfold.runs.supervise.Supervision._give_back",
    "pinfold.spawn.start.start",
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: ".".join(moment.split(".")[2:]))
def test_an_exception_at_any_moment_leaves_nothing(cgroup2, monkeypatch, moment, slowness):
    """Each of these raises once, as Ctrl-C might there; no_leaks looks for what stays."""
    where, name = _resolve(moment)
    real = getattr(where, name)
    raised = []

    def once(*args, **kwargs):
        if not raised:
            raised.append(True)
            raise _OnceError
        return real(*args, **kwargs)

    with pinfold.Fold() as fold:
        monkeypatch.setattr(where, name, once)
        begin = time.monotonic()
        with contextlib.suppress(_OnceError):
            fold.run(
                ["sh", "-c", "trap '' TERM; setsid sleep 60 & echo; sleep 60"],
                timeout=0.3,
                grace=0.1,
                capture_output=True,
            )
        took = time.monotonic() - begin
        base = cgroup2 / Path(fold.path).name
        left = [path.name for path in base.iterdir() if path.name.startswith("run-")]
        alive = [pid for run in left for pid in (base / run / "cgroup.procs").read_text().split()]
    assert raised, f"{moment} was never called"
    assert alive == []
    assert took < 5 * slowness


def _resolve(path: str):
    import importlib

    module, _, name = path.rpartition(".")
    try:
        return importlib.import_module(module), name
    except ModuleNotFoundError:
        module, _, kind = module.rpartition(".")
        return getattr(importlib.import_module(module), kind), name


# ---- as process 1 --------------------------------------------------------------------------------------------

AS_PROCESS_1 = """
import os, signal, subprocess, sys, pinfold
own = subprocess.Popen(["true"])  # the host program's, for itself to wait for
os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
script = "for i in 1 2 3 4 5 6; do setsid sleep 60 & done; (sh -c 'exit 5' &); sleep 0.2"
for way in (pinfold.run, lambda *a, **k: pinfold.start(*a, **k).wait()):
    for _ in range(3):
        assert way(["sh", "-c", script], timeout=20).receipt.strays == 6
pinfold.run(["true"])
pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own.pid]
print([pid for pid in pids if open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] == "Z"], own.wait())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: unshare --pid")
def test_as_process_1_it_collects_what_its_runs_leave_and_nobody_elses(cgroup2):
    argv = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", AS_PROCESS_1]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("[] 0\n", 0), done.stderr
