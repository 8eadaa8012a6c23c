"""The sweep's decisions, without a kernel: what it kills, what it leaves, and what it says of each."""

from __future__ import annotations

import errno
import json
import os

import pytest

from pinfold.cgroup import kill
from pinfold.errors import CgroupError
from pinfold.lease import find, owner, record, sweep
from pinfold.lease.record import OwnerRecord, RunRecord
from pinfold.lease.sweep import Swept

DEAD = OwnerRecord(2**22 + 1, 5, *owner.world(), os.geteuid(), 1.0)
LIVE = owner.this_process({}, None)
FOLD = "/pinfold-0123456789ab"
RUN = f"{FOLD}/run-0123456789abcdef"
GONE = f"its owner, process {DEAD.pid}, is gone"


@pytest.fixture
def sign(cgroups, monkeypatch):
    """`sign(path, record)`: make a cgroup with this record, bytes or one of ours; None: without."""
    held = {}

    def attribute(directory, name):
        path = os.readlink(f"/proc/self/fd/{directory}") if isinstance(directory, int) else directory
        return held.get((path, name))

    def make(path, what, **files):
        empty = {"cgroup_events": "populated 0\nfrozen 0\n", "cgroup_kill": "", "cgroup_freeze": "0\n"}
        place = cgroups.add(path, **(empty | files))
        if what is not None:
            data = what if isinstance(what, bytes) else json.dumps({"schema": 1, **what._asdict()}).encode()
            held[place.directory, record.RUN if isinstance(what, RunRecord) else record.OWNER] = data
        return place

    monkeypatch.setattr(record, "attribute", attribute)
    # Who has signed holds it, if alive; the others are as they are found.
    is_held, dead = owner.is_locked, str(DEAD.pid).encode()

    def is_locked(fd):
        signed = attribute(fd, record.OWNER)
        return (signed is not None and dead not in signed) or is_held(fd)

    monkeypatch.setattr(owner, "is_locked", is_locked)
    return make


@pytest.fixture
def killed(monkeypatch):
    """The cgroups that were told to end, by path; they end at once."""
    found = []

    def end_all(cgroup, _bound):
        found.append(cgroup.path)
        return True

    monkeypatch.setattr(kill, "end_all", end_all)
    monkeypatch.setattr(sweep.Cgroup, "remove_within", lambda _cgroup, _bound: True)
    return found


@pytest.fixture
def swept(cgroups):
    """`swept()`: what a sweep of everything says."""
    return lambda **options: list(sweep.sweep(cgroups.place("/"), **options))


class TestWhatIsEnded:
    def test_the_fold_of_a_dead_owner(self, sign, killed, swept):
        sign(FOLD, DEAD)
        sign(RUN, None, holds="17 18")
        assert swept() == [Swept(FOLD, "fold", "removed", [17, 18], [], GONE)]
        assert killed == [FOLD]

    def test_one_that_was_closed(self, sign, killed, swept):
        sign(FOLD, LIVE._replace(closed=True))
        assert swept() == [Swept(FOLD, "fold", "removed", [], [], "its fold was closed")]
        assert killed == [FOLD]

    def test_nothing_in_a_dry_run(self, sign, killed, swept):
        sign(FOLD, DEAD, holds="17")
        sign("/pinfold-00000000000a", LIVE)
        sign("/pinfold-00000000000a/run-0123456789abcdef", RunRecord(None, 1.0, quarantined=True), holds="18")
        sign("/pinfold-00000000000b", None)
        assert sorted((one.cgroup, one.action, one.pids) for one in swept(dry_run=True)) == [
            ("/pinfold-00000000000a/run-0123456789abcdef", "would remove", [18]),
            ("/pinfold-00000000000b", "would remove", []),
            (FOLD, "would remove", [17]),
        ]
        assert killed == []

    def test_what_was_given_up_in_a_live_fold_and_nothing_else_of_it(self, sign, killed, swept):
        sign(FOLD, LIVE)
        sign(RUN, RunRecord(None, 1.0, quarantined=True), holds="17")
        sign(f"{FOLD}/run-0000000000000000", RunRecord(18, 1.0), holds="18")
        sign(f"{FOLD}/run-1111111111111111", None)
        assert swept() == [Swept(RUN, "run", "removed", [17], [], "it is over and was not empty")]
        assert killed == [RUN]

    def test_the_dead_ones_of_many(self, sign, killed, swept):
        for number in range(6):
            sign(f"/pinfold-00000000000{number}", DEAD if number % 2 else LIVE)
        assert sorted(one.cgroup[-1] for one in swept()) == ["1", "3", "5"]

    def test_what_cannot_be_emptied_is_said_to_be_left(self, sign, monkeypatch, swept):
        sign(FOLD, DEAD, holds="17")
        monkeypatch.setattr(kill, "end_all", lambda _cgroup, _bound: False)
        monkeypatch.setattr(sweep.Cgroup, "remove_within", lambda _cgroup, bound: bound > 0)
        assert swept() == [Swept(FOLD, "fold", "left", [17], [17], GONE)]

    def test_what_comes_to_life_before_it_is_held_is_not_touched(self, sign, killed, cgroups, monkeypatch):
        """Found dead; when it is held, it is another of the same name."""
        found = list(find.folds(sign(FOLD, DEAD)))
        sign(FOLD, LIVE)
        monkeypatch.setattr(find, "folds", lambda _place: found)
        assert list(sweep.sweep(cgroups.place("/"))) == []
        assert killed == []

    def test_a_run_whose_word_changes_before_it_is_held_is_not_touched(self, sign, killed, cgroups, monkeypatch):
        """A command can write the record of its own run, again and again; that is to stop no sweep."""
        fold = find.fold_at(sign(FOLD, LIVE))
        sign(RUN, RunRecord(None, 1.0, quarantined=True))
        found = find.members(fold)
        assert [member.kind for member in found] == ["quarantined"]
        sign(RUN, RunRecord(None, 1.0, quarantined="yes"))
        monkeypatch.setattr(find, "members", lambda _fold: found)
        assert list(sweep.sweep(cgroups.place("/"))) == []
        assert killed == []

    def test_what_goes_before_it_is_held_is_no_error(self, sign, killed, swept, monkeypatch):
        sign(FOLD, DEAD)

        def gone(*_):
            raise CgroupError("open", FOLD, OSError(errno.ENOENT, "gone"))

        monkeypatch.setattr(sweep, "adopted", gone)
        assert swept() == []

    def test_what_cannot_be_opened_is_left_and_says_why_and_the_sweep_goes_on(self, sign, killed, swept, monkeypatch):
        sign(FOLD, DEAD)

        def broken(*_):
            raise CgroupError("open", FOLD, OSError(errno.EMFILE, "no fds"))

        monkeypatch.setattr(sweep, "adopted", broken)
        (one,) = swept()
        assert (one.action, one.pids) == ("left", [])
        assert "no fds" in one.why


class TestWhatIsLeft:
    def test_a_live_fold_is_not_even_mentioned(self, sign, killed, swept):
        sign(FOLD, LIVE)
        assert swept() == []
        assert killed == []

    @pytest.mark.parametrize(
        ("path", "data", "what", "why"),
        [
            (FOLD, b"?", "cgroup", "its owner record cannot be read: it is no JSON"),
            (FOLD, b'{"schema":2}', "cgroup", "its owner record cannot be read: its schema is 2, known is 1"),
            ("/mine", DEAD, "fold", "it has an owner record, and is not named like a fold"),
            ("/mine", LIVE, "fold", "it has an owner record, and is not named like a fold"),
        ],
    )
    def test_what_only_looks_like_ours_is_reported(self, sign, killed, swept, path, data, what, why):
        sign(path, data, holds="17")
        assert swept() == [Swept(path, what, "foreign", [], [], why)]
        assert killed == []

    def test_the_dead_fold_of_another_user_is_reported_and_the_live_one_is_not(self, sign, killed, swept, monkeypatch):
        uid = os.getuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        sign(FOLD, DEAD)
        sign("/pinfold-00000000000a", LIVE)
        assert swept() == [Swept(FOLD, "fold", "foreign", [], [], f"it belongs to uid {uid}")]
        assert killed == []

    def test_a_run_of_a_live_fold_whose_word_cannot_be_read(self, sign, killed, swept):
        sign(FOLD, LIVE)
        sign(RUN, RunRecord(17, 1.0, quarantined="yes"), holds="17")
        assert swept() == []


class TestUnsigned:
    """rmdir decides; a fake cgroup is never empty to it, so what is looked at is what comes before."""

    WHY = "it was never signed, and nobody is making it"

    @pytest.fixture
    def removed(self, monkeypatch):
        """What was given to rmdir."""
        found = []
        monkeypatch.setattr(os, "rmdir", found.append)
        return found

    def test_it_is_removed(self, sign, swept, removed):
        place = sign(FOLD, None)
        assert swept() == [Swept(FOLD, "cgroup", "removed", [], [], self.WHY)]
        assert removed == [place.directory]

    def test_with_processes_it_is_not_ours_to_judge(self, sign, swept, removed):
        sign(FOLD, None)
        sign(f"{FOLD}/below", None, holds="17")
        assert swept() == [Swept(FOLD, "cgroup", "foreign", [], [], "it has no owner record")]
        assert removed == []

    def test_nor_where_it_is_another_users(self, sign, swept, removed, monkeypatch):
        uid = os.getuid()
        sign(FOLD, None)
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        assert [one.action for one in swept()] == ["foreign"]
        assert removed == []

    def test_while_somebody_makes_one_it_is_nothing(self, sign, cgroups, swept, removed):
        place = sign(FOLD, None)
        for directory in (cgroups.root, place.directory):
            fd = os.open(directory, os.O_RDONLY)
            try:
                assert owner.lock_shared(fd)
                assert swept() == []
            finally:
                os.close(fd)
        assert removed == []
        assert [one.action for one in swept()] == ["removed"]

    def test_what_rmdir_refuses_is_left_and_reported(self, sign, swept):
        place = sign(FOLD, None)
        assert swept() == [Swept(FOLD, "cgroup", "foreign", [], [], "it has no owner record")]
        assert os.path.isdir(place.directory)


class TestBeside:
    def test_dead_ones_are_ended_those_in_scopes_too_and_nobody_elses(self, sign, killed, cgroups):
        sign(FOLD, DEAD)
        sign("/pinfold-00000000000a", LIVE)
        sign("/pinfold-00000000000b", None)
        sign("/pinfold-00000000000c", b"?")
        sign("/pinfold-1.scope/runs", DEAD)
        sign("/other.scope/runs", DEAD)
        sign("/below/pinfold-00000000000d", DEAD)
        sweep.beside(cgroups.place("/"))
        assert sorted(killed) == [FOLD, "/pinfold-1.scope/runs"]

    def test_a_lock_that_a_child_of_a_dead_one_has_inherited_is_for_gc_to_see(self, sign, killed, cgroups, swept):
        fd = os.open(sign(FOLD, DEAD).directory, os.O_RDONLY)
        try:
            assert owner.lock_shared(fd)
            sweep.beside(cgroups.place("/"))
            assert killed == []
            assert [one.action for one in swept()] == ["removed"]
        finally:
            os.close(fd)

    def test_with_very_many_some_are_looked_at(self, sign, killed, cgroups, monkeypatch):
        monkeypatch.setattr(sweep, "_BESIDE_BOUND", 60.0)
        for number in range(40):
            sign(f"/pinfold-{number:012x}", DEAD)
        sweep.beside(cgroups.place("/"))
        assert len(set(killed)) == len(killed) == 32

    def test_it_stops_when_its_time_is_over(self, sign, killed, cgroups, monkeypatch):
        monkeypatch.setattr(sweep, "_BESIDE_BOUND", 0.0)
        sign(FOLD, DEAD)
        sweep.beside(cgroups.place("/"))
        assert killed == []

    @pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), CgroupError("kill", FOLD, OSError(errno.EIO, "no"))])
    def test_it_raises_nothing(self, sign, cgroups, monkeypatch, error):
        """Whatever is wrong with what others have left is no reason not to open a fold."""

        def broken(*_):
            raise error

        sign(FOLD, DEAD)
        monkeypatch.setattr(kill, "end_all", broken)
        sweep.beside(cgroups.place("/"))

    def test_where_there_is_nothing_it_does_nothing(self, cgroups):
        sweep.beside(cgroups.place("/gone"))


class TestAfterTheOwner:
    def test_the_guards_word_is_enough(self, sign, killed):
        """The record may say that the owner lives: its pipe has said more."""
        place = sign(FOLD, LIVE)
        sweep.after_the_owner(place.directory)
        assert killed == [place.directory]
