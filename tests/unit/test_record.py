"""The records on cgroups: what we write is read back, and of what others write nothing is believed."""

from __future__ import annotations

import errno
import json
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pinfold.labels import checked_labels
from pinfold.lease import record
from pinfold.lease.record import MalformedError, OwnerRecord, RunRecord

XATTR_SIZE_MAX = 65536  # include/uapi/linux/limits.h

numbers = st.integers(0, 2**63 - 1)
pids = st.integers(1, 2**22)
times = st.floats(0, 2**40)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,63}", fullmatch=True)
values = st.text(max_size=256).filter(str.isprintable)
labels = st.dictionaries(names, values, max_size=5)
owners = st.builds(
    OwnerRecord, pids, numbers, st.text(st.characters(exclude_categories=["Cs"])), numbers, numbers, numbers, times,
    st.none() | pids, labels, st.booleans(),
)  # fmt: skip
runs = st.builds(RunRecord, st.none() | pids, times, labels, st.booleans())
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OWNER = {
    "schema": 1, "pid": 17, "start_time": 5, "boot_id": "b", "pid_ns": 1, "time_ns": 2, "uid": 0, "opened": 1.5,
}  # fmt: skip
RUN = {"schema": 1, "pid": 17, "started": 1.5}
KINDS = [(OwnerRecord, OWNER), (RunRecord, RUN)]
both = pytest.mark.parametrize(("kind", "fields"), KINDS, ids=["owner", "run"])


def data(fields, **changes):
    return json.dumps({**fields, **changes}).encode()


def parse(kind, value):
    """The record, or None for one that was refused; nothing else may come of it."""
    try:
        return kind.parse(value)
    except MalformedError as error:
        message = str(error)
    assert message
    assert message.isprintable()
    return None


class Attributes:
    """What is written, in place of a cgroup."""

    def __init__(self, monkeypatch):
        self.held = {}
        monkeypatch.setattr(os, "setxattr", lambda at, name, value: self.held.update({(at, name): value}))


@pytest.fixture(scope="module")
def written():
    """`written(record)`: the bytes that `write` hands to the kernel."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        attributes = Attributes(monkeypatch)

        def write(value):
            assert record.write(7, "user.x", value)
            return attributes.held[7, "user.x"]

        yield write


@given(owner=owners)
def test_what_an_owner_writes_is_what_others_read(written, owner):
    assert OwnerRecord.parse(written(owner)) == owner


@given(run=runs)
def test_what_is_written_of_a_run_is_what_others_read(written, run):
    assert RunRecord.parse(written(run)) == run


@pytest.mark.parametrize("character", ["\N{GRINNING FACE}", "\N{EURO SIGN}", "a", '"', "\\"])
def test_the_largest_labels_that_are_allowed_fit_into_an_attribute(written, character):
    most = {f"{number:064d}": character * 256 for number in range(32)}
    owner = OwnerRecord(**{key: value for key, value in OWNER.items() if key != "schema"}, labels=checked_labels(most))
    assert len(written(owner)) <= XATTR_SIZE_MAX
    assert OwnerRecord.parse(written(owner)) == owner


@given(value=st.binary())
@example(b"")
@example(b"\xff\xfe")
@example(b"\xef\xbb\xbf{}")
@example(b'{"schema": 1, "boot_id": "\xe4"}')
@example(b"9" * 5000)
@example(b'{"schema": ' + b"9" * 5000 + b"}")
@example(b'{"schema": 1e999}')
@example(b'{"schema": -0}')
@example(b"\0")
def test_bytes_that_are_no_record_are_refused_and_do_no_harm(value):
    assert parse(OwnerRecord, value) is None
    assert parse(RunRecord, value) is None


@given(value=anything)
def test_json_that_is_no_record_is_refused(value):
    assert parse(OwnerRecord, json.dumps(value).encode()) is None
    assert parse(RunRecord, json.dumps(value).encode()) is None


@given(value=anything, field=st.sampled_from([*OWNER, "guard", "labels", "closed"]))
@example(None, "closed")
@example(None, "guard")
@example(None, "labels")
@example(0, "guard")
@example(-1, "guard")
@example(2**63, "guard")
@example(2**63, "pid")
@example("\ud800", "boot_id")
@example({"\ud800": "\udfff"}, "labels")
@example({"a": None}, "labels")
def test_an_owner_with_any_field_replaced_is_refused_or_is_one(value, field):
    owner = parse(OwnerRecord, data(OWNER, **{field: value}))
    if owner is None:
        return
    counts = (owner.pid, owner.start_time, owner.pid_ns, owner.time_ns, owner.uid)
    assert all(type(count) is int and 0 <= count < 2**63 for count in counts)
    assert owner.pid > 0
    assert owner.guard is None or (type(owner.guard) is int and 0 < owner.guard < 2**63)
    assert isinstance(owner.boot_id, str)
    assert 0 <= owner.opened < 2**63
    assert type(owner.closed) is bool
    assert all(isinstance(text, str) for text in owner.labels.values())


@given(value=anything, field=st.sampled_from([*RUN, "labels", "quarantined"]))
@example(None, "quarantined")
@example(None, "pid")
@example(-1, "pid")
@example(0, "pid")
@example(2**63, "pid")
def test_a_run_with_any_field_replaced_is_refused_or_is_one(value, field):
    run = parse(RunRecord, data(RUN, **{field: value}))
    if run is None:
        return
    # A pid of 0 or -1 is, to kill(2), everybody.
    assert run.pid is None or (type(run.pid) is int and 0 < run.pid < 2**63)
    assert 0 <= run.started < 2**63
    assert type(run.quarantined) is bool
    assert all(isinstance(text, str) for text in run.labels.values())


NO_NUMBERS = ["NaN", "Infinity", "-Infinity", "-1", "-0.5", "1e999", str(2**63), "true", "false", '"1"', "[]", "{}"]


@pytest.mark.parametrize("number", [*NO_NUMBERS, "null"])
@pytest.mark.parametrize(
    ("kind", "fields", "name"),
    [(OwnerRecord, OWNER, name) for name in ("pid", "start_time", "pid_ns", "time_ns", "uid", "opened")]
    + [(RunRecord, RUN, "started")],
)
def test_a_number_that_is_none_is_refused_by_name(kind, fields, name, number):
    text = data(fields, **{name: "?"}).replace(b'"?"', number.encode())
    with pytest.raises(MalformedError, match=f"its {name} is "):
        kind.parse(text)


@pytest.mark.parametrize("number", [*NO_NUMBERS, "0", "1.5"])
@pytest.mark.parametrize(("kind", "fields", "name"), [(OwnerRecord, OWNER, "guard"), (RunRecord, RUN, "pid")])
def test_a_pid_that_may_be_missing_is_one_if_it_is_there(kind, fields, name, number):
    text = data(fields, **{name: "?"}).replace(b'"?"', number.encode())
    with pytest.raises(MalformedError):
        kind.parse(text)


@pytest.mark.parametrize("pid", [0, 0.0, 17.0])
def test_the_pid_of_an_owner_is_that_of_a_process(pid):
    with pytest.raises(MalformedError):
        OwnerRecord.parse(data(OWNER, pid=pid))


@pytest.mark.parametrize("name", [name for name in OWNER if name != "schema"])
def test_an_owner_that_leaves_out_what_it_must_say_is_refused(name):
    with pytest.raises(MalformedError, match=f"its {name} is None"):
        OwnerRecord.parse(data({key: value for key, value in OWNER.items() if key != name}))


def test_what_may_be_missing_has_its_default():
    assert OwnerRecord.parse(data(OWNER))[-3:] == (None, {}, False)
    assert RunRecord.parse(data({"schema": 1, "started": 2})) == RunRecord(None, 2, {}, quarantined=False)


@both
@given(later=st.dictionaries(st.text(min_size=1), anything, max_size=3))
def test_what_a_later_release_adds_is_no_harm(kind, fields, later):
    known = {"schema", *kind._fields}
    added = {key: value for key, value in later.items() if key not in known}
    assert kind.parse(data({**added, **fields})) == kind.parse(data(fields))


@both
@pytest.mark.parametrize("schema", [0, 2, 17, -1, 1.5, "1", None, [1], {"1": 1}, True])
def test_another_schema_is_refused_and_named(kind, fields, schema):
    with pytest.raises(MalformedError) as caught:
        kind.parse(data(fields, schema=schema))
    assert str(caught.value) == f"its schema is {schema!r}, known is 1"


@both
def test_a_record_without_schema_is_refused(kind, fields):
    with pytest.raises(MalformedError, match="its schema is None"):
        kind.parse(data({key: value for key, value in fields.items() if key != "schema"}))


@both
@pytest.mark.parametrize("wrong", [None, [], "a=b", {"a": 1}, {"a": None}, {"a": ["b"]}, 5])
def test_labels_that_are_no_texts_are_refused(kind, fields, wrong):
    with pytest.raises(MalformedError, match="labels"):
        kind.parse(data(fields, labels=wrong))


@both
def test_nesting_of_any_depth_is_no_crash(kind, fields):
    """What json still reads may be too deep for the repr in the message."""
    for field in (*fields, "labels", "later"):
        for depth in (*range(890, 1000, 2), 3000, 9995, 10_000, 100_000):
            nested = b"[" * depth + b"]" * depth
            parse(kind, data(fields, **{field: "?"}).replace(b'"?"', nested))
    assert parse(kind, b"[" * 100_000) is None


@both
def test_a_message_about_a_record_is_short_whatever_is_in_it(kind, fields):
    for field in fields:
        with pytest.raises(MalformedError) as caught:
            kind.parse(data(fields, **{field: ["\x1b[2J" * 10_000]}))
        assert len(str(caught.value)) < 100
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EPERM, errno.EACCES])
def test_a_kernel_that_takes_no_attributes_is_told_from_one_that_fails(monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "setxattr", refuse)
    monkeypatch.setattr(os, "getxattr", refuse)
    assert record.write(7, record.OWNER, RunRecord(None, 1.0)) is False
    assert record.set_attribute(7, record.CANCELED, b"1") is False
    assert record.attribute(7, record.OWNER) is None


@pytest.mark.parametrize("number", [errno.ENODATA, errno.ENOENT, errno.ENODEV])
def test_what_is_not_there_has_no_attributes(monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "getxattr", refuse)
    assert record.attribute("/gone", record.OWNER) is None


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.E2BIG])
def test_other_failures_are_the_callers(monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "setxattr", refuse)
    monkeypatch.setattr(os, "getxattr", refuse)
    with pytest.raises(OSError):
        record.write(7, record.OWNER, RunRecord(None, 1.0))
    with pytest.raises(OSError):
        record.attribute(7, record.OWNER)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda values: st.dictionaries(st.text(), values),
)


@given(VALUES)
def test_json_of_our_own_is_json(value):
    assert json.loads(record._json(value)) == value
