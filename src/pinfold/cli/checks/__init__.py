"""What `pinfold doctor` looks at, one module for each part of a host. A check never raises and leaves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

REPORT: Final = "report this"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `needed`: without it no run works. `fix` is set where something missing can be had.

    `since`: the first release of Linux that has it. `group`: the part of the host, set by `guarded`.
    """

    name: str
    ok: bool
    found: str
    needed: bool = False
    fix: str | None = None
    since: str | None = None
    group: str = ""


def guarded(group: str, look: Callable[[], Iterable[Check]], *, needed: bool = False) -> Iterator[Check]:
    """The checks of one look; a fault in it becomes the last of them. `needed`: of that one."""
    try:
        for check in look():
            yield _of(group, check)
    except Exception as error:  # noqa: BLE001  # whatever a strange host makes of us is one more thing to be told
        name = getattr(look, "__name__", "checks").strip("_").replace("_", " ")
        found = f"could not be looked at: {type(error).__name__}: {error}"
        yield Check(f"{group}: {name}", False, found, needed, fix=REPORT, group=group)


def _of(group: str, check: Check) -> Check:
    return Check(check.name, check.ok, check.found, check.needed, check.fix, check.since, group)
