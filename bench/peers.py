"""Others that run a command with a limit of time, or in a box: who is installed, and how each runs `true`.

Where cgroup v1 is mounted too, they are measured in a mount and cgroup namespace whose /sys/fs/cgroup is cgroup v2
alone, with one cgroup of ours as its root: the tools that make cgroups work there as on a host without v1, and reach no
other. That takes root and unshare(1). Elsewhere they run as they are. What refuses is named, with what it said.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pinfold
from bench import ground
from bench.rounds import interleaved, times
from bench.words import Measured, Missing, Variant

REFERENCE = "subprocess.run(true)"

_TRUE = "/bin/true"
_PATIENCE = 20.0  # seconds for a first try

# $0: our cgroup. A cgroup namespace has its maker's cgroup as its root; to give controllers that must be empty, so we
# take a seat below it.
_ENTER = """
echo $$ >"$0/cgroup.procs"
exec unshare --mount --cgroup --propagation private sh -ec '
umount --recursive --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/seat
echo $$ >/sys/fs/cgroup/seat/cgroup.procs
exec "$@"' sh "$@"
"""


class Way(NamedTuple):
    """One way to run `true` by a peer, and what to call it."""

    label: str
    argv: list[str]
    # What its output says of the way it really went, when its exit status does not tell.
    remark: Callable[[str], str] = lambda _output: ""


class Peer(NamedTuple):
    """A program, who brings it, and the ways to try, best first."""

    program: str
    package: str
    ways: list[Way]


def _runexec_remark(output: str) -> str:
    if "terminationreason=failed" in output:
        critical = [line.split(" - ")[-1] for line in output.splitlines() if " - CRITICAL - " in line]
        raise Missing((critical or ["terminationreason=failed"])[-1])
    return "" if "memory=" in output else ", without cgroups"


def peers(scratch: str, cgroup: str) -> list[Peer]:
    """Everybody. `scratch`: a directory for what they need. `cgroup`: the path of one of ours, to make theirs below."""
    bundle = _bundle(os.path.join(scratch, "bundle"), f"{cgroup}/oci")
    state = [os.path.join(scratch, name) for name in ("crun", "runc")]
    box = ["--ro-bind", "/", "/", "--unshare-pid", "--die-with-parent", _TRUE]
    report = os.path.join(scratch, "runexec.log")
    return [
        Peer("pinfold", "pip install -e .", [Way("pinfold run -- true", ["pinfold", "run", "--", _TRUE])]),
        Peer("timeout", "Debian: coreutils", [Way("timeout 5", ["timeout", "5", _TRUE])]),
        Peer("bwrap", "Debian: bubblewrap", [
            Way("bwrap --unshare-pid", ["bwrap", *box]),
        ]),
        Peer("crun", "Debian: crun", [
            Way("crun run", ["crun", "--root", state[0], "run", "-b", bundle, "pinfold-bench-crun"]),
            Way("crun run, cgroups disabled",
                ["crun", "--root", state[0], "--cgroup-manager=disabled", "run", "-b", bundle, "pinfold-bench-crun"]),
        ]),
        Peer("runc", "Debian: runc", [
            Way("runc run", ["runc", "--root", state[1], "run", "-b", bundle, "pinfold-bench-runc"]),
        ]),
        Peer("runexec", "PyPI: benchexec", [
            Way("runexec", ["runexec", "--read-only-dir", "/", "--walltimelimit", "5", "--output", report, _TRUE],
                _runexec_remark),
        ]),
        Peer("systemd-run", "Debian: systemd", [
            Way("systemd-run --scope", ["systemd-run", "--scope", "--quiet", _TRUE]),
        ]),
    ]  # fmt: skip


def _bundle(directory: str, cgroup: str) -> str:
    """An OCI bundle whose root has the host's programs, read-only; the namespaces are those that `runc spec` names."""
    root = os.path.join(directory, "rootfs")
    os.makedirs(root)
    mounts: list[dict[str, object]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
    ]
    for name in ("bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            os.mkdir(f"{root}/{name}")
            mounts.append({"destination": f"/{name}", "type": "none", "source": f"/{name}", "options": ["rbind", "ro"]})
    for name in ("proc", "dev"):
        os.mkdir(f"{root}/{name}")
    config = {
        "ociVersion": "1.0.2",
        "process": {"args": [_TRUE], "cwd": "/", "env": ["PATH=/usr/bin:/bin"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs", "readonly": True},
        "mounts": mounts,
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        },
    }
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    return directory


def measure(rounds: int) -> Measured:
    """In the namespace, where that is needed and can be had."""
    argv = [sys.executable, "-m", "bench.peers", str(rounds)]
    with ground.cgroup() as cgroup:
        if not ground.has_v1():
            return _ask([*argv, cgroup.removeprefix(ground.mount())], "on a host with cgroup v2 alone")
        if os.geteuid() or not shutil.which("unshare"):
            note = "beside cgroup v1: root and unshare(1) would give them a cgroup v2 of their own"
            return _ask([*argv, cgroup.removeprefix(ground.mount())], note)
        note = "in a namespace with a cgroup v2 of their own, since this host has v1 beside it"
        return _ask(["sh", "-ec", _ENTER, cgroup, *argv, ""], note)


def _ask(argv: list[str], note: str) -> Measured:
    done = subprocess.run(argv, check=False, stdout=subprocess.PIPE, cwd=ground.ROOT, env=ground.environment())
    if done.returncode:
        raise Missing(f"their process has ended with status {done.returncode}; its message is above")
    found = Measured(**json.loads(done.stdout))
    found.notes.insert(0, note)
    return found


def _quietly(argv: list[str]) -> Variant:
    # Away from the directory we are in: in a box there may be none of that name.
    return lambda: subprocess.run(
        argv, check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _try(way: Way, program: str) -> str:
    """Whether it works; its remark. Raises Missing with what it said."""
    argv = [program, *way.argv[1:]]
    try:
        done = subprocess.run(
            argv, check=False, cwd="/", timeout=_PATIENCE, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Missing(f"still running after {error.timeout:.0f} s") from error
    if done.returncode:
        said = done.stdout.strip().splitlines() or ["nothing said"]
        raise Missing(f"status {done.returncode}: {said[-1][:160]}")
    return way.remark(done.stdout)


def _usable(all_peers: list[Peer], found: Measured) -> Iterator[tuple[str, list[str]]]:
    for peer in all_peers:
        program = ground.program(peer.program)
        if program is None:
            found.skipped[peer.program] = f"not installed ({peer.package})"
            continue
        if peer.program == "systemd-run" and not os.path.isdir("/run/systemd/system"):
            found.skipped[peer.program] = "systemd does not run here"
            continue
        refusals = []
        for way in peer.ways:
            try:
                label = way.label + _try(way, program)
            except Missing as why:
                refusals.append(f"{way.label}: {why}")
                continue
            found.notes += [f"refused: {refusal}" for refusal in refusals]
            found.notes.append(f"{label}: `{' '.join(way.argv)}`")
            yield label, [program, *way.argv[1:]]
            break
        else:
            found.skipped[peer.program] = "; ".join(refusals)


def _measure_here(rounds: int, cgroup: str) -> Measured:
    found = Measured({})
    with tempfile.TemporaryDirectory(prefix="pinfold-bench-") as scratch:
        variants: dict[str, Variant] = {
            REFERENCE: _quietly([_TRUE]),
            "pinfold.run(true), timeout": lambda: pinfold.run([_TRUE], timeout=5),
            "python -I -c pass": _quietly([sys.executable, "-I", "-c", "pass"]),
        }
        variants |= {label: _quietly(argv) for label, argv in _usable(peers(scratch, cgroup), found)}
        found.samples = times(interleaved(variants, rounds, block=1))
        found.notes = [note.replace(scratch, "…") for note in found.notes]
        found.skipped = {name: why.replace(scratch, "…") for name, why in found.skipped.items()}
    return found


if __name__ == "__main__":
    json.dump(dataclasses.asdict(_measure_here(int(sys.argv[1]), sys.argv[2])), sys.stdout)
