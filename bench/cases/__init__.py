"""Every case, in the order in which they are measured and shown."""

from __future__ import annotations

from bench.cases import latency, lone, many, output, whole
from bench.words import Case

ALL: tuple[Case, ...] = (
    latency.TRUE,
    latency.ECHO,
    latency.IDLE,
    latency.HEAP,
    latency.LIVE,
    latency.DESCRIPTORS,
    many.IN_FLIGHT,
    lone.TREE,
    output.OUTPUT,
    whole.COMMAND_LINE,
    whole.IMPORT,
    whole.PEERS,
    lone.SOAK,
)
