"""The owner record: who made a base cgroup, written on the cgroup itself.

It lives in an extended attribute (cgroup v2 takes user.* ones since Linux 5.7), so there is no state file to go stale:
the record is there exactly as long as the cgroup.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final

ATTRIBUTE: Final = "user.pinfold.owner"


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc_pid_stat(5), field 22); with the pid it is unique."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name may hold spaces and parentheses; what follows the last ")" does not.
            return int(file.read().rpartition(b")")[2].split()[19])
    except OSError:
        return None


def record() -> dict[str, Any]:
    """The record of this process."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read().strip()
    pid = os.getpid()
    return {"schema": 1, "pid": pid, "start_time": start_time(pid), "boot_id": boot_id, "uid": os.geteuid()}


def sign(directory: int) -> bool:
    """Write our record on a held cgroup directory. False: this kernel takes no user attributes there."""
    import json

    try:
        os.setxattr(directory, ATTRIBUTE, json.dumps(record()).encode())
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
            return False
        raise
    return True


def read(directory: int) -> dict[str, Any] | None:
    """The record on a held cgroup directory, or None if there is none that we understand."""
    import json

    try:
        found = json.loads(os.getxattr(directory, ATTRIBUTE))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("schema") == 1 else None
