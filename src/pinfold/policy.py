"""Policy: what a command may see and do, and what happens when it oversteps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Self

from pinfold.errors import Unsupported, UsageError
from pinfold.units import signal_number

Guarantee = Literal["enforced", "cooperative"]


class _Fields(NamedTuple):
    profile: Literal["plain", "hardened"]
    no_new_privs: bool
    new_session: bool
    core_files: bool
    umask: int
    output_exceeded: Literal["truncate", "kill"]
    keep_ignored: tuple[int, ...]


class Policy(_Fields):
    """How a command is confined.

    The profile `plain`: a session of its own, fds 0-2 only, default signals, umask 022, no core files, no_new_privs.
    `new_session=False` leaves the command in the caller's session and process group (for programs on a terminal).
    `output_exceeded`: at its output limit a command is either truncated (it runs on, what is over is counted and
    dropped) or killed. `keep_ignored`: signals that stay ignored for the command if they are ignored here.
    """

    __slots__ = ()

    def __new__(
        cls,
        *,
        profile: Literal["plain", "hardened"] = "plain",
        no_new_privs: bool = True,
        new_session: bool = True,
        core_files: bool = False,
        umask: int = 0o022,
        output_exceeded: Literal["truncate", "kill"] = "truncate",
        keep_ignored: Iterable[int] = (),
    ) -> Self:
        """Check the fields. Raises UsageError, or Unsupported for what comes in a later release."""
        if profile == "hardened":
            raise Unsupported("profile hardened", "not available yet", "use the profile plain")
        if profile != "plain":
            raise UsageError(f"profile {profile!r}: known is plain")
        if output_exceeded not in ("truncate", "kill"):
            raise UsageError(f"output_exceeded {output_exceeded!r}: must be 'truncate' or 'kill'")
        if not (type(umask) is int and 0 <= umask <= 0o777):
            raise UsageError(f"umask {umask!r}: must be between 0 and 0777")
        kept = tuple(signal_number(number, "keep_ignored") for number in keep_ignored)
        return super().__new__(cls, profile, no_new_privs, new_session, core_files, umask, output_exceeded, kept)

    @property
    def guarantee(self) -> Guarantee:
        """`cooperative`: nothing in the plain profile stops a command with the right privileges from leaving.

        Root can write itself into another cgroup, a process of our uid into ours, and any process may ask a manager
        (systemd, cron) that it can reach to start another for it. Only confinement makes it `enforced`.
        """
        return "cooperative"
