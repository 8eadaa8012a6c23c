"""Policy: what a command may see and do, and what happens when it oversteps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pinfold.errors import Unsupported, UsageError

Guarantee = Literal["enforced", "cooperative"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a command is confined.

    The profile `plain`: a session of its own, fds 0-2 only, default signals, umask 022, no core files, no_new_privs.
    `new_session=False` leaves the command in the caller's session and process group (for programs on a terminal).
    `output_exceeded`: at its output limit a command is either truncated (it runs on, what is over is counted and
    dropped) or killed.
    """

    profile: Literal["plain", "hardened"] = "plain"
    no_new_privs: bool = True
    new_session: bool = True
    core_files: bool = False
    umask: int = 0o022
    output_exceeded: Literal["truncate", "kill"] = "truncate"

    def __post_init__(self) -> None:
        if self.profile == "hardened":
            raise Unsupported("profile hardened", "not available yet", "use the profile plain")
        if self.profile != "plain":
            raise UsageError(f"profile {self.profile!r}: known is plain")
        if self.output_exceeded not in ("truncate", "kill"):
            raise UsageError(f"output_exceeded {self.output_exceeded!r}: must be 'truncate' or 'kill'")
        if not (isinstance(self.umask, int) and 0 <= self.umask <= 0o777):
            raise UsageError(f"umask {self.umask!r}: must be between 0 and 0777")

    @property
    def guarantee(self) -> Guarantee:
        """`cooperative`: nothing in the plain profile stops a command with the right privileges from leaving.

        Root can write itself into another cgroup, a process of our uid into ours, and any process may ask a manager
        (systemd, cron) that it can reach to start another for it. Only confinement makes it `enforced`.
        """
        return "cooperative"
