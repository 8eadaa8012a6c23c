"""What a figure is made of: variants that are measured, goals that judge them, and the case that has both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

# One call's measures by quantity, in the units of `UNITS`.
Sample = dict[str, float]

# Does the work once. What returns a Sample has measured itself; of anything else the rounds take the time and our CPU.
Variant = Callable[[], object]

# quantity → variant → rounds → the values of that round
Samples = dict[str, dict[str, list[list[float]]]]

UNITS = {
    "time": "s",
    "parent's CPU": "s",
    "rate": "/s",
    "milliseconds": "ms",
    "memory": "MiB",
    "descriptors": "",
    "cgroups": "",
}


class Missing(Exception):
    """Something is not there that a case, or one of its variants, needs; the text says what, and who brings it."""


@dataclass(frozen=True)
class Goal:
    """What a figure must be, and what it aims at."""

    title: str
    ours: str
    theirs: str
    must: float | None = None
    aim: float | None = None
    quantity: str = "time"
    above: bool = False  # the figure is ours less theirs, not ours over theirs
    higher: bool = False  # higher is better


@dataclass
class Measured:
    """What a case has found."""

    samples: Samples
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # what was not measured, and why


@dataclass(frozen=True)
class Case:
    """Variants that are measured together, and the goals about them."""

    name: str
    title: str
    reference: str  # the variant that the ratios of the table are to
    measure: Callable[[int], Measured]  # with the number of rounds
    goals: tuple[Goal, ...] = ()
    share: float = 1.0  # of the rounds asked for
    least: int = 5  # rounds, however few are asked for

    def rounds(self, asked: int) -> int:
        """How many rounds to do when the user asks for `asked`."""
        return max(min(self.least, asked), round(asked * self.share))
