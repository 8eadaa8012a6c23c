"""Which kind of container, or of CI machine, this is; and how a writable cgroup v2 gets into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from pinfold.proc import read
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final, Literal

    Kind = Literal["kubernetes", "podman", "docker", "github"]


MOUNT: Final = "mount -t cgroup2 none /sys/fs/cgroup"
# A job's steps are in a system service of the runner, with sudo and without a session.
_AS_A_SERVICE: Final = (
    "sudo systemd-run --wait --pipe --collect -p Delegate=yes -p WorkingDirectory=$PWD env PATH=$PATH COMMAND"
)
_FIXES: Final[dict[Kind, str]] = {
    "kubernetes": "use a runtimeClassName whose containerd runtime has cgroup_writable = true (containerd 2.1), or "
    "securityContext: {privileged: true}",
    "podman": "start the container by: podman run --security-opt unmask=/sys/fs/cgroup …",
    "docker": "start the container by: docker run --cgroupns=private --security-opt writable-cgroups=true … "
    "(Docker 28; before: --privileged)",
    "github": f"run it by: {_AS_A_SERVICE}",
}
_ALL: Final = (
    "docker run --cgroupns=private --security-opt writable-cgroups=true (Docker 28), "
    "podman run --security-opt unmask=/sys/fs/cgroup, in Kubernetes cgroup_writable = true of containerd's runtime, "
    "on GitHub Actions sudo systemd-run -p Delegate=yes"
)
_CAP_SYS_ADMIN: Final = 1 << 21


def kind(exists: Callable[[str], bool] = os.path.exists, environ: Mapping[str, str] = os.environ) -> Kind | None:
    """What this process runs in, by the marks that its makers leave; None: none of those.

    A pod's containers may carry Docker's mark as well, and a CI job's container is that container first.
    """
    if "KUBERNETES_SERVICE_HOST" in environ:
        return "kubernetes"
    if exists("/run/.containerenv"):
        return "podman"
    if exists("/.dockerenv"):
        return "docker"
    return "github" if environ.get("GITHUB_ACTIONS") == "true" else None


def may_mount(status: str, uid_map: str) -> bool:
    """Whether a process with these texts in /proc may mount cgroup2 itself: CAP_SYS_ADMIN, and over the whole host.

    Within a user namespace the capability is not enough: it takes a cgroup namespace of its own besides.
    """
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) & _CAP_SYS_ADMIN) and uid_map.split() == ["0", "0", "4294967295"]


def mount_fix(found: Kind | None, *, mounting: bool, read_only: str | None = None) -> str:
    """How to get a usable mount of cgroup v2; `mounting`: whether we may mount it ourselves.

    `read_only`: where it is mounted so. That is how containers have it, so what is none that we know gets the fixes of
    all.
    """
    if found is not None and not mounting:
        return _FIXES[found]
    if read_only is None:
        return f"mount it: {MOUNT}"
    return f"as root: mount -o remount,rw {read_only}; in a container: {_ALL}"


def mount_fix_here(read_only: str | None = None) -> str:
    """The same, for this process."""
    mounting = may_mount(read("/proc/self/status") or "", read("/proc/self/uid_map") or "")
    return mount_fix(kind(), mounting=mounting, read_only=read_only)


def delegation_fix(found: Kind | None, uid: int) -> str:
    """How to get a cgroup that this user may make others in."""
    if found == "github":
        return _FIXES[found]
    return (
        "start it by: systemd-run --user --scope -p Delegate=yes …; or as root: "
        f"chown {uid} DIR DIR/cgroup.procs DIR/cgroup.threads DIR/cgroup.subtree_control "
        "for a cgroup DIR that holds this process"
    )
