"""Finding: which cgroups are taken for folds and runs, and what is said of those that only look so."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pinfold.lease import find, owner, record
from pinfold.lease.record import OwnerRecord, RunRecord

FOLD = "/pinfold-0123456789ab"
DEAD = OwnerRecord(2**22 + 1, 5, *owner.world(), os.geteuid(), 1.0)
OURS = owner.this_process({"job": "1"}, None)


def written(value):
    """A record as it is on a cgroup."""
    return json.dumps({"schema": 1, **value._asdict()}).encode()


@pytest.fixture
def attributes(monkeypatch):
    """What is written on which directory; the temp dir's file system may not take any."""
    held = {}

    def attribute(directory, name):
        path = os.readlink(f"/proc/self/fd/{directory}") if isinstance(directory, int) else directory
        return held.get((path, name))

    monkeypatch.setattr(record, "attribute", attribute)
    # Who has signed holds it, if alive; the others are as they are found.
    is_held = owner.is_locked
    monkeypatch.setattr(owner, "is_locked", lambda fd: attribute(fd, record.OWNER) is not None or is_held(fd))
    return held


@pytest.fixture
def sign(cgroups, attributes):
    """`sign(path, data)`: make a cgroup with this owner record, bytes or an Owner; None: without."""

    def make(path, data=OURS, name=record.OWNER, **files):
        place = cgroups.add(path, **files)
        if data is not None:
            attributes[place.directory, name] = data if isinstance(data, bytes) else written(data)
        return place

    return make


class TestFolds:
    def test_a_fold_of_a_live_owner(self, sign):
        place = sign(FOLD)
        fold = find.fold_at(place)
        assert fold == find.FoldEntry(place, OURS, "live", os.getuid(), None)
        assert (fold.unsigned, fold.scope) == (False, None)

    def test_a_fold_of_a_dead_one(self, sign):
        assert find.fold_at(sign(FOLD, DEAD)).state == "dead"
        assert find.fold_at(sign(FOLD, OURS._replace(closed=True))).state == "dead"

    @pytest.mark.parametrize(
        "path", [FOLD, f"/a{FOLD}", f"/user.slice/a b/x.scope{FOLD}", f"/run-0123456789abcdef{FOLD}"]
    )
    def test_a_name_as_we_give_it_counts_wherever_it_is(self, sign, path):
        assert find.fold_at(sign(path, None)).unsigned
        assert find.fold_at(sign(path)).problem is None

    def test_the_base_in_a_scope_knows_its_scope(self, sign):
        fold = find.fold_at(sign("/pinfold.slice/mine.scope/runs"))
        assert (fold.problem, fold.scope, fold.state) == (None, "mine.scope", "live")

    def test_without_a_record_a_cgroup_called_runs_is_anybodys(self, sign):
        assert find.fold_at(sign("/pinfold.slice/mine.scope/runs", None)) is None

    @pytest.mark.parametrize(
        "path",
        ["/", "/pinfold-0123456789a", "/pinfold-0123456789abc", "/pinfold-0123456789aB", "/pinfold-0123456789ag",
         "/xpinfold-0123456789ab", "/pinfold-tests-1", "/pinfold-0123456789ab\n", "/runs", "/mine.slice/runs",
         "/mine.scope/run", f"{FOLD}/run-0123456789abcdef"],
    )  # fmt: skip
    class TestOtherNames:
        def test_without_a_record_they_are_none_of_ours(self, sign, path):
            assert find.fold_at(sign(path, None)) is None

        def test_with_one_they_are_reported_and_no_state_is_believed(self, sign, path):
            found = find.fold_at(sign(path, DEAD))
            assert (found.problem, found.state) == ("it has an owner record, and is not named like a fold", None)
            assert found.owner == DEAD
            assert not found.unsigned

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"", "it is no JSON"),
            (b"\xff", "it is no JSON"),
            (b"[]", "it is no JSON object"),
            (b'{"schema":2}', "its schema is 2, known is 1"),
            (written(DEAD._replace(pid=0)), "its pid is 0, which is no process'"),
        ],
    )
    @pytest.mark.parametrize("path", [FOLD, "/mine.scope/runs", "/other"])
    def test_a_record_that_cannot_be_read_is_a_problem_in_words(self, sign, data, why, path):
        fold = find.fold_at(sign(path, data))
        assert (fold.owner, fold.state) == (None, None)
        assert fold.problem == f"its owner record cannot be read: {why}"
        assert not fold.unsigned

    def test_one_of_another_user_is_that_but_for_root(self, sign, monkeypatch):
        place, uid = sign(FOLD, DEAD), os.getuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        found = find.fold_at(place)
        assert (found.problem, found.state, found.uid) == (f"it belongs to uid {uid}", "dead", uid)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert find.fold_at(place).problem is None

    def test_whose_it_is_is_the_file_systems_word_not_the_records(self, sign):
        assert find.fold_at(sign(FOLD, DEAD._replace(uid=4711))).uid == os.getuid()

    def test_what_has_gone_is_none(self, cgroups):
        assert find.fold_at(cgroups.place(FOLD)) is None

    def test_what_goes_while_it_is_looked_at_is_none(self, sign, monkeypatch):
        def gone(*_):
            raise OSError(19, "gone")

        place = sign(FOLD)
        monkeypatch.setattr(find, "examine", gone)
        assert find.fold_at(place) is None

    def test_looking_leaves_nothing_open(self, sign, monkeypatch):
        """Whatever comes of it: no_leaks is the check."""

        def broken(*_):
            raise ZeroDivisionError

        place = sign(FOLD)
        monkeypatch.setattr(record.OwnerRecord, "parse", broken)
        with pytest.raises(ZeroDivisionError):
            find.fold_at(place)

    def test_every_one_is_found_at_any_depth_once(self, sign):
        paths = [FOLD, "/a/pinfold-00000000000a", f"{FOLD}/run-0123456789abcdef/pinfold-00000000000b", "/b.scope/runs"]
        for path in paths:
            sign(path)
        sign("/a/unrelated", None)
        found = [fold.place.path for fold in find.folds(sign("/", None))]
        assert sorted(found) == sorted(paths)

    def test_the_top_is_searched_itself_too(self, sign):
        assert [fold.place.path for fold in find.folds(sign(FOLD))] == [FOLD]

    def test_a_link_is_no_cgroup(self, sign, cgroups):
        sign(FOLD)
        (cgroups.root / "pinfold-ffffffffffff").symlink_to(cgroups.directory(FOLD))
        assert [fold.place.path for fold in find.folds(cgroups.place("/"))] == [FOLD]


class TestMembers:
    RUN = f"{FOLD}/run-0123456789abcdef"

    @pytest.fixture
    def members(self, sign):
        """`members()`: those of the fold."""
        place = sign(FOLD)
        return lambda: find.members(find.fold_at(place))

    def test_a_run(self, sign, members):
        run = RunRecord(17, 1.5, {"job": "1"})
        place = sign(self.RUN, run, record.RUN, holds="17")
        (member,) = members()
        assert member[1:] == ("0123456789abcdef", run, "run")
        assert member.place[:2] == place[:2]

    def test_one_that_was_given_up(self, sign, members):
        sign(self.RUN, RunRecord(None, 1.5, quarantined=True), record.RUN)
        assert [member.kind for member in members()] == ["quarantined"]

    def test_one_that_was_made_ahead(self, sign, members):
        sign(self.RUN, None)
        assert [(member.kind, member.record) for member in members()] == [("spare", None)]

    @pytest.mark.parametrize("data", [None, b"?", b'{"schema":2,"started":1,"quarantined":true}'])
    def test_one_with_processes_and_no_word_of_its_own_is_a_run(self, sign, members, data):
        place = sign(self.RUN, data, record.RUN)
        Path(place.directory, "cgroup.events").write_text("populated 1\nfrozen 0\n")
        assert [(member.kind, member.record) for member in members()] == [("run", None)]

    @pytest.mark.parametrize(
        "name",
        ["run", "run-", "run-0123456789abcde", "run-0123456789abcdef0", "run-0123456789abcdeF", "guard", FOLD[1:]],
    )
    def test_what_is_named_otherwise_is_none(self, sign, members, name):
        sign(f"{FOLD}/{name}", RunRecord(17, 1.5), record.RUN)
        assert members() == []

    def test_they_come_in_the_order_of_their_names(self, sign, members):
        for digit in "3120":
            sign(f"{FOLD}/run-{digit * 16}", None)
        assert [member.run_id[0] for member in members()] == list("0123")


class TestProcesses:
    def test_those_of_the_whole_tree(self, cgroups):
        cgroups.add("/a", holds="1 2")
        cgroups.add("/a/b/c", holds="3")
        cgroups.add("/other", holds="4")
        assert sorted(find.processes(cgroups.place("/a"))) == [1, 2, 3]

    def test_those_of_another_pid_namespace_are_counted(self, cgroups):
        assert find.processes(cgroups.add("/a", holds="0 0 7")) == [0, 0, 7]

    def test_what_has_gone_has_none(self, cgroups):
        assert find.processes(cgroups.place("/gone")) == []

    def test_one_that_does_not_list_them_has_none_of_its_own(self, cgroups):
        """A threaded one refuses (EOPNOTSUPP); here, no such file."""
        cgroups.add("/a")
        (cgroups.directory("/a") / "cgroup.procs").unlink()
        cgroups.add("/a/b", holds="3")
        assert find.processes(cgroups.place("/a")) == [3]


def test_below_is_in_order_and_of_cgroups_alone(cgroups):
    for name in "cab":
        cgroups.add(f"/top/{name}")
    top = cgroups.add("/top")
    assert [place.path for place in find.below(top)] == ["/top/a", "/top/b", "/top/c"]
    assert find.below(cgroups.place("/gone")) == []


def test_the_path_below_the_root_has_one_slash(cgroups):
    assert find.child(cgroups.place("/"), "a").path == "/a"
    assert find.child(cgroups.place("/a"), "b").path == "/a/b"
