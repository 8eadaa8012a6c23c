"""Policy: what a command may see and do, by force."""

from __future__ import annotations

from pinfold.errors import Unsupported, UsageError
from pinfold.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Literal, Self

    from pinfold.outcomes import Guarantee


class _Fields(NamedTuple):
    profile: Literal["plain", "hardened"]
    no_new_privs: bool


class Policy(_Fields):
    """How a command is confined.

    profile: `plain`: nothing is hidden from it. no_new_privs: no program that it executes gives it more privileges
    than it has (PR_SET_NO_NEW_PRIVS, prctl(2)): no set-user-ID program works, sudo(8) among them.
    """

    __slots__ = ()

    def __new__(cls, *, profile: Literal["plain", "hardened"] = "plain", no_new_privs: bool = True) -> Self:
        """Check the fields. Raises UsageError, or Unsupported for what comes in a later release."""
        if profile == "hardened":
            raise Unsupported("profile hardened", "not available yet", "use the profile plain")
        if profile != "plain":
            raise UsageError(f"profile {profile!r}: known is plain")
        return super().__new__(cls, profile, no_new_privs)

    @property
    def guarantee(self) -> Guarantee:
        """`cooperative`: nothing in the plain profile stops a command with the right privileges from leaving.

        Root can write itself into another cgroup, a process of our uid into ours, and any process may ask a manager
        (systemd, cron) that it can reach to start another for it. Only confinement makes it `enforced`.
        """
        return "cooperative"
