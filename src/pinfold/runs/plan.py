"""Plan: all that is decided about a run before anything of it exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pinfold.backend import ScopeRequest
from pinfold.command import Command
from pinfold.policy import Policy
from pinfold.runs.states import Bounds
from pinfold.runs.stdio import StdioPlan
from pinfold.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any


class Plan(NamedTuple):
    """One run, as asked for and checked. Never changed.

    `args`: as the caller gave them. `wait`: strays are waited for. `encoding`: of text; None: bytes. `steps`: what the
    child does between clone and exec, but for its descriptors. `kill_at_limit`: a stream that is over its output limit
    ends the run.
    """

    args: Sequence[Any]
    command: Command
    policy: Policy
    steps: bytes
    bounds: Bounds
    stdio: StdioPlan
    wait: bool
    encoding: str | None
    asked: ScopeRequest
    labels: Mapping[str, str]
    kill_at_limit: bool

    @property
    def watched(self) -> bool:
        """Whether each arrival of output has to be looked at."""
        return self.kill_at_limit or self.bounds.idle < _NEVER

    def decode(self, data: bytes | None) -> bytes | str | None:
        """Captured bytes as the caller wants them."""
        if data is None or self.encoding is None:
            return data
        try:
            text = data.decode(self.encoding, "surrogateescape")
        except UnicodeError:  # of an encoding that has no such bytes, and no surrogate escapes
            text = data.decode("utf-8", "backslashreplace")
        return text.replace("\r\n", "\n").replace("\r", "\n")


_NEVER = Bounds().idle
