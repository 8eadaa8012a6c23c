"""A seccomp filter that asks us about each system call of a process, so that we can fail the Nth (seccomp_unotify(2)).

The calls of programs that it execs go through untouched. x86-64 only: the filter is written by number.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import re
import select
import struct
from collections.abc import Callable

SUPPORTED = platform.machine() == "x86_64"
# Memory, time and threads are the interpreter's; what is left has no error that anybody could handle. A `close` that
# is not carried out would leak by our fault, as would an `rt_sigprocmask`.
_NOT_ASKED = (
    *(9, 10, 11, 12, 25, 27, 28),  # mmap mprotect munmap brk mremap mincore madvise
    *(13, 14, 15, 24, 131, 202, 273, 334),  # rt_sig* sched_yield sigaltstack futex set_robust_list rseq
    *(35, 96, 201, 219, 228, 230),  # nanosleep gettimeofday time restart_syscall clock_*
    *(39, 102, 104, 107, 108, 110, 111, 186),  # get*id
    *(3, 60, 231, 436),  # close exit exit_group close_range
    318,  # getrandom, for which the interpreter has another way, and keeps it open
)
_WRITE, _EXECVE = 1, 59
_NEVER = {(0, errno.EAGAIN), (17, errno.EAGAIN)}  # read, pread64: of the files that are read here, none answers so
_SECCOMP, _PRCTL, _PIDFD_GETFD = 317, 157, 438
_RECV, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_CONTINUE = 1
_HEADER = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"


def _syscall(number: int, *arguments) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(number, *arguments)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def names() -> dict[int, str]:
    """The names of system calls, where the kernel's headers are."""
    with contextlib.suppress(OSError), open(_HEADER, encoding="ascii") as file:
        return {int(number): name for name, number in re.findall(r"#define __NR_(\w+) (\d+)", file.read())}
    return {}


def install(control: int) -> int:
    """Have the calls of this thread, and of what it starts, asked about; not those that write to `control`.

    Returns the fd to ask at. Somebody else has to, from here on.
    """
    load, equal, ret = 0x20, 0x15, 0x06
    allow, ask = 0x7FFF0000, 0x7FC00000
    calls = [(equal, 0, 1, number) for number in _NOT_ASKED]
    program = [(load, 0, 0, 4), (equal, 1, 0, 0xC000003E), (ret, 0, 0, allow), (load, 0, 0, 0)]
    for call in calls:
        program += [call, (ret, 0, 0, allow)]
    program += [(equal, 0, 3, _WRITE), (load, 0, 0, 16), (equal, 0, 1, control), (ret, 0, 0, allow), (ret, 0, 0, ask)]
    code = b"".join(struct.pack("=HBBI", *one) for one in program)
    buffer = ctypes.create_string_buffer(code)
    described = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(buffer)))
    _syscall(_PRCTL, 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    return _syscall(_SECCOMP, 1, 8, described)  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER


class ScopeRequest:
    """The other side: answers what a process asks, and fails one call of its own."""

    def __init__(self, pidfd: int, number: int, is_armed: Callable[[], bool], position: int, error: int):
        """`is_armed`: asked at each call, whether it counts. `position`: which to fail, -1 for none; `error`: how."""
        self.fd = _syscall(_PIDFD_GETFD, pidfd, number, 0)
        self._is_armed, self._position, self._error = is_armed, position, error
        self._own = os.readlink("/proc/self/exe")
        self._ours: dict[int, bool] = {}  # by thread: whether it has not exec'ed anything
        self.calls: list[int] = []
        self.failed: int | None = None
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def answer(self) -> bool:
        """Answer what is there to be answered. False: nobody will ask any more."""
        while events := self._poll.poll(0):
            if not events[0][1] & select.POLLIN:
                return False
            notification = bytearray(_NOTIFICATION.size)
            try:
                fcntl.ioctl(self.fd, _RECV, notification)
            except OSError:  # it has ended meanwhile
                continue
            asked, thread, _flags, call, *_rest = _NOTIFICATION.unpack(notification)
            error, flags = self._answer_to(thread, call)
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.fd, _SEND, _ANSWER.pack(asked, 0, -error, flags))
        return True

    def _answer_to(self, thread: int, call: int) -> tuple[int, int]:
        if not (self._is_ours(thread) and self._is_armed()):
            if call == _EXECVE:
                self._ours[thread] = False
            return 0, _CONTINUE
        self.calls.append(call)
        if len(self.calls) - 1 == self._position and (call, self._error) not in _NEVER:
            self.failed = call
            return self._error, 0
        if call == _EXECVE:
            self._ours[thread] = False
        return 0, _CONTINUE

    def _is_ours(self, thread: int) -> bool:
        if thread not in self._ours:
            try:
                self._ours[thread] = os.readlink(f"/proc/{thread}/exe") == self._own
            except OSError:
                self._ours[thread] = False
        return self._ours[thread]

    def close(self):
        os.close(self.fd)
