"""Which backend is taken, and why, on hosts of every kind."""

from __future__ import annotations

import pytest

from pinfold.backend import choose, systemd
from pinfold.backend.choose import open_backend
from pinfold.errors import NoCgroup2, NoSystemd, NotDelegated, UnitError, UsageError

NO_SYSTEMD = "systemd is not the manager here (no /run/systemd/system)"
USABLE = "auto: systemd is the manager here"


@pytest.fixture
def host(monkeypatch):
    """`host(systemd, why_not, opening, cgroupfs)`: what speaks against systemd, what each backend's opening raises."""
    monkeypatch.delenv(choose.VARIABLE, raising=False)

    def set_up(*, systemd_runs=True, why_not=None, opening=None, cgroupfs=None):
        def opener(name, error):
            def open_it(**options):
                if error is not None:
                    raise error
                return name, options

            return open_it

        monkeypatch.setattr("pinfold.cgroup.delegation.systemd_is_running", lambda: systemd_runs)
        monkeypatch.setattr(systemd, "why_not", lambda *, move_caller: None if move_caller else why_not)
        monkeypatch.setattr(systemd, "SystemdBackend", opener("systemd", opening))
        monkeypatch.setattr(choose, "CgroupfsBackend", opener("cgroupfs", cgroupfs))

    return set_up


def opened(name="auto", *, slice_name=None, scope_per_run=False, move_caller=False):
    kind, options = open_backend(
        name,
        labels={"job": "1"},
        spare=True,
        slice_name=slice_name,
        scope_per_run=scope_per_run,
        move_caller=move_caller,
    )
    assert options["labels"] == {"job": "1"}
    assert options["spare"] is True
    assert options["move_caller"] is move_caller
    return kind, options.get("why")


NO_BUS = NoSystemd("the systemd manager", "no answer on the bus", "start it")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ({}, ("systemd", USABLE)),
        ({"systemd_runs": False}, ("cgroupfs", f"auto: not systemd, as {NO_SYSTEMD}")),
        ({"why_not": "there is no bus"}, ("cgroupfs", "auto: not systemd, as there is no bus")),
        ({"opening": NO_BUS}, ("cgroupfs", f"auto: not systemd, as {NO_BUS}")),
    ],
    ids=str,
)
def test_auto_takes_systemd_where_it_can_be_used_and_says_why_not_where_it_cannot(host, kind, expected):
    host(**kind)
    assert opened() == expected


def test_what_only_a_move_of_this_process_mends_is_no_reason_where_that_is_allowed(host):
    host(why_not="this process is outside user@.service, and only Fold(move_caller=True) may move it")
    assert opened()[0] == "cgroupfs"
    assert opened(move_caller=True) == ("systemd", USABLE)


@pytest.mark.parametrize("name", ["cgroupfs", "systemd"])
def test_a_backend_that_was_named_needs_no_reason(host, name):
    host(why_not="never asked")
    assert opened(name) == (name, None)


@pytest.mark.parametrize(
    ("kind", "found"), [({"systemd_runs": False}, NO_SYSTEMD), ({"opening": NO_BUS}, NO_BUS.found)]
)
def test_systemd_that_was_named_and_cannot_be_used_is_an_error(host, kind, found):
    host(**kind)
    with pytest.raises(NoSystemd) as caught:
        opened("systemd")
    assert caught.value.found == found


@pytest.mark.parametrize("units", [{"slice_name": "tenant.slice"}, {"scope_per_run": True}], ids=str)
class TestUnits:
    def test_what_only_systemd_has_is_taken_from_it(self, host, units):
        host()
        assert opened(**units) == ("systemd", USABLE)

    @pytest.mark.parametrize(
        ("kind", "found"),
        [
            ({"systemd_runs": False}, NO_SYSTEMD),
            ({"why_not": "there is no bus"}, "there is no bus"),
            ({"opening": NO_BUS}, str(NO_BUS)),
        ],
        ids=str,
    )
    def test_what_only_systemd_has_never_falls_back(self, host, units, kind, found):
        host(**kind)
        with pytest.raises(NoSystemd) as caught:
            opened(**units)
        assert (caught.value.feature, caught.value.found) == ("the backend systemd", found)

    def test_cgroupfs_refuses_what_only_systemd_has(self, host, units):
        host()
        with pytest.raises(UsageError, match="cgroupfs makes none"):
            opened("cgroupfs", **units)


@pytest.mark.parametrize("meant", ["cgroupfs", "systemd"])
def test_the_environment_says_what_auto_means_and_nothing_else(host, monkeypatch, meant):
    host()
    monkeypatch.setenv("PINFOLD_BACKEND", meant)
    other = "systemd" if meant == "cgroupfs" else "cgroupfs"
    assert opened() == (meant, None)
    assert opened(other) == (other, None)


@pytest.mark.parametrize("meant", ["", "auto"])
def test_an_environment_that_says_nothing_leaves_auto_as_it_is(host, monkeypatch, meant):
    host()
    monkeypatch.setenv("PINFOLD_BACKEND", meant)
    assert opened() == ("systemd", USABLE)


def test_an_unknown_name_is_refused_wherever_it_is_from(host, monkeypatch):
    host()
    with pytest.raises(UsageError, match="backend 'docker': known are auto, cgroupfs and systemd"):
        opened("docker")
    monkeypatch.setenv("PINFOLD_BACKEND", "podman")
    with pytest.raises(UsageError, match="backend 'podman'"):
        opened()


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ({"systemd_runs": False}, NO_SYSTEMD),
        ({"why_not": "there is no bus"}, "there is no bus"),
        ({"opening": NO_BUS}, str(NO_BUS)),
    ],
    ids=str,
)
def test_where_neither_can_be_used_both_are_named(host, kind, found):
    host(**kind, cgroupfs=NotDelegated("a cgroup of our own", "uid 1000 may not make cgroups", "ask root"))
    with pytest.raises(NotDelegated) as caught:
        opened()
    assert caught.value.found == f"uid 1000 may not make cgroups; nor can systemd be used: {found}"
    assert (caught.value.feature, caught.value.fix) == ("a cgroup of our own", "ask root")


@pytest.mark.parametrize(
    "error", [UnitError("x.scope", "start", "denied", "ask"), NotDelegated("a", "b", "c"), NoCgroup2("a", "b", "c")]
)
def test_a_systemd_that_is_there_and_refuses_is_no_reason_to_go_past_it(host, error):
    host(opening=error)
    with pytest.raises(type(error)) as caught:
        opened()
    assert caught.value is error
