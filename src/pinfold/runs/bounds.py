"""Bounds: how long a run may take, as its caller says, and how long each step of its end may, as we say."""

from __future__ import annotations

import signal
from typing import Final, NamedTuple

from pinfold.units import INFINITY

# From one state of the lifecycle to the event that leaves it, whatever happens. Seconds.
KILL_BOUND: Final = 10.0  # then what is left is named in `stuck_pids`
DRAIN_BOUND: Final = 0.2  # for the end of a stream after `populated 0`
START_BOUND: Final = 2.0  # for starts of other threads, whose children have our pipes until their exec, likewise
RECEIVER_BOUND: Final = 2.0  # past the timeout, for the receiver of a relayed stream to take the rest
REMOVE_BOUND: Final = 1.0  # rmdir may trail `populated 0` (from Linux 6.19)


class Bounds(NamedTuple):
    """The limits on a run's time, in seconds; infinite: none. `signal` is sent when one is hit, if there is a grace.

    `stall`: how long it may be stuck at its memory limit.
    """

    timeout: float = INFINITY
    grace: float = 0.0
    idle: float = INFINITY
    cpu: float = INFINITY
    signal: int = signal.SIGTERM
    stall: float = INFINITY
