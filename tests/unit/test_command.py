"""Command: argv, environment, search path and user, checked before anything exists."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from pinfold.command import Command, Identity
from pinfold.errors import UsageError

UNKNOWN_ID = 54321
NOT_ENCODABLE = "\ud800"  # a surrogate that stands for no byte


@pytest.fixture(autouse=True)
def unknown_user_is_unknown():
    with pytest.raises(KeyError):
        pwd.getpwuid(UNKNOWN_ID)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["echo", "a"], [b"echo", b"a"]),
        (("echo", b"\xff\xfe"), [b"echo", b"\xff\xfe"]),
        ([Path("/bin/true"), b"x", ""], [b"/bin/true", b"x", b""]),
        (["echo", "\udcff"], [b"echo", b"\xff"]),
        (iter(["true"]), [b"true"]),
    ],
)
def test_argv_becomes_bytes(argv, expected):
    assert Command.of(argv).argv == expected


@pytest.mark.parametrize("argv", ["echo hi", b"echo hi", Path("/bin/true"), ""])
def test_one_string_is_refused_and_the_shell_is_shown(argv):
    with pytest.raises(UsageError, match=r"must be a list; to run a shell line say \['sh', '-c', LINE\]"):
        Command.of(argv)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "argv is empty"), (iter([]), "argv is empty"), ([""], r"argv\[0\] is empty"), ([b""], r"argv\[0\]"),
        (5, "argv 5: must be a list"), (None, "argv None: must be a list"), (["a", 5], r"argv\[1\] is int 5"),
        (["a", "b", None], r"argv\[2\] is NoneType"), (["a", ["b"]], r"argv\[1\] is list"),
        (["a", bytearray(b"b")], r"argv\[1\] is bytearray"), (["a", "b\0c"], r"argv\[1\] .*NUL"),
        ([b"\0"], r"argv\[0\] .*NUL"), (["a", NOT_ENCODABLE], r"argv\[1\] "),
    ],
    ids=lambda value: ascii(value)[:30],
)  # fmt: skip
def test_an_argv_that_is_wrong_is_refused_with_the_element_named(argv, named):
    with pytest.raises(UsageError, match=f"^{named}"):
        Command.of(argv)


def test_the_environment_becomes_bytes_and_none_means_ours():
    command = Command.of(["a"], env={"A": "1", b"B": b"\xff", "C": Path("/x"), "D": "", "E": "x=y"})
    assert command.env == [b"A=1", b"B=\xff", b"C=/x", b"D=", b"E=x=y"]
    assert sorted(Command.of(["a"]).env) == sorted(k + b"=" + v for k, v in os.environb.items())
    assert Command.of(["a"], env={}).env == []


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ([("A", "1")], "env is list"), (5, "env is int"), ("A=1", "env is str"),
        ({"": "1"}, "environment name ''"), ({"A=B": "1"}, "environment name 'A=B'"), ({5: "1"}, "environment name"),
        ({"A\0": "1"}, "environment name"), ({"A": None}, "environment variable A is NoneType"),
        ({"A": 1}, "environment variable A is int"), ({"A": "x\0"}, "environment variable A .*NUL"),
        ({"A": NOT_ENCODABLE}, "environment variable A"), ({NOT_ENCODABLE: "1"}, "environment name"),
    ],
    ids=lambda value: ascii(value)[:30],
)  # fmt: skip
def test_an_environment_that_is_wrong_is_refused_with_the_variable_named(env, named):
    with pytest.raises(UsageError, match=f"^{named}"):
        Command.of(["a"], env=env)


@pytest.mark.parametrize("cwd", [5, True, "a\0b", b"\0", ["x"], NOT_ENCODABLE], ids=ascii)
def test_a_directory_that_is_wrong_is_refused_by_its_argument(cwd):
    with pytest.raises(UsageError, match=r"^cwd "):
        Command.of(["a"], cwd=cwd)


@pytest.mark.parametrize("cwd", ["/tmp", b"/tmp", Path("/tmp")])
def test_a_directory_may_be_text_bytes_or_a_path(cwd):
    assert Command.of(["a"], cwd=cwd).cwd == b"/tmp"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"PATH": "/a:/b"}, [b"/a/prog", b"/b/prog"]),
        ({b"PATH": b"/a"}, [b"/a/prog"]),
        ({"PATH": ":/a:"}, [b"./prog", b"/a/prog", b"./prog"]),
        ({"PATH": ""}, [b"./prog"]),
        ({"OTHER": "1"}, [b"/bin/prog", b"/usr/bin/prog"]),
        (None, [b"/of/ours/prog"]),
    ],
)
def test_a_program_is_searched_on_the_path_of_its_own_environment(monkeypatch, env, expected):
    monkeypatch.setenv("PATH", "/of/ours")
    monkeypatch.setattr(os, "defpath", "/bin:/usr/bin")
    assert Command.of(["prog"], env=env).candidates() == expected


def test_without_any_path_the_default_is_searched(monkeypatch):
    monkeypatch.delenv("PATH")
    monkeypatch.setattr(os, "defpath", "/default")
    assert Command.of(["prog"]).candidates() == [b"/default/prog"]


@pytest.mark.parametrize("program", ["/bin/true", "./here", "sub/prog", "../up"])
def test_a_program_with_a_slash_is_not_searched(program):
    assert Command.of([program], env={"PATH": "/a:/b"}).candidates() == [os.fsencode(program)]


@pytest.mark.parametrize("user", ["root", 0, "0"])
def test_a_user_brings_the_groups_of_the_user_database(user):
    root = pwd.getpwnam("root")
    identity = Command.of(["a"], user=user).identity
    assert (identity.uid, identity.gid) == (0, root.pw_gid)
    assert set(identity.groups) == set(os.getgrouplist("root", root.pw_gid))


@pytest.mark.parametrize("group", [UNKNOWN_ID, str(UNKNOWN_ID)])
def test_a_group_may_be_given_alone_or_with_a_user_that_nobody_knows(group):
    assert Command.of(["a"], group=group).identity == Identity(gid=UNKNOWN_ID)
    both = Command.of(["a"], user=UNKNOWN_ID, group=group).identity
    assert both == Identity(UNKNOWN_ID, UNKNOWN_ID, (UNKNOWN_ID,))


def test_a_group_replaces_the_primary_group_of_the_user():
    identity = Command.of(["a"], user="root", group=UNKNOWN_ID).identity
    assert identity.gid == UNKNOWN_ID
    assert UNKNOWN_ID in identity.groups


def test_no_user_means_no_change():
    assert Command.of(["a"]).identity == Identity(None, None, None)


def test_asking_for_the_user_that_we_are_is_no_change(monkeypatch):
    for name in ("getuid", "geteuid", "getgid", "getegid"):
        monkeypatch.setattr(os, name, lambda: UNKNOWN_ID)
    assert Command.of(["a"], user=UNKNOWN_ID, group=UNKNOWN_ID).identity == Identity()
    assert Command.of(["a"], user=UNKNOWN_ID, group=0).identity.uid == UNKNOWN_ID


@pytest.mark.parametrize(
    ("who", "named"),
    [
        ({"user": "no-such-user"}, "user 'no-such-user': no such user"), ({"user": ""}, "user ''"),
        ({"user": "a\0b"}, "user "), ({"user": NOT_ENCODABLE}, "user "), ({"user": True}, "user True"),
        ({"user": 1.5}, "user 1.5"), ({"user": b"root"}, "user b'root'"), ({"user": -1}, "user -1: must be between"),
        ({"user": 2**32 - 1}, "user 4294967295"), ({"user": UNKNOWN_ID}, "user 54321: .* say which group"),
        ({"user": "²"}, "user '²'"), ({"user": "9" * 5000}, "user "),
        ({"group": "no-such-group"}, "group 'no-such-group': no such group"), ({"group": False}, "group False"),
        ({"group": 2**32}, "group 4294967296"), ({"user": "root", "group": []}, r"group \[\]"),
    ],
    ids=lambda value: ascii(value)[:30],
)  # fmt: skip
def test_a_user_or_group_that_is_none_is_refused_by_name(who, named):
    with pytest.raises(UsageError, match=f"^{named}"):
        Command.of(["a"], **who)
