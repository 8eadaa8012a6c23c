"""The names of our cgroups: how they are made, and how they are recognised.

cgroupfs                                        systemd
a cgroup that is ours to divide                 pinfold.slice, or any other
├── pinfold-leaf          what was in the way   └── pinfold-<12 digits>.scope        or any other scope
└── pinfold-<12 digits>   the base of a fold        ├── guard
    └── run-<16 digits>   one run, or the spare     ├── caller                        this process, where it had to move
                                                    └── runs                          the base of a fold
                                                        └── run-<16 digits>           one run, or the spare

All digits are random and hexadecimal. A name proves nothing, as anybody may choose it: see `lease/find.py`.
"""

from __future__ import annotations

import itertools
import os

from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


RUN_PREFIX: Final = "run-"
BASE_IN_SCOPE: Final = "runs"
GUARD: Final = "guard"
CALLER: Final = "caller"
LEAF: Final = "pinfold-leaf"
SLICE: Final = "pinfold.slice"

_PREFIX: Final = "pinfold-"  # of whatever we make beside cgroups of others
_SCOPE: Final = ".scope"
_RUN_BYTES: Final = 8  # each two digits in the name
_BASE_BYTES: Final = 6


def new_base() -> str:
    """A name for the base of a fold that we make ourselves."""
    return _PREFIX + os.urandom(_BASE_BYTES).hex()


def new_scope() -> str:
    """A name for the scope of a fold."""
    return new_base() + _SCOPE


def new_run_scope() -> str:
    """A name for the scope of a single run."""
    return f"{_PREFIX}{run(new_run_id())}{_SCOPE}"


def new_run_id() -> str:
    """An id for a run."""
    return os.urandom(_RUN_BYTES).hex()


def run(run_id: str) -> str:
    """The name of a run's cgroup."""
    return RUN_PREFIX + run_id


def run_id(name: str) -> str | None:
    """The id of the run whose cgroup has this name; None if it is not named like one."""
    digits = name.removeprefix(RUN_PREFIX)
    return digits if digits != name and _is_hex(digits, _RUN_BYTES) else None


def is_base(path: str) -> bool:
    """Whether the cgroup of this path is named like the base of a fold."""
    name = os.path.basename(path)
    return _is_made_base(name) or scope_of(path) is not None


def is_base_in_scope(path: str) -> bool:
    """Whether the last name is the one that a base has in a scope. Cgroups of others may be called so too."""
    return os.path.basename(path) == BASE_IN_SCOPE


def scope_of(base: str) -> str | None:
    """The name of the systemd scope that the base of this path is in; None if it is in none."""
    parent = os.path.basename(os.path.dirname(base))
    return parent if parent.endswith(_SCOPE) and is_base_in_scope(base) else None


def base_below(name: str) -> str | None:
    """Where the fold is that may lie in the cgroup of this name, as a path from its parent; None if it is not ours."""
    if not name.startswith(_PREFIX):
        return None
    return f"{name}/{BASE_IN_SCOPE}" if name.endswith(_SCOPE) else name


def is_within_a_run(path: str) -> bool:
    """Whether the cgroup of this path is that of a run, or below one."""
    names = path.split("/")
    pairs = itertools.pairwise(names)
    return any(run_id(name) and (above == BASE_IN_SCOPE or _is_made_base(above)) for above, name in pairs)


def slice_path(uid: int) -> str:
    """Where pinfold.slice is, from the top: in the system manager's part for root, in the user manager's for others."""
    manager = f"user.slice/user-{uid}.slice/user@{uid}.service/" if uid else ""
    return manager + SLICE


def _is_made_base(name: str) -> bool:
    return name.startswith(_PREFIX) and _is_hex(name.removeprefix(_PREFIX), _BASE_BYTES)


def _is_hex(text: str, size: int) -> bool:
    return len(text) == 2 * size and set(text) <= set("0123456789abcdef")
