"""The words for how a run ended, and for what holds it in its cgroup, as types."""

from __future__ import annotations

from typing import Literal

Guarantee = Literal["enforced", "cooperative"]
Outcome = Literal[
    "exited", "signaled", "timed_out", "idle_timed_out", "cpu_timed_out", "oom_killed", "output_exceeded", "canceled",
    "spawn_failed", "lost",
]  # fmt: skip
