"""What we tell a person about a run: one line where it was not a plain exit, more with -v."""

from __future__ import annotations

from pinfold.cli.status import safe
from pinfold.errors import SpawnError
from pinfold.result import Result, Stray, Stuck
from pinfold.units import readable_size, readable_span, signal_name

_NAMED_IN_THE_LINE = 8


def the_line(result: Result) -> str | None:
    """What ended it, after how long, what was killed; None for a plain exit that left nothing behind."""
    what, receipt = _ending(result), result.receipt
    parts = [] if result.outcome == "oom_killed" else _memory_kills(result)
    if receipt.strays:
        parts.append(f"killed {count(receipt.strays, 'stray')}: {_names(receipt.stray_processes, receipt.strays)}")
    if receipt.escaped_processes:
        gone = receipt.escaped_processes
        parts.append(f"killed {count(len(gone), 'process', 'es')} outside the cgroup: {_names(gone, len(gone))}")
    if result.error is not None and result.outcome != "lost":
        parts.append(result.error["message"])
    if receipt.receiver_stalled:
        parts.append("whoever reads its output did not take all of it")
    if receipt.pipe_held:
        parts.append("a process outside the cgroup still holds its output")
    if receipt.stuck_pids:
        parts.append(f"could not be killed: {', '.join(map(_stuck, receipt.stuck_processes))}")
    if not receipt.removed:
        parts.append(f"its cgroup {result.placement.cgroup} could not be removed ('pinfold gc' does it later)")
    if what is None and not parts:
        return None
    what = what or f"exited with status {result.returncode}"
    return "; ".join([f"{what} after {readable_span(result.duration)}", *parts])


def _stuck(process: Stuck) -> str:
    what = f"{safe(process.comm or '?')} ({process.pid})"
    if process.tracer:
        return f"{what}, which process {process.tracer} traces"
    where = f" in {process.wchan}" if process.wchan else ""
    return f"{what}, which waits in the kernel{where}" if process.state == "D" else what


def _ending(result: Result) -> str | None:
    hit = f" ({readable_span(result.limit_hit)})" if result.limit_hit is not None else ""
    name = signal_name(-result.returncode) if result.returncode is not None and result.returncode < 0 else ""
    match result.outcome:
        case "exited":
            return None
        case "signaled":
            return f"killed by {name}"
        case "timed_out":
            return f"timed out{hit}"
        case "idle_timed_out":
            return f"wrote nothing for too long{hit}"
        case "cpu_timed_out":
            return f"used its CPU time{hit}"
        case "output_exceeded":
            return "wrote more than its output limit"
        case "oom_killed" if result.events["stall"]:
            return f"killed, as it was stuck at its memory limit{_limit(result)}"
        case "oom_killed":
            return f"killed at its memory limit{_limit(result)}{_victim(result)}"
        case "canceled":
            return "canceled"
        case _:
            return f"ended as {result.outcome}" + (f": {result.error['message']}" if result.error else "")


def _limit(result: Result) -> str:
    limit = result.limits["applied"].get("memory_max")
    return f" ({readable_size(limit)})" if isinstance(limit, int) else ""


def _victim(result: Result) -> str:
    process = result.events["oom_process"]
    return f", in {safe(process['comm'])} ({process['pid']})" if process else ""


def _memory_kills(result: Result) -> list[str]:
    """What the kernel killed of it for want of memory, where that is not how it ended, or not for its own limit."""
    events = result.events
    if not events["oom_kill"]:
        return []
    whose = {
        "own": f"at its memory limit{_limit(result)}",
        "below": "at a memory limit that it set itself",
        "ancestor": f"at the memory limit of {events['oom_cgroup']}, not at one of its own",
        "host": "as the host was out of memory",
        None: "for want of memory, at a limit out of our sight",
    }[events["oom_by"]]
    # Not how many: in a group that is killed as one, the kernel counts the process that it chose twice.
    return [f"the kernel killed processes of it {whose}{_victim(result)}"]


def count(n: int, word: str, plural: str = "s") -> str:
    """So many of something."""
    return f"{n} {word}{plural if n != 1 else ''}"


def _names(processes: list[Stray], total: int) -> str:
    named = [f"{safe(p.comm or '?')} ({p.pid})" for p in processes[:_NAMED_IN_THE_LINE]]
    more = total - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def why_not_started(error: SpawnError) -> str:
    """The line for a command that was not started."""
    return safe(str(error))


def details(result: Result) -> list[str]:
    """The receipt and the usage, to read."""
    receipt, usage = result.receipt, result.usage
    kill = receipt.kill_to_empty_usec
    cleaned = [
        "emptied" if receipt.emptied else "NOT EMPTIED",
        "removed" if receipt.removed else "NOT REMOVED",
        count(receipt.strays, "stray"),
        count(receipt.kill_rounds, "kill round"),
        *([] if kill is None else [f"empty {readable_span(kill / 1e6)} after the kill"]),
    ]
    place = result.placement
    where = [place.backend, *([place.unit] if place.unit else []), result.guarantee]
    lines = [
        f"run {result.run_id} in {place.cgroup} ({', '.join(where)})",
        *([f"backend {place.backend}: {place.why}"] if place.why else []),
        f"receipt: {', '.join(cleaned)}",
    ]
    lines += [
        f"  {stray.pid} (parent {stray.ppid}, session {stray.sid}): {safe(' '.join(stray.argv or [stray.comm or '?']))}"
        for stray in [*receipt.stray_processes, *receipt.escaped_processes]
    ]
    if result.limits["asked"]:
        lines.append(f"limits in force: {', '.join(f'{k} {v}' for k, v in result.limits['applied'].items()) or 'none'}")
        lines += [f"limit {name} NOT in force: {reason}" for name, reason in result.limits["missing"].items()]
    figures = {
        "cpu": _span(usage.cpu_usage_usec),
        "user": _span(usage.cpu_user_usec),
        "system": _span(usage.cpu_system_usec),
        "memory peak": None if usage.memory_peak is None else readable_size(usage.memory_peak),
        "pids peak": None if usage.pids_peak is None else str(usage.pids_peak),
    }
    known = [f"{name} {value}" for name, value in figures.items() if value is not None]
    unknown = [name for name, value in figures.items() if value is None]
    lines.append(
        f"usage: {', '.join(known) or 'nothing known'}"
        + (f" (not reported by this host: {', '.join(unknown)})" if unknown else "")
    )
    return lines


def _span(usec: int | None) -> str | None:
    return None if usec is None else readable_span(usec / 1e6)
