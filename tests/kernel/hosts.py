"""Host programs: processes of a peculiar state that use pinfold. Run as `python hosts.py REPORT NAME [ARGUMENT…]`.

Each is a named function; what it returns is written to REPORT as JSON, which is where the tests look. Descriptors 0-2
may be closed in here, so nothing is printed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import gc
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

import pinfold

_libc = ctypes.CDLL(None, use_errno=True)
PR_GET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 3, 22, 38
SYS_CLONE3 = 435
TRUE = "/bin/true"


def fds() -> int:
    """How many are open, without the one that looks."""
    return len(os.listdir("/proc/self/fd")) - 1


def children() -> list[int]:
    """Our children, zombies included; not by waiting for them."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def become_nobody(cgroup: str) -> None:
    """Be uid 65534, in a cgroup that belongs to it. What is imported late could not be read any more, below /root."""
    pinfold.run(["sh", "-c", "setsid sleep 60 & exit 1"], capture_output=True, timeout=5, user=0)
    spawn_error(["/no/such/program"])
    pinfold.default_fold().close()
    pinfold.run.__globals__["_default"] = None
    with open(cgroup + "/cgroup.procs", "w") as file:
        file.write("0")
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def refuse_clone3(number: int) -> None:
    """A seccomp filter under which clone3 fails with this errno."""
    load, jump_equal, ret = 0x20, 0x15, 0x06
    program = b"".join(
        struct.pack("HBBI", *line)
        for line in (
            (load, 0, 0, 0),
            (jump_equal, 0, 1, SYS_CLONE3),
            (ret, 0, 0, 0x00050000 | number),
            (ret, 0, 0, 0x7FFF0000),
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)))
    assert _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert _libc.prctl(PR_SET_SECCOMP, 2, header, 0, 0) == 0, os.strerror(ctypes.get_errno())


def spawn_error(argv: list[str], **options) -> dict:
    """What refusing to start says."""
    try:
        pinfold.run(argv, **options)
    except pinfold.SpawnError as error:
        return {
            "step": error.step,
            "errno": error.errno_name,
            "kind": type(error).__name__,
            "outcome": error.result.outcome,
            "emptied": error.result.receipt.emptied,
            "removed": error.result.receipt.removed,
        }
    raise AssertionError(f"{argv} was started")


# ---- spawn ---------------------------------------------------------------------------------------------------


def closed_fds(*numbers: str):
    """With some of 0-2 closed, in every way of wiring a command up."""
    for number in numbers:
        os.close(int(number))
    before = fds()
    out = {}
    captured = pinfold.run(["sh", "-c", "cat; echo out; echo err >&2"], input=b"in ", capture_output=True)
    out["captured"] = [captured.stdout.decode(), captured.stderr.decode()]
    seen = pinfold.run(["sh", "-c", "for fd in 0 1 2; do readlink /proc/$$/fd/$fd; done"], stdout=pinfold.PIPE)
    out["seen"] = seen.stdout.decode().split()
    out["inherit"] = pinfold.run(["sh", "-c", "echo out; echo err >&2; exit 3"]).returncode
    with pinfold.start(["cat"], stdin=pinfold.PIPE, stdout=pinfold.PIPE) as run:
        out["started"] = run.communicate(b"through")[0].decode()
    pinfold.default_fold().close()
    out["left"] = fds() - before
    return out


def closed_fds_idle(*numbers: str):
    """The same, where what goes to 1 and 2 has to be relayed."""
    for number in numbers:
        os.close(int(number))
    return pinfold.run(["sh", "-c", "echo out; exit 3"], idle_timeout=10).returncode


def closed_fds_combined(*numbers: str):
    """The same, with stderr going where stdout goes."""
    for number in numbers:
        os.close(int(number))
    path = sys.argv[1] + ".seen"
    line = f"seen=$(readlink /proc/$$/fd/2); echo $seen > {path}"
    result = pinfold.run(["sh", "-c", line], stderr=pinfold.STDOUT)
    with open(path) as file:
        return [result.returncode, file.read().strip()]


def sigchld_ignored():
    """The kernel throws the status of children away."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    codes = [pinfold.run(["sh", "-c", f"exit {code}"]).returncode for code in (0, 7, 255)]
    codes.append(pinfold.run(["sh", "-c", "kill -9 $$"]).returncode)
    with pinfold.start(["sh", "-c", "exit 5"]) as run:
        codes.append(run.wait(10).returncode)
    return {"codes": codes, "missing": spawn_error(["/no/such/program"]), "children": children()}


def foreign_waiter():
    """A thread of the host program waits for any child, all the time."""
    stop = threading.Event()
    taken = []

    def waiter() -> None:
        while not stop.is_set():
            try:
                taken.append(os.waitpid(-1, os.WNOHANG))
            except ChildProcessError:
                os.sched_yield()

    thread = threading.Thread(target=waiter)
    thread.start()
    try:
        runs = [pinfold.run(["sh", "-c", f"exit {code}"]) for code in range(100)]
        missing = spawn_error(["/no/such/program"])
    finally:
        stop.set()
        thread.join()
    return {"codes": [run.returncode for run in runs], "outcomes": sorted({run.outcome for run in runs}),
            "missing": missing["errno"]}  # fmt: skip


def own_children():
    """The host program has children and a handler for their end, both of which are its own."""
    told = []

    def handler(_number, _frame) -> None:
        told.append(1)

    signal.signal(signal.SIGCHLD, handler)
    mine = [subprocess.Popen(["sh", "-c", f"exit {code}"]) for code in (3, 4, 5)]
    for process in mine:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    told.clear()
    failed = spawn_error(["/no/such/program"])
    heard_of_failure = len(told)
    codes = [pinfold.run(["sh", "-c", "exit 9"]).returncode for _ in range(5)]
    return {
        "theirs": codes,
        "mine": [process.wait(5) for process in mine],
        "handler": signal.getsignal(signal.SIGCHLD) is handler,
        "heard of failure": heard_of_failure,
        "failed": failed["errno"],
    }


def embedded():
    """What a host program has of its own, before and with an open fold: children, handlers, mask, fds, where it is."""

    def facts():
        numbers = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
        return {
            "handlers": [str(signal.getsignal(number)) for number in numbers],
            "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
            "wakeup": signal.set_wakeup_fd(-1),
            "timers": [signal.getitimer(which) for which in (signal.ITIMER_REAL, signal.ITIMER_PROF)],
            "place": [os.getcwd(), Path("/proc/self/cgroup").read_text(), os.getpgrp(), os.getsid(0)],
            "threads": threading.active_count(),
            "limits": [resource.getrlimit(which) for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],
        }

    def children():
        found = []
        with contextlib.suppress(ChildProcessError):
            while True:  # as an init does: it would wait for a guard for ever
                found.append(os.waitstatus_to_exitcode(os.wait()[1]))
        return sorted(found)

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    reads, writes = os.pipe()
    os.set_inheritable(writes, True)
    before = facts()
    with pinfold.Fold() as fold:
        fold.run(["true"])
        after = facts()
        mine = [subprocess.Popen(["sh", "-c", f"exit {code}"]).pid for code in (3, 4)]
        waited = children()
        fold.run(["true"])
        os.close(writes)
        end = select.select([reads], [], [], 5)[0] and os.read(reads, 1) == b""
        guard = fold.guard
    os.close(reads)
    return {
        "same": before == after,
        "children": len(mine),
        "waited": waited,
        "its pipe ended": bool(end),
        "guard": guard,
    }


def big_heap(megabytes: str):
    """Page faults per start: a fork makes every page of ours fault again on its next write."""
    heap = bytearray(int(megabytes) << 20)
    step = 2 << 20  # one write per huge page, should they be huge

    def touch() -> None:
        for at in range(0, len(heap), step):
            heap[at] = (heap[at] + 1) & 255

    def faults(start) -> int:
        start()
        touch()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            start()
            touch()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5

    touch()
    forked = faults(lambda: subprocess.run([TRUE], preexec_fn=lambda: None, check=True))
    return {"pages": len(heap) // step, "fork": forked, "pinfold": faults(lambda: pinfold.run([TRUE]))}


def dumpable(closed: str):
    """A start as another user leaves this process as it was."""
    before = _libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
    threads = [threading.Thread(target=lambda: pinfold.run(["id", "-u"], user="nobody", stdout=pinfold.DEVNULL))
               for _ in range(8)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = spawn_error([closed + "/no-such"], user="nobody")
    return {"before": before, "after": _libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), "uids": os.getresuid(),
            "failed": failed["errno"]}  # fmt: skip


def user_change_as_nobody(cgroup: str):
    """Without privilege, becoming somebody else is refused; staying who we are is not."""
    become_nobody(cgroup)
    return {
        "root": spawn_error(["true"], user="root"),
        "group": spawn_error(["true"], group="root"),
        "self": pinfold.run(["id", "-u"], user="nobody", capture_output=True).stdout.decode().strip(),
        "plain": pinfold.run(["id", "-u"], capture_output=True).stdout.decode().strip(),
    }


def clone3_refused(name: str):
    """The slow way in."""
    refuse_clone3(getattr(errno, name))
    plain = pinfold.run(["cat", "/proc/self/cgroup"], capture_output=True)
    fleeing = pinfold.run(["sh", "-c", "setsid sleep 60 & echo $!; wait"], timeout=0.3, capture_output=True)
    other = {"user": "nobody"} if os.geteuid() == 0 else {}
    user = pinfold.run(["id", "-u"], capture_output=True, **other)
    return {
        "entry": plain.placement.entry,
        "inside": plain.placement.cgroup in plain.stdout.decode().split("0::", 1)[1].splitlines(),
        "outcome": fleeing.outcome,
        "emptied": fleeing.receipt.emptied,
        "stray": int(fleeing.stdout),
        "user": user.stdout.decode().strip(),
        "missing": spawn_error(["/no/such/program"]),
        "cwd": spawn_error(["true"], cwd="/no/such/directory"),
        "children": children(),
    }


def changing_environment(runs: str):
    """Another thread changes the environment, which may move it, while commands start with it."""
    os.environ["PINFOLD_MARK"] = "here"
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            for at in range(200):
                os.environ[f"PINFOLD_{number}_{at}"] = "x" * 50
            for at in range(200):
                del os.environ[f"PINFOLD_{number}_{at}"]
            number += 1

    thread = threading.Thread(target=change)
    thread.start()
    wrong = []
    try:
        for _ in range(int(runs)):
            try:
                out = pinfold.run(["/usr/bin/env"], capture_output=True).stdout.splitlines()
            except pinfold.SpawnError as error:
                wrong.append(str(error))
                continue
            if b"PINFOLD_MARK=here" not in out or any(b"=" not in line for line in out):
                wrong.append(repr(out)[:300])
    finally:
        stop.set()
        thread.join()
    return wrong


# ---- streams and folds ---------------------------------------------------------------------------------------


def few_descriptors(most: str):
    """Run out of descriptors at every step in turn: nothing may be left of the run that could not be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # What the first run opens once and for all is not a leak.
    pinfold.run(["sh", "-c", "sleep 60 & echo"], capture_output=True, input=b"x" * 100, timeout=5)
    pinfold.default_fold().close()
    before, leaks, done = fds(), [], []
    for spare in range(1, int(most)):
        fold = pinfold.Fold(spare=False)
        base = fold.path
        resource.setrlimit(resource.RLIMIT_NOFILE, (fds() + spare, hard))
        begin = time.monotonic()
        how = "ran"
        try:
            fold.run(["sh", "-c", "sleep 60 & echo"], capture_output=True, input=b"x" * 100, timeout=5)
        except OSError as error:
            how = errno.errorcode.get(error.errno or 0, "?")
        except BaseException as error:
            how = repr(error)
        took = time.monotonic() - begin
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        fold.close()
        gc.collect()
        left = {"fds": fds() - before, "children": len(children()), "cgroup": bool(_directories(base))}
        done.append(how)
        if any(left.values()) or took > 3 or how not in ("ran", "EMFILE"):
            leaks.append({"spare": spare, "how": how, "took": round(took, 1), **left})
            for pid in children():
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0x40000000)
            before = fds()
    return {"leaks": leaks, "refused": done.count("EMFILE"), "ran": done.count("ran")}


def _directories(path: str) -> list[str]:
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4] for line in file if " - cgroup2 " in line]
    return [point + path for point in points if os.path.isdir(point + path)]


class _Interrupt(BaseException):
    """What a signal handler raises."""


def _raise(_number, _frame) -> None:
    raise _Interrupt


def _interrupted(after: float, act, odd: list[str]) -> bool:
    """Whether `act` was cut short by the signal that comes `after` so many seconds; `odd` gets any other exception."""
    try:
        signal.setitimer(signal.ITIMER_REAL, max(1e-6, after))
        act()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except _Interrupt:
        return True
    except BaseException as error:
        odd.append(repr(error))
    finally:
        with contextlib.suppress(_Interrupt):
            signal.setitimer(signal.ITIMER_REAL, 0)
    return False


def interrupts(count: str):
    """An exception from a signal handler, at moments spread over a run's whole life."""

    fold = pinfold.Fold()
    argv = ["sh", "-c", "setsid sleep 60 & echo"]
    fold.run(argv, capture_output=True)  # the first one takes longer
    begin = time.monotonic()
    for _ in range(3):
        fold.run(argv, capture_output=True)
    span = (time.monotonic() - begin) / 3 * 1.2
    signal.signal(signal.SIGALRM, _raise)
    interrupted, slow, left, odd = 0, [], [], []
    for at in range(int(count)):
        begin = time.monotonic()
        interrupted += _interrupted(span * at / int(count), lambda: fold.run(argv, capture_output=True), odd)
        if (took := time.monotonic() - begin) > 2:
            slow.append(round(took, 1))
        if there := children():
            left.append([psutil.Process(pid).status() for pid in there])
            for pid in there:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0x40000000)
    base = fold.path
    alive = 0
    for directory in _directories(base):
        for root, _dirs, _files in os.walk(directory):
            with open(root + "/cgroup.procs") as file:
                alive += len(file.read().split())
    fold.close()
    return {"interrupted": interrupted, "slow": slow, "children": left, "alive": alive, "odd": odd}


def interrupts_start(count: str):
    """The same for `start`: at moments spread over the time until it returns."""

    odd = []
    threading.excepthook = lambda thread: odd.append(repr(thread.exc_value))
    fold = pinfold.Fold(spare=False)

    def start() -> None:
        fold.start(["sh", "-c", "setsid sleep 60 & echo"], stdout=pinfold.PIPE, timeout=5)

    def settled() -> bool:
        end = time.monotonic() + 8
        while fold._running and time.monotonic() < end:
            time.sleep(0.001)
        return not fold._running

    spans = []
    for _ in range(10):  # the first one takes longer, as it begins the loop
        begin = time.monotonic()
        start()
        spans.append(time.monotonic() - begin)
    span = min(spans)
    settled()
    gc.collect()
    before, interrupted, stuck = fds(), 0, 0
    signal.signal(signal.SIGALRM, _raise)
    for at in range(int(count)):
        interrupted += _interrupted(span * at / int(count), start, odd)
        stuck += not settled()
    end = time.monotonic() + 5
    while threading.active_count() > 1 and time.monotonic() < end:
        time.sleep(0.001)
    gc.collect()
    grown = fds() - before
    fold.close()
    return {"interrupted": interrupted, "stuck": stuck, "odd": odd, "children": children(), "grown": grown}


def no_descriptors_at_the_end(_: str = ""):
    """None is left when the time is up: naming and signalling the strays needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    argv = ["sh", "-c", "setsid sleep 60 & trap '' TERM; echo ready; while :; do sleep 1; done"]
    with pinfold.start(argv, stdout=pinfold.PIPE, timeout=1, grace=0.2) as run:
        run.stdout.readline()
        for name in [name for name in sys.modules if name.partition(".")[0] == "psutil"]:
            del sys.modules[name]
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            result = run.wait(10)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    receipt = result.receipt
    return {"outcome": result.outcome, "strays": receipt.strays,
            "unlisted": receipt.unlisted_cgroups, "named": [s.comm for s in receipt.stray_processes],
            "kept": [receipt.emptied, receipt.removed]}  # fmt: skip


def few_descriptors_start(most: str):
    """`start` with none to a few free descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pinfold.run(["true"])
    found = []
    for spare in range(int(most)):
        fold = pinfold.Fold(spare=False)
        before = fds()
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + spare, hard))
        try:
            fold.start(["sleep", "60"])
            how = "started"
        except OSError as error:
            how = errno.errorcode.get(error.errno or 0, "?")
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        registered, grown = len(fold._running), fds() - before
        begin = time.monotonic()
        fold.close()
        found.append([how, registered, grown, time.monotonic() - begin < 2])
    return found


def worker_of_multiprocessing(_: str = ""):
    """It ends by os._exit: what it opened has to be closed all the same."""
    import multiprocessing

    worker = multiprocessing.get_context("fork").Process(target=pinfold.run, args=(["true"],))
    worker.start()
    worker.join(20)
    return worker.exitcode


def ends_with_an_open_fold(_: str = ""):
    """The program ends, has closed nothing and waits for nothing."""
    global _open
    _open = pinfold.Fold()
    return _open.start(["sh", "-c", "setsid sleep 60 & exec sleep 60"]).pid


def forks_inside_with(_: str = ""):
    """The child leaves a with block whose run is its parent's."""
    found = {}
    with pinfold.start(["cat"], stdin=pinfold.PIPE, stdout=pinfold.PIPE, timeout=20) as run:
        pid = os.fork()
        if pid:
            found["child"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            found["going"] = run.poll() is None
            found["said"] = run.communicate(b"on")[0].decode()
        else:
            signal.alarm(5)
    if not pid:
        try:
            run.wait(1)
        except pinfold.Error:
            os._exit(7)
        os._exit(8)
    return found | {"outcome": run.wait(5).outcome}


def forks(_: str = ""):
    """A forked child uses pinfold; the fold of its parent goes on."""
    fold = pinfold.Fold()
    pinfold.run(["true"])
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = {"default": pinfold.run(["echo", "child"], capture_output=True).stdout.decode()}
            try:
                fold.run(["true"])
            except pinfold.Error as error:
                said["foreign"] = str(error)
            with pinfold.Fold() as own:
                said["own"] = own.run(["echo", "own"], capture_output=True).stdout.decode()
            fold.close()  # lets go, removes nothing
            pinfold.default_fold().close()
            os.write(write, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as pipe:
        said = json.load(pipe)
    os.waitpid(pid, 0)
    after = [fold.run(["echo", "parent"], capture_output=True), pinfold.run(["echo", "parent"], capture_output=True)]
    fold.close()
    return {**said, "after": [result.stdout.decode() for result in after],
            "receipts": [result.receipt.removed for result in after]}  # fmt: skip


def forks_while_starting(count: str):
    """Forks that fall on a start as another user in a second thread; each child starts one too."""
    stop = threading.Event()

    def start() -> None:
        while not stop.is_set():
            pinfold.run([TRUE], user="nobody")

    thread = threading.Thread(target=start)
    thread.start()
    hung = 0
    try:
        for _ in range(int(count)):
            pid = os.fork()
            if pid == 0:
                try:
                    signal.signal(signal.SIGALRM, signal.SIG_DFL)
                    signal.alarm(5)
                    pinfold.run([TRUE], user="nobody")
                    pinfold.default_fold().close()
                finally:
                    os._exit(0)
            _pid, status = os.waitpid(pid, 0)
            if os.waitstatus_to_exitcode(status):
                hung += 1
                break
    finally:
        stop.set()
        thread.join()
    return hung


def forks_while_importing(module: str):
    """A fork by one thread while another one, at its first use of us, is in the middle of an import."""
    importing, forked = threading.Event(), threading.Event()

    class Finder:
        def find_spec(self, name, _path, _target=None):
            if name == module:
                importing.set()
                forked.wait(0.5)  # in vain: the fork has to wait for us

    sys.meta_path.insert(0, Finder())
    thread = threading.Thread(target=lambda: pinfold.run([TRUE], timeout=5).pid)
    thread.start()
    assert importing.wait(10), f"{module} was there already"
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(5)
            pinfold.run([TRUE])
            pinfold.default_fold().close()
        finally:
            os._exit(0)
    forked.set()
    thread.join()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ends_with_a_run_going():
    """The program ends and does not wait for what it started."""
    return pinfold.start(["sh", "-c", "setsid sleep 60 & exec sleep 60"]).pid


def kills_as_nobody(cgroup: str, script: str):
    """A run as an unprivileged user that hides in cgroups below its own."""
    become_nobody(cgroup)
    result = pinfold.run(["sh", "-c", script], timeout=1, capture_output=True)
    pinfold.default_fold().close()
    return {"outcome": result.outcome, "stdout": result.stdout.decode(), "stderr": result.stderr.decode(),
            "strays": result.receipt.strays, "emptied": result.receipt.emptied,
            "removed": result.receipt.removed, "stuck": result.receipt.stuck_pids}  # fmt: skip


if __name__ == "__main__":
    faulthandler.dump_traceback_later(30, exit=True)  # says where, before the test's own deadline
    _REPORT = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    _found = globals()[sys.argv[2]](*sys.argv[3:])
    os.write(_REPORT, json.dumps(_found).encode())
