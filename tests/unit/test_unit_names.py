"""What is a name of a scope or slice, and what is not."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfold.backend.unit_names import unit_name
from pinfold.errors import UsageError


@pytest.mark.parametrize(
    ("name", "kind", "full"),
    [
        ("build", "scope", "build.scope"),
        ("build.scope", "scope", "build.scope"),
        ("a.b", "scope", "a.b.scope"),
        ("run@7", "scope", "run@7.scope"),
        (r"a\x2db:c_d-e", "scope", r"a\x2db:c_d-e.scope"),
        ("-x--", "scope", "-x--.scope"),
        ("x" * 249, "scope", "x" * 249 + ".scope"),
        ("pinfold", "slice", "pinfold.slice"),
        ("pinfold-ci-7.slice", "slice", "pinfold-ci-7.slice"),
        ("scope", "scope", "scope.scope"),
    ],
)
def test_a_name_gets_its_suffix(name, kind, full):
    assert unit_name(name, kind) == full


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("", "scope", "empty"),
        (".scope", "scope", "empty"),
        (".x", "scope", "start with a dot"),
        ("@x", "scope", "start with a dot or @"),
        ("x@", "scope", "template"),
        ("x@.scope", "scope", "template"),
        ("a/b", "scope", "only"),
        ("a b", "scope", "only"),
        ("a\n", "scope", "only"),
        ("a\0b", "scope", "only"),
        ("ä", "scope", "only"),
        ("*", "scope", "only"),
        ("x.service", "scope", "ends in .service"),
        ("x.slice", "scope", "ends in .slice"),
        ("x.scope", "slice", "ends in .scope"),
        ("x" * 250, "scope", "longer than 255"),
        ("-", "slice", "dash"),
        ("-x", "slice", "dash"),
        ("x-", "slice", "dash"),
        ("x-.slice", "slice", "dash"),
        ("a--b", "slice", "dash"),
        ("a@b", "slice", "templates"),
        (7, "scope", "str"),
        ("x", "service", "known are scope and slice"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_refused_with_the_reason(name, kind, why):
    with pytest.raises(UsageError, match="(?s)" + why) as caught:
        unit_name(name, kind)
    assert repr(name) in str(caught.value) or "kind" in str(caught.value)


@given(st.text(alphabet=string.printable + "äß\0", max_size=300), st.sampled_from(["scope", "slice"]))
def test_what_is_taken_is_a_unit_name_and_taken_again(name, kind):
    try:
        full = unit_name(name, kind)
    except UsageError:
        return
    assert full.endswith(f".{kind}")
    assert len(full.encode()) <= 255
    assert not set(full) - set(string.ascii_letters + string.digits + ":-_.\\@")
    assert unit_name(full, kind) == full
