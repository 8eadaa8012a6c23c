"""Labels: which are taken, which are refused with what words, and how they are written on the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfold.errors import UsageError
from pinfold.labels import checked_labels, parse_labels, parse_wanted

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,63}", fullmatch=True)
values = st.text(max_size=256).filter(str.isprintable)
labels = st.dictionaries(names, values, max_size=5)


@given(given_labels=labels)
def test_labels_as_they_should_be_are_taken_as_they_are(given_labels):
    taken = checked_labels(given_labels)
    assert taken == given_labels
    given_labels["later"] = "no"
    assert "later" not in taken  # a copy


def test_no_labels_are_no_labels():
    assert checked_labels(None) == checked_labels({}) == {}


@pytest.mark.parametrize(
    "name", ["", "-x", ".x", "/x", "_x", "a b", "a=b", "a\n", "ä", "a" * 65, "a\0", "\u0664", b"a", 1, None, ("a",)]
)
def test_a_label_with_a_name_that_is_none_is_refused(name):
    with pytest.raises(UsageError, match="a name has up to 64"):
        checked_labels({name: "value"})


@pytest.mark.parametrize("value", ["a\n", "\x1b[2J", "\0", "\ud800", "x" * 257, "\u202e", b"a", 1, None, True])
def test_a_label_with_a_value_that_is_none_is_refused(value):
    with pytest.raises(UsageError, match="a value is text of up to 256 printable") as caught:
        checked_labels({"job": value})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("labels", [["a"], "a", 7, {"a"}, [("a", "b")]])
def test_labels_that_are_no_mapping_are_refused(labels):
    with pytest.raises(UsageError, match="must be a mapping"):
        checked_labels(labels)


def test_labels_are_limited_in_number():
    assert len(checked_labels({f"l{number}": "" for number in range(32)})) == 32
    with pytest.raises(UsageError, match="33 labels: at most 32"):
        checked_labels({f"l{number}": "" for number in range(33)})


def test_names_and_values_may_be_as_long_as_the_messages_say():
    longest = {"a" * 64: "x" * 256, "A0_./-": "", "0": "ä \N{GRINNING FACE}"}
    assert checked_labels(longest) == longest


@given(given_labels=labels)
def test_what_is_written_as_settings_is_read_back(given_labels):
    settings = [f"{name}={value}" for name, value in given_labels.items()]
    assert parse_labels(settings, "--label") == given_labels
    assert dict(parse_wanted(settings)) == given_labels


@pytest.mark.parametrize(
    ("settings", "why"),
    [(["a"], "--label a: expected NAME=VALUE"), (["a=1", "a=2"], "--label a=2: a is given twice; say which"),
     (["a b=1"], "a name has up to 64"), (["a=\x1b"], "a value is text")],
)  # fmt: skip
def test_settings_that_are_none_are_refused(settings, why):
    with pytest.raises(UsageError, match=why):
        parse_labels(settings, "--label")


def test_labels_are_looked_for_by_name_or_with_a_value_and_more_than_once():
    assert parse_wanted(["a", "a=", "a=1", "b=x=y"]) == [("a", None), ("a", ""), ("a", "1"), ("b", "x=y")]
    with pytest.raises(UsageError, match="a name has up to 64"):
        parse_wanted(["=1"])
