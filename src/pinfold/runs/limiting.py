"""The limits of a run: applied before anything is in its cgroup, and what they did in the end."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping

from pinfold.backend import Scope, ScopeRequest
from pinfold.cgroup import oom
from pinfold.cgroup.controllers import exchange, unsupported
from pinfold.cgroup.files import flat_keyed
from pinfold.cgroup.places import ancestors
from pinfold.errors import CgroupError, Error, SpawnError, Unsupported
from pinfold.result import Events
from pinfold.runs.memory import MemoryWatch
from pinfold.typed import TYPE_CHECKING
from pinfold.units import INFINITY

if TYPE_CHECKING:
    from typing import Any, Final

    from pinfold.limits import Limits
    from pinfold.limits.cgroup_files import Setting

RESOURCES: Final = ("nofile", "nproc", "fsize", "core", "stack", "as")
_SLOW: Final = 0.1  # CPUs


class AppliedLimits:
    """The limits of one run: what was asked, what is in force, and in the end what they did."""

    def __init__(self, asked: ScopeRequest, scope: Scope, stall_timeout: float) -> None:
        """Apply them to a cgroup that nothing is in yet. Raises Unsupported or CgroupError; see `_apply`."""
        self._scope, self._stall_timeout = scope, stall_timeout
        if stall_timeout < INFINITY:
            _require_stall_guard(scope)
        self.limits = (
            {"asked": {}, "applied": {}, "missing": {}} if asked.limits is None else _apply(asked.limits, scope)
        )
        self._before = {} if scope.ancestor_oom is None else scope.ancestor_oom.counts()
        self._watch: MemoryWatch | None = None
        self._cpu_max: str | None = None
        self._unit_cpu_max: str | None = None

    def watch(self, start: float) -> bool:
        """Begin to look at its memory. False: there is no controller to tell, and `look` need not be called."""
        if self._scope.ancestor_oom is None:
            return False
        self._watch = MemoryWatch(self._scope.cgroup, self._stall_timeout, start)
        return True

    def look(self, now: float) -> bool:
        """Whether it is stuck at its memory limit, or the kernel finds nothing to kill there; ten times a second."""
        return self._watch is not None and self._watch.look(now)

    def advice(self, error: SpawnError) -> str | None:
        """Where a limit may be why the command could not be started: what the kernel does not say."""
        memory = self.limits["applied"].get("memory_max")
        if error.step == "exec" and error.errno in (errno.ENOMEM, errno.E2BIG) and isinstance(memory, int):
            return f"its memory limit of {memory} bytes may be too small to start in"
        return None

    def relax_for_exec(self) -> bool:
        """Raise a very low cpu.max while the command starts: at 1 % of a CPU exec alone takes 100 ms.

        Whether it was raised; then `restore_cpu` has to follow the exec.
        """
        applied = self.limits["applied"].get("cpu_max")
        if isinstance(applied, float) and applied < _SLOW:
            self._cpu_max = self._scope.cgroup.read("cpu.max")
            self.relax_cpu()
            return True
        return False

    def restore_cpu(self) -> None:
        """Put in force again what `relax_for_exec` raised. Raises CgroupError."""
        if self._cpu_max is None:
            return
        self._scope.cgroup.set("cpu.max", self._cpu_max.strip())
        self._cpu_max = None
        if self._unit_cpu_max is not None:
            with contextlib.suppress(OSError):  # the run's own is the limit; the unit's is for show
                exchange(next(ancestors(self._scope.place)), "cpu.max", self._unit_cpu_max)

    def relax_cpu(self) -> None:
        """Let what was killed die at its own speed: at 1 % of a CPU even that takes seconds.

        The file of the run's own unit is systemd's, and only borrowed: until `restore_cpu`, or until the unit ends,
        which is next.
        """
        if "cpu_max" not in self.limits["applied"]:
            return
        with contextlib.suppress(CgroupError):
            self._scope.cgroup.set("cpu.max", "max")
        if self._scope.own_unit is not None:
            with contextlib.suppress(OSError):
                self._unit_cpu_max = exchange(next(ancestors(self._scope.place)), "cpu.max", "max")

    @property
    def parts(self) -> dict[str, int]:
        """The parts of its memory, as far as they were seen while it ran."""
        return {} if self._watch is None else self._watch.parts

    def evaluate(self, texts: Mapping[str, str], *, stall: bool) -> Events | None:
        """What they did to the run, by its accounts (their texts) once nothing is left of it. None: nobody counts."""
        scope = self._scope
        if not scope.controllers and not stall:
            return None
        memory, pids = flat_keyed(texts.get("memory.events", "")), flat_keyed(texts.get("pids.events", ""))
        unkillable = self._watch is not None and self._watch.unkillable
        events = Events(memory.get("oom"), memory.get("oom_kill"), pids.get("max"), stall=stall and not unkillable)
        if stall:
            events = events._replace(oom_by="own", oom_cgroup=scope.cgroup.path)
        elif memory.get("oom_kill") and scope.ancestor_oom is not None:
            own = frozenset({scope.cgroup.path} | ({scope.own_unit} if scope.own_unit else set()))
            by, cgroup = oom.verdict(texts, own, self._before, scope.ancestor_oom)
            process = oom.victim(scope.cgroup.path.rpartition("/")[2])
            events = events._replace(oom_by=by, oom_cgroup=cgroup, oom_process=process)
        return events


def _apply(limits: Limits, scope: Scope) -> dict[str, dict[str, Any]]:
    """Write each limit that was asked for, and read it back: it is not set until the kernel says so.

    Raises Unsupported where a controller is missing, CgroupError where the kernel refuses a value or makes another of
    it; or notes it, if a best effort was asked for.
    """
    applied: dict[str, Any] = {}
    missing: dict[str, str] = {}
    asked = limits.asked()
    for setting in limits.settings():
        try:
            if setting.controller not in scope.controllers:
                raise unsupported(f"limit {setting.limit}", setting.controller, scope.place)
            value = _set(setting, scope)
        except Error as error:
            if limits.requirement == "required":
                raise
            if setting.limit in asked:
                missing[setting.limit] = (
                    f"{error.found} ({error.fix})" if isinstance(error, Unsupported) else str(error)
                )
            continue
        before = applied.get(setting.limit)
        applied[setting.limit] = {**before, **value} if isinstance(before, dict) else value
    if "cpu_max" in applied and "cpu_period_usec" in asked:
        applied["cpu_period_usec"] = asked["cpu_period_usec"]  # the same file, and agreed with
    # Resource limits are set, and read back, between clone and exec: without them there is no run.
    applied |= {name: value for name, value in asked.items() if name in RESOURCES}
    return {"asked": asked, "applied": applied, "missing": missing}


def _set(setting: Setting, scope: Scope) -> Any:
    cgroup = scope.cgroup
    text = cgroup.set(setting.file, setting.text)
    # A cpuset takes any list, and uses what the cgroups above leave of it.
    effective = cgroup.read(f"{setting.file}.effective") if setting.controller == "cpuset" else None
    for name, found in ((setting.file, text), (f"{setting.file}.effective", effective)):
        if found is not None and not setting.agrees(found):
            refusal = OSError(errno.EINVAL, f"it reads {found.strip()!r} afterwards")
            advice = "not supported by this kernel or host"
            raise CgroupError("set", f"{cgroup.path}/{name}", refusal, setting.text, advice)
    return setting.read(text)


def _require_stall_guard(scope: Scope) -> None:
    """Raise Unsupported where nobody could tell that a run is stuck: that takes the memory controller and PSI."""
    what = "stall_timeout"
    if "memory" not in scope.controllers:
        raise unsupported(what, "memory", scope.place)
    if scope.cgroup.read("memory.pressure") is None:
        raise Unsupported(what, "this kernel does not measure pressure (PSI)", "boot with psi=1 (Linux 4.20)")
