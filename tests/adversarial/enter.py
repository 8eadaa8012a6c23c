"""Become the caller that a trial wants, then exec: `enter.py CGROUP UID TERMINAL SHOW… -- ARGV…`.

Runs before the command line under test: enters the cgroup, takes the terminal on fd 0 as its own, and for a UID other
than ours gives up root for good. What of SHOW that uid cannot reach (an interpreter below a 0700 home) is bound into a
mount namespace of this process only; nothing else of those directories is in there.
"""

import ctypes
import fcntl
import os
import sys
import termios

CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [text and os.fsencode(text) for text in (source, target, kind)]
    _checked(_libc.mount(*encoded, ctypes.c_ulong(flags), data and data.encode()))


def _closed_above(path: str, uid: int) -> str | None:
    """The topmost directory on the way to `path` that `uid`, with no group, cannot search."""
    parts = path.split("/")
    for n in range(2, len(parts) + 1):
        directory = "/".join(parts[:n])
        status = os.stat(directory)
        if os.path.isdir(directory) and not status.st_mode & (0o100 if status.st_uid == uid else 0o001):
            return directory
    return None


def show(paths: list[str], uid: int) -> None:
    """Make `paths` reachable for `uid`."""
    closed = {path: above for path in paths if (above := _closed_above(path, uid))}
    if not closed:
        return
    _checked(_libc.unshare(CLONE_NEWNS))
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    held = {path: os.open(path, os.O_PATH) for path in closed}
    for above in sorted(set(closed.values())):
        _mount("none", above, "tmpfs", 0, "mode=0755")
    for path, fd in held.items():
        os.makedirs(path, exist_ok=True)
        _mount(f"/proc/self/fd/{fd}", path, None, MS_BIND | MS_REC)
        os.close(fd)


def main() -> None:
    at, here = sys.argv.index("--"), os.getcwd()
    cgroup, uid, terminal, *paths = sys.argv[1:at]
    with open(cgroup + "/cgroup.procs", "w") as procs:
        procs.write("0")
    if terminal == "1":
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if int(uid) != os.geteuid():
        show(paths, int(uid))
        os.setgroups([])
        os.setresgid(int(uid), int(uid), int(uid))
        os.setresuid(int(uid), int(uid), int(uid))
    os.chdir(here)  # through the new mounts, if there are any
    os.execv(sys.argv[at + 1], sys.argv[at + 1 :])


main()
