"""Policy: the plain profile, and what is refused."""

from __future__ import annotations

import pytest

from pinfold.errors import Unsupported, UsageError
from pinfold.policy import Policy


def test_the_default_is_plain_and_claims_no_more_than_cooperative():
    policy = Policy()
    assert policy._asdict() == {
        "profile": "plain", "no_new_privs": True, "new_session": True, "core_files": False, "umask": 0o022,
        "output_exceeded": "truncate", "keep_ignored": (),
    }  # fmt: skip
    assert policy.guarantee == "cooperative"


def test_hardened_is_not_available_yet_and_says_so():
    with pytest.raises(Unsupported, match="not available yet") as caught:
        Policy(profile="hardened")
    assert caught.value.feature == "profile hardened"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("profile", "soft"), ("profile", ""), ("profile", None), ("profile", []),
        ("output_exceeded", "ignore"), ("output_exceeded", None),
        ("umask", -1), ("umask", 0o1000), ("umask", "022"), ("umask", None), ("umask", 18.5),
    ],
)  # fmt: skip
def test_a_value_that_is_none_is_refused_with_the_field_named(field, value):
    with pytest.raises(UsageError, match=f"^{field} "):
        Policy(**{field: value})


@pytest.mark.parametrize("umask", [0, 0o777])
def test_every_umask_is_allowed(umask):
    assert Policy(umask=umask).umask == umask


def test_a_policy_cannot_be_changed():
    with pytest.raises(AttributeError):
        Policy().umask = 0
