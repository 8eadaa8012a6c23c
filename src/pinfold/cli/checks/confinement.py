"""What a later profile could confine commands with; no run makes use of it yet."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Final

from pinfold.cli.checks import Check
from pinfold.proc import read

_NOT_YET: Final = " (not used yet)"
_CLONE_NEWUSER: Final = 0x10000000
_LANDLOCK_CREATE_RULESET: Final = 444  # on all architectures
_VERSION_ONLY: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION
# Sysctl, what it must not be, what to do about that.
_SYSCTLS: Final = (
    ("user.max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    ("kernel.unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
)
_INSTALL: Final = "as root: apt-get install bubblewrap (dnf, apk and pacman call it so too)"
_PR_SET_DUMPABLE: Final = 4
_BWRAP_DEADLINE: Final = 2.0


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def user_namespaces() -> Iterator[Check]:
    """Tried in a child; the sysctls tell why not."""
    libc = _libc()
    child = os.fork()
    if child == 0:
        code = 255
        with contextlib.suppress(BaseException):
            libc.prctl(_PR_SET_DUMPABLE, 1)  # or /proc/self would be root's, if we came here by a setuid
            code = ctypes.get_errno() if libc.unshare(_CLONE_NEWUSER) else _may_become_root()
        os._exit(code)
    refused = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if refused == 0:
        yield Check("user namespaces", True, "can be made" + _NOT_YET, since="3.8")
        return
    why, fix = f"refused ({os.strerror(refused) if refused > 0 else 'the child was killed'})", None
    for name, bad, mend in _SYSCTLS:
        value = read(f"/proc/sys/{name.replace('.', '/')}")
        if value is not None and value.strip() == bad:
            why, fix = f"{why}: {name} is {bad}", f"as root: {mend}"
            break
    if fix is None:
        fix = "let the seccomp filter or the security module of this host or container pass unshare(CLONE_NEWUSER)"
    yield Check("user namespaces", False, why + _NOT_YET, fix=fix, since="3.8")


def _may_become_root() -> int:
    """In a new user namespace: 0, or the errno. AppArmor lets it be made, and takes all capabilities in it away."""
    try:
        with open("/proc/self/setgroups", "w", encoding="utf-8") as file:
            file.write("deny")
    except OSError as error:
        return error.errno or errno.EPERM
    return 0


def bubblewrap() -> Iterator[Check]:
    """bwrap, by its own word."""
    path = f"{os.environ.get('PATH', '')}:{os.defpath}"
    try:
        ended = subprocess.run(
            ["bwrap", "--version"],  # noqa: S607  # whichever a profile would take
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_BWRAP_DEADLINE,
            check=False,
            stdin=subprocess.DEVNULL,
            env={"PATH": path},
        )
    except (OSError, subprocess.SubprocessError):
        yield Check("bubblewrap", False, "not there" + _NOT_YET, fix=_INSTALL)
        return
    found = ended.stdout.strip() or ended.stderr.strip() or f"ended with status {ended.returncode}"
    yield Check("bubblewrap", ended.returncode == 0, found + _NOT_YET)


def landlock() -> Iterator[Check]:
    """The version of Landlock's ABI (landlock_create_ruleset(2))."""
    libc = _libc()
    abi = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _VERSION_ONLY)
    if abi > 0:
        yield Check("Landlock", True, f"ABI {abi}{_NOT_YET}", since="5.13")
        return
    number = ctypes.get_errno()
    if number == errno.EOPNOTSUPP:
        found, fix = "disabled at boot", "boot with lsm=landlock,… (the others are in /sys/kernel/security/lsm)"
    elif number == errno.ENOSYS:
        found, fix = "not in this kernel", "take a kernel with CONFIG_SECURITY_LANDLOCK"
    else:
        found, fix = f"refused ({os.strerror(number)})", "let the seccomp filter pass landlock_create_ruleset"
    yield Check("Landlock", False, found + _NOT_YET, fix=fix, since="5.13")


def seccomp() -> Iterator[Check]:
    """The actions that filters may take, and the filters that we are under ourselves."""
    status = read("/proc/self/status") or ""
    actions = (read("/proc/sys/kernel/seccomp/actions_avail") or "").split()
    filters = _field(status, "Seccomp_filters")  # Linux 5.9
    under = "" if filters in (None, "0") else f"; {filters} filters are on this process"
    if actions:
        yield Check("seccomp", True, f"{' '.join(actions)}{under}{_NOT_YET}", since="4.14")
    else:
        fix = "take a kernel with CONFIG_SECCOMP_FILTER"
        yield Check("seccomp", False, f"no filters{under}{_NOT_YET}", fix=fix, since="4.14")
    bit = _field(status, "NoNewPrivs")
    if bit is not None:
        found = "already set here: setuid programs give nothing" if bit == "1" else "can be set"
        yield Check("no_new_privs", True, found, since="3.5")


def _field(status: str, name: str) -> str | None:
    match = re.search(rf"^{name}:\s*(\S+)$", status, re.MULTILINE)
    return match[1] if match else None
