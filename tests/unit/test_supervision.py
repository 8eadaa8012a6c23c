"""What a run makes of the end of its main process, where systemd may have a hand in it."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest
from pinfold.runs.supervision import Supervision

from pinfold.lease import record
from pinfold.runs.lifecycle import Event, State
from pinfold.runs.request import Request


class Warden:
    """Of a unit that is being stopped, or is not; counts how often it was asked."""

    def __init__(self, revoked):
        self.answer, self.asked = revoked, 0

    def revoked(self):
        self.asked += 1
        return self.answer


@pytest.fixture
def marks():
    """The attributes that the run's cgroup has."""
    return {}


@pytest.fixture
def ended(monkeypatch, marks):
    """`ended(returncode, warden, events)`: a run, without a process, that has seen these events and then its exit."""
    monkeypatch.setattr(record, "attribute", lambda directory, name: marks.get(name) if directory == 1000 else None)
    monkeypatch.setattr(Supervision, "take", lambda self, event: self.life.on(event))
    monkeypatch.setattr(Supervision, "reaped", lambda _self: True)

    def end(returncode, warden, *events):
        run = Supervision(None, Request.of(["true"], grace=1))
        run.scope = SimpleNamespace(warden=warden, cgroup=SimpleNamespace(dir=1000, populated=lambda: True))
        run.returncode = returncode
        for event in (Event.START, Event.SPAWNED, *events):
            run.life.on(event)
        run._exited()
        return run

    return end


@pytest.mark.parametrize("returncode", [-15, -9, -1])
@pytest.mark.parametrize(("revoked", "outcome"), [(True, "canceled"), (False, "signaled")])
def test_a_death_by_a_signal_of_a_stop_is_systemds_if_it_says_so(ended, returncode, revoked, outcome):
    run = ended(returncode, warden := Warden(revoked))
    assert (run.life.outcome(returncode), run.life.state, warden.asked) == (outcome, State.KILLING, 1)


@pytest.mark.parametrize("returncode", [0, 143, -11, -2])
def test_systemd_is_not_asked_about_any_other_end(ended, returncode):
    run = ended(returncode, warden := Warden(True))
    assert warden.asked == 0
    assert run.life.cause is None


@pytest.mark.parametrize(
    "cause", [Event.TIMED_OUT, Event.CANCELED, Event.ABORTED, Event.STALLED, Event.OUTPUT_EXCEEDED]
)
def test_systemd_is_not_asked_about_a_death_that_we_have_caused(ended, cause):
    run = ended(-9, warden := Warden(True), cause)
    assert (run.life.cause, warden.asked) == (cause, 0)


def test_without_a_unit_there_is_nobody_to_ask(ended):
    assert ended(-9, None).life.outcome(-9) == "signaled"


@pytest.mark.parametrize("returncode", [-15, -9, -1])
def test_a_death_by_a_signal_of_a_stop_is_no_end_of_its_own_where_somebody_asked_for_it(ended, marks, returncode):
    """`pinfold kill` marks the cgroup before it kills; there is no call of the bus then."""
    marks[record.CANCELED] = b"1"
    run = ended(returncode, warden := Warden(False))
    assert (run.life.outcome(returncode), run.life.state, warden.asked) == ("canceled", State.KILLING, 0)


@pytest.mark.parametrize("returncode", [0, 1, -2])
def test_a_mark_makes_it_canceled_however_it_obeyed(ended, marks, returncode):
    marks[record.CANCELED] = b"1"
    assert ended(returncode, None).life.outcome(returncode) == "canceled"


def test_a_cgroup_that_is_gone_tells_nothing_and_breaks_nothing(ended, monkeypatch):
    def gone(*_):
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr(record, "attribute", gone)
    assert ended(-9, None).life.outcome(-9) == "signaled"
