"""Policy: the plain profile, and what is refused."""

from __future__ import annotations

import pytest

from pinfold.errors import Unsupported, UsageError
from pinfold.policy import Policy


def test_the_default_is_plain_and_claims_no_more_than_cooperative():
    policy = Policy()
    assert policy._asdict() == {"profile": "plain", "no_new_privs": True}
    assert policy.guarantee == "cooperative"


def test_hardened_is_not_available_yet_and_says_so():
    with pytest.raises(Unsupported, match="not available yet") as caught:
        Policy(profile="hardened")
    assert caught.value.feature == "profile hardened"


@pytest.mark.parametrize("profile", ["soft", "", None, []])
def test_a_profile_that_there_is_not_is_refused_by_name(profile):
    with pytest.raises(UsageError, match=r"^profile "):
        Policy(profile=profile)


@pytest.mark.parametrize("field", ["umask", "output_exceeded", "keep_ignored", "new_session", "core_files"])
def test_what_is_an_option_of_a_run_is_no_field_of_its_policy(field):
    with pytest.raises(TypeError, match=field):
        Policy(**{field: None})


def test_a_policy_cannot_be_changed():
    with pytest.raises(AttributeError):
        Policy().no_new_privs = False
