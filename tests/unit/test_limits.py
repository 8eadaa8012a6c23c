"""Limits: the kernel's names, the checks, and systemd's spelling."""

from __future__ import annotations

import dataclasses
import math

import pytest

from pinfold.errors import Unsupported, UsageError
from pinfold.limits import Limits, from_properties


def test_sizes_and_counts_become_numbers():
    limits = Limits(memory_max="64M", memory_high=1, memory_swap_max="0", pids_max="10", cpu_max=1.5, cpu_weight=100)
    assert limits.asked() == {
        "memory_max": 64 << 20, "memory_high": 1, "memory_swap_max": 0, "pids_max": 10, "cpu_max": 1.5,
        "cpu_weight": 100,
    }  # fmt: skip


def test_what_was_not_asked_for_is_not_in_asked():
    assert Limits().asked() == {}
    assert Limits(pids_max=3).asked() == {"pids_max": 3}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, value) for name in ("memory_max", "memory_high", "memory_swap_max") for value in (-1, "64MB", 1.5)],
        *[(name, value) for name in ("pids_max", "cpu_weight") for value in (0, -1, 1.0, "1.5", "", "many", True, "²")],
        ("pids_max", "9" * 5000),
        *[("cpu_max", value) for value in (0, -1, math.nan, math.inf, 1e6, "1.5", True, [])],
        ("cpu_weight", 10001),
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_a_value_that_is_no_limit_is_refused_with_the_field_named(field, value):
    with pytest.raises(UsageError, match=f"^{field} "):
        Limits(**{field: value})


def test_limits_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().memory_max = 1


def test_a_limit_that_is_not_available_yet_is_refused_and_not_ignored():
    with pytest.raises(Unsupported, match="limit pids_max=3: limits are not available yet") as caught:
        Limits(pids_max=3).require_none()
    assert caught.value.feature == "limit pids_max=3"


def test_no_limits_need_nothing():
    assert Limits().require_none() is None


def test_properties_are_read_in_systemd_spelling_and_the_last_wins():
    texts = ["MemoryMax=64M", "MemoryHigh=1K", "MemorySwapMax=0", "TasksMax=5", "CPUQuota=150%", "CPUWeight=10",
             "TasksMax=7"]  # fmt: skip
    found = from_properties(texts)
    assert Limits(**found).asked() == {
        "memory_max": 64 << 20, "memory_high": 1024, "memory_swap_max": 0, "pids_max": 7, "cpu_max": 1.5,
        "cpu_weight": 10,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("MemoryMax", "'MemoryMax'"), ("", "''"), ("Bogus=1", "'Bogus'"), ("memory_max=1", "'memory_max'"),
        ("MemoryMax=64MB", "MemoryMax"), ("TasksMax=0", "TasksMax"), ("TasksMax=", "TasksMax"),
        ("CPUQuota=1.5", "CPUQuota"), ("CPUQuota=%", "CPUQuota"), ("CPUQuota=-5%", "CPUQuota"),
        ("CPUWeight=x", "CPUWeight"),
    ],
)  # fmt: skip
def test_a_property_that_is_none_is_refused_by_name(text, named):
    with pytest.raises(UsageError) as caught:
        from_properties([text])
    assert named in str(caught.value)
