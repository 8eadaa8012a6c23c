"""What keeps a process from dying, each as a program that says `ready` and holds until its stdin ends."""

import ctypes
import os
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)


def checked(value: int) -> int:
    if value < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return value


def silent(directory: str) -> None:
    """A file system in a mount namespace of our own that never takes a request (fuse(4)). Its waiters can be killed."""
    mounted(directory)
    print("ready", flush=True)


def fuse(directory: str) -> None:
    """The same, but it takes one request, and never answers: its waiter cannot be killed any more."""
    device = mounted(directory)
    print("ready", flush=True)
    os.read(device, 1 << 17)
    print("asked", flush=True)


def mounted(directory: str) -> int:
    clone_newns, ms_rec, ms_private = 0x20000, 1 << 14, 1 << 18
    checked(LIBC.unshare(clone_newns))
    checked(LIBC.mount(b"none", b"/", None, ms_rec | ms_private, None))
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    checked(LIBC.mount(b"never", directory.encode(), b"fuse", 0, options))
    request = os.read(device, 1 << 17)
    _length, opcode, unique = struct.unpack_from("=IIQ", request)
    assert opcode == 26, opcode  # FUSE_INIT
    major, minor, readahead = struct.unpack_from("=III", request, 40)
    answer = struct.pack("=IIIIHHIIHHII24x", major, min(minor, 31), readahead, 0, 0, 0, 1 << 16, 1, 0, 0, 0, 0)
    os.write(device, struct.pack("=IiQ", 16 + len(answer), 0, unique) + answer)
    return device


def tracer(pid: str) -> None:
    """Holds a process at its exit (ptrace(2), PTRACE_O_TRACEEXIT)."""
    seize, option_exit = 0x4206, 0x40
    LIBC.ptrace.argtypes = [ctypes.c_long] * 4
    checked(LIBC.ptrace(seize, int(pid), 0, option_exit))
    print("ready", flush=True)


if __name__ == "__main__":
    {"fuse": fuse, "silent": silent, "tracer": tracer}[sys.argv[1]](sys.argv[2])
    sys.stdin.read()
