"""The names of our cgroups: what one function makes, the others recognise; and nothing else."""

from __future__ import annotations

import pytest

from pinfold.cgroup import names
from pinfold.cgroup.delegation import unit_of

SLICE = "/pinfold.slice"
# Who makes a base, and where it then is: the path from the cgroup that sweeps look in.
BASES = {
    "cgroupfs": names.new_base,
    "a scope": lambda: f"{names.new_scope()}/{names.BASE_IN_SCOPE}",
    "the scope of a run": lambda: f"{names.new_run_scope()}/{names.BASE_IN_SCOPE}",
    "a scope that the user has named": lambda: f"job.scope/{names.BASE_IN_SCOPE}",
}


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_what_is_made_is_recognised(make):
    base = f"{SLICE}/{make()}"
    run_id = names.new_run_id()
    run = f"{base}/{names.run(run_id)}"
    assert names.is_base(base)
    assert names.run_id(names.run(run_id)) == run_id
    assert names.is_within_a_run(run)
    assert names.is_within_a_run(f"{run}/{names.LEAF}")
    assert not names.is_within_a_run(base)


@pytest.mark.parametrize("name", ["cgroupfs", "a scope", "the scope of a run"])
def test_a_sweep_beside_finds_what_is_named_by_us(name):
    base = BASES[name]()
    assert names.base_below(base.partition("/")[0]) == base


@pytest.mark.parametrize("make", [names.new_scope, names.new_run_scope])
def test_a_scope_is_recognised(make):
    scope = make()
    base = f"{SLICE}/{scope}/{names.BASE_IN_SCOPE}"
    assert names.scope_of(base) == scope == unit_of(base)
    assert names.is_base_in_scope(base)


def test_two_names_are_never_the_same():
    for make in (names.new_base, names.new_scope, names.new_run_scope, names.new_run_id):
        assert make() != make()


@pytest.mark.parametrize(
    "name",
    ["run-", "run-0123456789abcde", "run-0123456789abcdef0", "run-0123456789ABCDEF", "0123456789abcdef",
     " run-0123456789abcdef", "run-0123456789abcdef\n", names.GUARD, names.CALLER, names.LEAF],
)  # fmt: skip
def test_what_is_named_otherwise_is_no_run(name):
    assert names.run_id(name) is None


@pytest.mark.parametrize(
    "path",
    ["/", "/pinfold-", "/pinfold-0123456789a", "/pinfold-0123456789abc", "/pinfold-0123456789AB",
     "/xpinfold-0123456789ab", "/runs", "/job.service/runs", "/job.scope/runs/x", "/job.scope/run",
     f"{SLICE}/pinfold-0123456789ab.scope", f"/{names.LEAF}"],
)  # fmt: skip
def test_what_is_named_otherwise_is_no_base(path):
    assert not names.is_base(path)


@pytest.mark.parametrize(
    "path", ["/runs", "/pinfold-0123456789ab", "/job.service/runs", "/job.scope/guard", "/job.scope"]
)
def test_what_is_in_no_scope(path):
    assert names.scope_of(path) is None


@pytest.mark.parametrize("name", ["job.scope", "run-0123456789abcdef", "runs", "pinfold", "user.slice"])
def test_a_sweep_beside_leaves_what_others_have_named(name):
    assert names.base_below(name) is None


@pytest.mark.parametrize(
    ("path", "within"),
    [
        ("/pinfold.slice/pinfold-0123456789ab.scope/runs/run-0123456789abcdef", True),
        ("/pinfold.slice/job.scope/runs/run-0123456789abcdef/pinfold-leaf", True),
        ("/a/pinfold-0123456789ab/run-0123456789abcdef/b", True),
        ("/pinfold.slice/pinfold-0123456789ab.scope/caller", False),
        ("/runs/run-fast", False),
        ("/run-0123456789abcdef", False),
    ],
)
def test_a_run_of_ours_is_known_by_its_cgroup(path, within):
    assert names.is_within_a_run(path) is within


def test_the_slice_is_below_its_manager():
    assert names.slice_path(0) == names.SLICE
    assert names.slice_path(1000).split("/") == ["user.slice", "user-1000.slice", "user@1000.service", names.SLICE]
