"""What systemd does to a scope from outside: its runs end, the Result says how, and nothing hangs."""

from __future__ import annotations

import time

import pytest

import pinfold

TREE = ["sh", "-c", "setsid sleep 60 & sleep 60"]
IGNORES = ["sh", "-c", "trap '' TERM HUP; echo ready; setsid sleep 60 & sleep 60; sleep 60"]


@pytest.fixture(params=[False, True], ids=["fold", "own scope"])
def fold(request, booted):
    with pinfold.Fold(backend="systemd", scope_per_run=request.param) as fold:
        yield fold


def unit_of(run):
    return run.placement.unit


def test_a_stopped_scope_cancels_its_run(fold, systemctl):
    run = fold.start(TREE)
    with run:
        systemctl("stop", unit_of(run))
        result = run.wait(10)
    assert (result.outcome, result.receipt.emptied, result.receipt.removed) == ("canceled", True, True)


def test_a_stopped_scope_cancels_a_run_that_does_not_obey(fold, systemctl):
    """Long before systemd would kill it: the guard has obeyed, and so we know."""
    run = fold.start(IGNORES, stdout=pinfold.PIPE)
    with run:
        assert run.stdout.readline() == b"ready\n"
        began = time.monotonic()
        systemctl("stop", unit_of(run))
        result = run.wait(10)
    assert time.monotonic() - began < 8  # TimeoutStopUSec is 10 s
    assert (result.outcome, result.returncode, result.receipt.emptied) == ("canceled", -9, True)


def test_all_runs_of_a_stopped_fold_are_canceled_and_it_takes_no_more(booted, systemctl):
    with pinfold.Fold(backend="systemd") as fold:
        runs = [fold.start(TREE) for _ in range(8)]
        systemctl("stop", unit_of(runs[0]))
        for run in runs:
            with run:
                assert run.wait(10).outcome == "canceled"
        assert fold.lost
        with pytest.raises(pinfold.NoSystemd, match="stopped from outside"):
            fold.run(["true"])


def test_the_default_fold_is_opened_anew_when_its_scope_was_stopped(booted, systemctl, monkeypatch):
    monkeypatch.setenv("PINFOLD_BACKEND", "systemd")
    unit = pinfold.run(["true"]).placement.unit
    systemctl("stop", unit)
    result = pinfold.run(["true"])
    assert result.ok
    assert result.placement.unit != unit


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_a_scope_that_is_killed_as_a_whole_cancels_its_run(fold, systemctl, signal):
    run = fold.start(TREE)
    with run:
        # It complains if a cgroup of the unit goes while it walks through them.
        systemctl("kill", f"--signal={signal}", unit_of(run), check=False)
        assert run.wait(10).outcome == "canceled"


@pytest.mark.parametrize(("signal", "number"), [("HUP", 1), ("USR1", 10), ("INT", 2)])
def test_other_signals_are_for_the_command_and_the_fold_goes_on(fold, systemctl, signal, number):
    # A shell that is about to start something takes an INT only when that has ended.
    run = fold.start(["sh", "-c", "setsid sleep 60 & echo ready; exec sleep 60"], stdout=pinfold.PIPE)
    with run:
        assert run.stdout.readline() == b"ready\n"
        # It complains if a cgroup of the unit goes while it walks through them.
        systemctl("kill", f"--signal={signal}", unit_of(run), check=False)
        result = run.wait(10)
    assert (result.outcome, result.returncode) == ("signaled", -number)
    assert fold.run(["true"]).ok


def test_a_death_of_its_own_is_none_of_systemds(fold):
    for line, code in (("kill -TERM $$", -15), ("kill -KILL $$", -9)):
        result = fold.run(["sh", "-c", line])
        assert (result.outcome, result.returncode) == ("signaled", code)


def test_a_timeout_stays_one_though_its_signal_is_the_one_of_a_stop(fold):
    result = fold.run(["sleep", "60"], timeout=0.2, grace=5)
    assert (result.outcome, result.returncode) == ("timed_out", -15)
