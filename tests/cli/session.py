"""A shell with one job: `session.py SAID CONTROL ARGV…`, on the terminal at fd 0.

Runs ARGV in the foreground process group, says on SAID when it has stopped or ended, and after a byte on CONTROL
continues it in the foreground (`fg`), or exits.
"""

import contextlib
import fcntl
import os
import signal
import sys
import termios

said, control = int(sys.argv[1]), int(sys.argv[2])
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.closerange(3, 64)
    os.execv(sys.argv[3], sys.argv[3:])
with contextlib.suppress(OSError):
    os.setpgid(job, job)
os.write(said, f"job {job}\n".encode())
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    stopped = os.WIFSTOPPED(status)
    foreground = os.tcgetpgrp(0) == job
    os.tcsetpgrp(0, os.getpgrp())
    if stopped:
        os.write(said, f"stopped {os.WSTOPSIG(status)}\n".encode())
    else:
        os.write(said, f"ended {os.waitstatus_to_exitcode(status)} foreground {foreground}\n".encode())
    if not os.read(control, 1) or not stopped:
        break
    os.tcsetpgrp(0, job)
    os.killpg(job, signal.SIGCONT)
    os.write(said, b"continued\n")
