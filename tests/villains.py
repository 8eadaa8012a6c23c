"""Small bad programs, each a named function, run as `python tests/villains.py NAME [ARGUMENT…]`.

Each is bounded: none outlives a minute, none makes more than 310 processes.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import sys
import threading
import time

LIFE = 60


def say(text: object) -> None:
    """One line, at once."""
    os.write(1, f"{text}\n".encode())


def own_cgroup() -> str:
    """The directory of the cgroup we are in."""
    with open("/proc/self/cgroup") as file:
        path = next(line[3:].strip() for line in file if line.startswith("0::"))
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if after.startswith("cgroup2 "):
                _id, _parent, _device, root, point, *_ = before.split()
                return os.path.normpath(point + "/" + os.path.relpath(path, root))
    raise SystemExit("no cgroup2")


def put(path: str, text: str) -> None:
    """Write one value to one cgroup file."""
    with open(path, "w") as file:
        file.write(text)


def child(function, *arguments) -> int:
    """Fork; the child does this and nothing else."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*arguments)
        finally:
            os._exit(0)
    return pid


def live() -> None:
    """Be there."""
    time.sleep(LIFE)


def double_forker() -> None:
    """A daemon in a session of its own, whose parent is gone; it says its pid."""

    def daemon() -> None:
        os.setsid()
        child(lambda: (say(os.getpid()), live()))

    os.waitpid(child(daemon), 0)
    live()


def term_ignorer() -> None:
    """Ignore every signal that can be, in ourselves and in a child."""
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    pid = child(live)
    say(pid)
    live()


def term_counter(path: str) -> None:
    """Write a byte for each SIGTERM that is delivered; many servers take the second as: leave at once."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK)
    signal.set_wakeup_fd(fd)
    signal.signal(signal.SIGTERM, lambda *_: None)
    say("ready")
    end = time.monotonic() + LIFE
    while time.monotonic() < end:
        time.sleep(1)


def self_stopper() -> None:
    """A tree that stops itself: children first, then the main process."""
    for _ in range(5):
        child(lambda: (os.kill(os.getpid(), signal.SIGSTOP), live()))
    say("ready")
    os.kill(os.getpid(), signal.SIGSTOP)
    live()


def stopped_daemons(count: str) -> None:
    """Daemons in sessions of their own, whose parents are gone, deaf to all they can be and stopped; then ourselves."""
    read, write = os.pipe()

    def daemon() -> None:
        os.setsid()
        child(sleeper)

    def sleeper() -> None:
        for number in range(1, signal.NSIG):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_IGN)
        os.write(write, b".")
        os.kill(os.getpid(), signal.SIGSTOP)
        live()

    for _ in range(int(count)):
        os.waitpid(child(daemon), 0)
        os.read(read, 1)
    say("ready")
    os.kill(os.getpid(), signal.SIGSTOP)
    live()


def fork_bomb(count: str) -> None:
    """Each process forks two more, until there are `count`."""
    read, write = os.pipe2(os.O_NONBLOCK)
    os.write(write, b"." * int(count))
    say("ready")
    while True:
        try:
            os.read(read, 1)
        except BlockingIOError:
            live()
        if os.fork() == 0:
            os.setsid()


def frozen_subcgroup() -> None:
    """Children in a cgroup below ours that is frozen."""
    sub = own_cgroup() + "/frozen"
    os.mkdir(sub)
    for _ in range(3):
        put(sub + "/cgroup.procs", str(child(live)))
    put(sub + "/cgroup.freeze", "1")
    say("ready")
    live()


def nested_subcgroups(depth: str, mode: str) -> None:
    """A chain of cgroups with a child in each; `mode` is what the topmost is left with."""
    top = directory = own_cgroup() + "/nested"
    for _ in range(int(depth)):
        os.mkdir(directory)
        put(directory + "/cgroup.procs", str(child(live)))
        directory += "/deeper"
    os.chmod(top, int(mode, 8))
    say("ready")
    live()


def locked_cgroup() -> None:
    """Take away the permissions of our own cgroup and of all its files."""
    directory = own_cgroup()
    child(live)
    for name in os.listdir(directory):
        os.chmod(directory + "/" + name, 0)
    os.chmod(directory, 0)
    say("ready")
    live()


def threaded_subcgroup() -> None:
    """A thread of ours in a threaded cgroup below, and a child there too."""
    sub = own_cgroup() + "/threads"
    os.mkdir(sub)
    put(sub + "/cgroup.type", "threaded")
    started = threading.Event()

    def thread() -> None:
        put(sub + "/cgroup.threads", str(threading.get_native_id()))
        started.set()
        live()

    pid = child(live)
    put(sub + "/cgroup.procs", str(pid))
    threading.Thread(target=thread, daemon=True).start()
    started.wait(LIFE)
    say("ready")
    live()


def threaded_own_cgroup() -> None:
    """Make the cgroup of our own run threaded, which needs root, and fork into it: then it refuses `cgroup.kill`."""
    own = own_cgroup()
    base = os.path.dirname(own)
    put(os.path.dirname(base) + "/cgroup.procs", "0")
    put(own + "/cgroup.type", "threaded")
    put(base + "/cgroup.procs", "0")
    put(own + "/cgroup.threads", "0")
    for _ in range(3):
        child(live)
    threading.Thread(target=live, daemon=True).start()
    say("ready")
    live()


def pipe_hander(path: str) -> None:
    """Hand our stdout to whoever listens there, and end."""
    with socket.socket(socket.AF_UNIX) as out:
        out.connect(path)
        out.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1]))])
    say("handed over")


def cpu_burner() -> None:
    """Two processes that use all they get."""
    os.fork()
    end = time.monotonic() + LIFE
    while time.monotonic() < end:
        pass


def thrower(total: str, stream: str = "1") -> None:
    """Write `total` bytes as fast as they are taken."""
    left, block = int(total), bytes(range(256)) * 256
    while left:
        left -= os.write(int(stream), block[: min(left, len(block))])


def both_streams(out: str, err: str) -> None:
    """Write so many bytes to each stream, in turns of uneven size; the content is told by the place of each byte."""
    pattern = bytes(range(251))
    blocks = {1: pattern * 262, 2: pattern[::-1] * 262}
    done, total, turn = {1: 0, 2: 0}, {1: int(out), 2: int(err)}, 1
    while done != total:
        for fd in (1, 2):
            at = done[fd]
            size = min(total[fd] - at, 65000 if turn % 3 else 997)
            if size:
                start = at % 251
                done[fd] += os.write(fd, memoryview(blocks[fd])[start : start + size])
        turn += 1


def report() -> None:
    """Say what we were born with."""
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    umask = os.umask(0)
    facts = {
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
        "ignored": status["SigIgn"],
        "blocked": status["SigBlk"],
        "no_new_privs": status["NoNewPrivs"],
        "groups": [int(group) for group in status["Groups"].split()],
        "uids": [int(uid) for uid in status["Uid"].split()],
        "gids": [int(gid) for gid in status["Gid"].split()],
        "umask": umask,
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "pid": os.getpid(),
        "sid": os.getsid(0),
        "pgid": os.getpgid(0),
        "nonblocking": [bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK) for fd in range(3)],
        "targets": [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)],
    }
    say(json.dumps(facts))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
