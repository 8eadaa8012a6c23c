"""Sizes, spans and signals: what people write, and what is refused."""

from __future__ import annotations

import contextlib
import math
import signal
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfold import units
from pinfold.errors import UsageError

DIGITS_BEYOND_INT = "9" * 5000  # int() refuses more than 4300 digits with a ValueError of its own


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0), (17, 17), ("0", 0), ("17", 17), (" 64M ", 64 << 20), ("64 M", 64 << 20),
        ("1K", 1 << 10), ("1M", 1 << 20), ("1G", 1 << 30), ("1T", 1 << 40), ("1P", 1 << 50), ("1E", 1 << 60),
        ("1KiB", 1 << 10), ("2 MiB", 2 << 20), ("3GiB", 3 << 30), ("7EiB", 7 << 60), ("1.5G", 3 << 29),
        ("9007199254740993", 2**53 + 1), ("9223372036854775807", 2**63 - 1),
    ],
)  # fmt: skip
def test_a_size_counts_in_powers_of_1024_and_exactly(text, expected):
    assert units.size(text) == expected


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("64MB", ("67108864 bytes (64M)", "64000000 bytes")),
        ("64kB", ("65536 bytes (64K)", "64000 bytes")),
        ("64 KB", ("65536 bytes (64K)", "64000 bytes")),
        ("1.5MB", ("1024 (1.5M)", "1000")),
    ],
)
def test_a_size_with_two_readings_is_refused_and_both_are_named(text, readings):
    with pytest.raises(UsageError, match="two readings") as caught:
        units.size(text, "output_limit")
    assert all(reading in str(caught.value) for reading in readings)
    assert str(caught.value).startswith("output_limit ")


@pytest.mark.parametrize(
    "value",
    [-1, "-1", 1.5, math.nan, math.inf, True, None, b"64M", "", " ", "abc", "M", "64X", "64iB", "64B", "64m", "1e3",
     "0x10", "64M64M", "infinity", "8E", "9" * 40, [], DIGITS_BEYOND_INT, "9" * 400 + ".5"],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_what_is_no_size_is_refused_with_the_argument_named(value):
    with pytest.raises(UsageError, match=r"^memory_max "):
        units.size(value, "memory_max")


def test_a_size_that_the_kernel_cannot_count_is_refused_as_an_int_as_it_is_as_text():
    for value in (str(2**63), 2**63):
        with pytest.raises(UsageError, match="more than the kernel can count"):
            units.size(value)


@given(st.integers(0, 2**63 - 1))
def test_a_size_as_text_means_the_same_as_the_int(n):
    assert units.size(str(n)) == units.size(n) == n


@given(st.text() | st.binary() | st.floats() | st.integers() | st.none() | st.booleans())
def test_a_parser_takes_a_value_or_raises_usage_error_and_nothing_else(value):
    for parse in (units.size, units.span, units.signal_number):
        with contextlib.suppress(UsageError):
            assert parse(value) >= 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0), (5, 5), (0.5, 0.5), ("5", 5), ("0.5", 0.5), (".5", 0.5), ("500ms", 0.5), ("250us", 250e-6),
        ("1min 30s", 90), ("2h30min", 9000), ("2 h 30 min", 9000), ("1m", 60), ("1d", 86400), ("1w", 604800),
        ("3 hours", 10800), (" 5s ", 5), (timedelta(minutes=1, milliseconds=500), 60.5), (1e10, 1e10),
        (math.inf, math.inf), (1e400, math.inf), ("infinity", math.inf), ("inf", math.inf),
    ],
)  # fmt: skip
def test_a_span_is_seconds(value, seconds):
    found = units.span(value)
    assert found == pytest.approx(seconds)
    assert type(found) is float


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (math.nan, "not a number"),
        (-1, "must not be negative"), (-0.001, "must not be negative"), (-math.inf, "must not be negative"),
        (timedelta(seconds=-1), "must not be negative"), (-(10**30), "must not be negative"),
        (10**30, "longer than 300 years"), (timedelta.max, "longer than 300 years"), ("900000w", "longer than"),
        ("9" * 400, "longer than 300 years"),
        (10**5000, "longer than 300 years"),
        ("", "expected seconds"), (" ", "expected seconds"), ("abc", "expected seconds"), ("-5", "expected seconds"),
        ("1min -30s", "expected seconds"), ("nan", "expected seconds"), ("5s,", "expected seconds"),
        ("1e5", "unknown unit 'e'"), ("5 parsecs", "unknown unit 'parsecs'"),
        (True, "must be seconds"), (None, "must be seconds"), (b"5", "must be seconds"), ([], "must be seconds"),
    ],
    ids=lambda value: "big" if isinstance(value, int) and abs(value) > 10**40 else repr(value)[:20],
)  # fmt: skip
def test_what_is_no_span_is_refused_with_the_argument_named(value, why):
    with pytest.raises(UsageError, match=why) as caught:
        units.span(value, "idle_timeout")
    assert str(caught.value).startswith("idle_timeout ")


def test_a_span_with_two_readings_is_refused_and_both_are_named():
    with pytest.raises(UsageError, match=r"two readings: 5 minutes \(5m\) or 5 months"):
        units.span("5M")


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (15, 15), ("15", 15), ("TERM", 15), ("SIGTERM", 15), ("term", 15), (" sigterm ", 15), (signal.SIGTERM, 15),
        ("KILL", 9), (1, 1), (64, 64), ("RTMIN", 34), ("RTMIN+1", 35), ("SIGRTMIN+1", 35), ("RTMAX", 64),
    ],
)  # fmt: skip
def test_a_signal_is_known_by_number_and_by_name(value, number):
    assert units.signal_number(value) == number


@pytest.mark.parametrize(
    "value",
    [0, -1, 65, 10**9, "0", "-1", "65", "", "NOPE", "SIG", "SIGSIGTERM", "RTMIN+31", "RTMIN+", "15.0", 15.0, True,
     None, b"TERM", "SIG_DFL", "²", DIGITS_BEYOND_INT],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_what_is_no_signal_is_refused_with_the_argument_named(value):
    with pytest.raises(UsageError, match=r"^stop_signal "):
        units.signal_number(value, "stop_signal")


@pytest.mark.parametrize(
    ("number", "name"),
    [(15, "SIGTERM"), (9, "SIGKILL"), (34, "SIGRTMIN"), (35, "SIGRTMIN+1"), (64, "SIGRTMAX")],
)
def test_a_signal_is_named_as_signal7_does(number, name):
    assert units.signal_name(number) == name


def test_a_signal_below_rtmin_without_a_name_gets_no_negative_offset():
    assert "-" not in units.signal_name(32)


@given(st.integers(1, 64).filter(lambda n: n not in (32, 33)))
def test_the_name_of_a_signal_leads_back_to_its_number(number):
    assert units.signal_number(units.signal_name(number)) == number


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (17, "17 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (4096, "4.0 KiB"), (3 << 29, "1.5 GiB"),
     (1048524, "1023.9 KiB"), (1048525, "1.0 MiB"), (1048575, "1.0 MiB"), (2**30 - 1, "1.0 GiB"),
     (1 << 50, "1.0 PiB"), (1 << 60, "1024.0 PiB")],
)  # fmt: skip
def test_a_readable_size_is_short(n, text):
    assert units.readable_size(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 ms"), (0.0004, "0.4 ms"), (0.9994, "999.4 ms"), (0.99996, "1.00 s"), (1.25, "1.25 s"),
     (59.99, "59.99 s"), (59.999, "1 min 0 s"), (60, "1 min 0 s"), (119.6, "2 min 0 s"), (125, "2 min 5 s"),
     (3599.7, "1 h 0 min"), (5400, "1 h 30 min"), (90061, "25 h 1 min")],
)  # fmt: skip
def test_a_readable_span_is_short(seconds, text):
    assert units.readable_span(seconds) == text


@given(st.floats(0, 1e6))
def test_a_readable_span_never_counts_up_to_the_next_unit(seconds):
    most = {"ms": 999.9, "s": 59.99, "min": 59, "h": 1e6}
    words = units.readable_span(seconds).split()
    for number, unit in zip(words[::2], words[1::2], strict=True):
        assert float(number) <= (59 if len(words) > 2 and unit == "s" else most[unit])


@given(st.integers(0, 2**60 - 2**50))
def test_a_readable_size_never_counts_up_to_the_next_unit(n):
    number, unit = units.readable_size(n).split()
    assert float(number) < 1024
    assert unit == "B" or float(number) >= 1


def test_no_limit_has_a_readable_span_too():
    assert "inf" in units.readable_span(units.INFINITY)


@pytest.mark.parametrize("text", ["\u0663", "6\u0664M", "\uff15"])
def test_digits_of_other_scripts_are_no_numbers(text):
    """Python takes them for digits; the kernel and systemd do not."""
    for parse in (units.size, units.span, units.signal_number):
        with pytest.raises(UsageError):
            parse(text)
