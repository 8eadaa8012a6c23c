"""The door to the cgroup files, on a temp dir; the parsers, on what kernels 5.15 to 6.18 really wrote."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfold.cgroup import files
from pinfold.cgroup.files import DIRECTORY, Hierarchy, flat_keyed, nested_keyed, number, stall_usec
from pinfold.errors import CgroupError, UsageError

CPU_STAT_5_15 = "usage_usec 92589159\nuser_usec 56700668\nsystem_usec 35888490\n"
CPU_STAT_6_1 = CPU_STAT_5_15 + "nr_periods 12\nnr_throttled 3\nthrottled_usec 4711\nnr_bursts 0\nburst_usec 0\n"
CPU_STAT_6_18 = "usage_usec 92589159\nuser_usec 56700668\nsystem_usec 35888490\nnice_usec 0\n"
CGROUP_EVENTS = "populated 1\nfrozen 0\n"
MEMORY_EVENTS_5_15 = "low 0\nhigh 17\nmax 230\noom 2\noom_kill 1\n"
MEMORY_EVENTS_6_18 = MEMORY_EVENTS_5_15 + "oom_group_kill 0\nsock_throttled 0\n"
IO_STAT = (
    "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n"
    "8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=50331648 dios=3021\n"
)
IO_STAT_WITHOUT_VALUES = "253:1 \n7:7 7:6 8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n259:0\n"
PRESSURE_5_15_CPU = "some avg10=0.00 avg60=0.10 avg300=0.22 total=6273728\n"
PRESSURE_6_18 = (
    "some avg10=1.47 avg60=0.72 avg300=0.19 total=6273728\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=120\n"
)
IRQ_PRESSURE = "full avg10=0.00 avg60=0.00 avg300=0.00 total=99\n"


@pytest.fixture
def held(tmp_path):
    """A hierarchy that is a temp dir, with its directory held open."""
    hierarchy = Hierarchy(tmp_path.stat().st_dev)
    directory = hierarchy.open_root(str(tmp_path))
    yield hierarchy, directory
    os.close(directory)


@pytest.fixture(params=["openat2", "openat2 is refused", "without the extension"])
def way(request, monkeypatch):
    """How files are opened: by the kernel's own checks, or where it does not have them."""

    def refused(*_):
        raise OSError(errno.EPERM, "refused by a seccomp filter")

    if request.param == "openat2 is refused":
        monkeypatch.setattr(
            files, "_door", SimpleNamespace(open_in=refused, read_in=refused, reread=files._door.reread)
        )
    elif request.param == "without the extension":
        monkeypatch.setattr(files, "_door", None)


def test_a_file_is_opened_below_the_held_directory_and_is_not_inherited(held, tmp_path):
    hierarchy, directory = held
    (tmp_path / "cgroup.events").write_text(CGROUP_EVENTS)
    fd = hierarchy.open(directory, "cgroup.events", os.O_RDONLY)
    try:
        assert files.reread(fd) == CGROUP_EVENTS
        assert not os.get_inheritable(fd)
        assert not os.get_inheritable(directory)
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["a/b", "/etc/passwd", "../x", "a/", "/", "", "."])
@pytest.mark.usefixtures("way")
def test_a_name_of_more_than_one_component_is_refused(held, name):
    hierarchy, directory = held
    with pytest.raises(UsageError, match="must be a single component"):
        hierarchy.open(directory, name, os.O_RDONLY)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, DIRECTORY])
@pytest.mark.usefixtures("way")
def test_a_symlink_is_never_followed(held, tmp_path, flags):
    hierarchy, directory = held
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real" if flags == DIRECTORY else "/etc/hostname")
    with pytest.raises(OSError, match=r"Too many levels of symbolic links|Not a directory"):
        hierarchy.open(directory, "link", flags)


@pytest.mark.usefixtures("way")
def test_what_is_mounted_over_an_entry_is_refused_and_not_left_open():
    root = Hierarchy(os.stat("/").st_dev)
    directory = root.open_root("/")
    try:
        for access in (lambda: root.open(directory, "proc", DIRECTORY), lambda: root.read(directory, "proc")):
            with pytest.raises(UsageError, match="proc: is not on the cgroup2 filesystem"):
                access()
    finally:
        os.close(directory)


def test_a_root_on_another_filesystem_is_refused_and_not_left_open(held, tmp_path):
    hierarchy, _directory = held
    with pytest.raises(UsageError, match="is not on the cgroup2 filesystem"):
        Hierarchy(tmp_path.stat().st_dev + 1).open_root(str(tmp_path))
    with pytest.raises(UsageError, match="is not on the cgroup2 filesystem"):
        hierarchy.open_root("/proc")


@pytest.mark.usefixtures("way")
def test_a_file_is_read_whole_in_every_way(held, tmp_path):
    hierarchy, directory = held
    for text in ("", CGROUP_EVENTS, "x" * 4096, "y" * 10_000):
        (tmp_path / "file").write_text(text)
        assert hierarchy.read(directory, "file") == text
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        hierarchy.read(directory, "link")
    with pytest.raises(FileNotFoundError):
        hierarchy.read(directory, "none")


def test_what_is_not_there_is_an_os_error(held):
    hierarchy, directory = held
    with pytest.raises(FileNotFoundError):
        hierarchy.open(directory, "cgroup.kill", os.O_WRONLY)


def test_an_fd_never_lands_on_the_numbers_that_commands_inherit():
    script = (
        "import os; from pinfold.cgroup.files import clear_of_stdio as clear; os.close(0)\n"
        "low = os.open('/dev/null', os.O_RDONLY); fd = clear(low)\n"
        "assert low == 0 and fd > 2 and not os.get_inheritable(fd)\n"
        "try: os.fstat(0)\n"
        "except OSError: print('moved')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "moved\n"


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 20000])
def test_a_kept_file_is_read_whole_and_again_from_its_start(tmp_path, size):
    (tmp_path / "file").write_text("x" * size)
    with open(tmp_path / "file", "rb") as file:
        assert files.reread(file.fileno()) == files.reread(file.fileno()) == "x" * size


def test_a_file_that_is_no_ascii_is_text_all_the_same(tmp_path):
    (tmp_path / "file").write_bytes(b"populated 1\n\xff\n")
    with open(tmp_path / "file", "rb") as file:
        assert files.reread(file.fileno()) == "populated 1\n\ufffd\n"


def test_a_write_that_fails_says_file_value_and_errno():
    read, write = os.pipe()
    os.close(write)
    try:
        with pytest.raises(CgroupError, match=r"write cgroup\.kill=1: Bad file descriptor") as caught:
            files.write(read, "cgroup.kill", "1")
    finally:
        os.close(read)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CPU_STAT_5_15, {"usage_usec": 92589159, "user_usec": 56700668, "system_usec": 35888490}),
        (CPU_STAT_6_18, {"usage_usec": 92589159, "user_usec": 56700668, "system_usec": 35888490, "nice_usec": 0}),
        (CGROUP_EVENTS, {"populated": 1, "frozen": 0}),
        (MEMORY_EVENTS_5_15, {"low": 0, "high": 17, "max": 230, "oom": 2, "oom_kill": 1}),
        ("", {}),
        ("\n", {}),
        ("max max\nnegative -1\nalone\nhalf 1.5\nok 1\n", {"ok": 1}),
    ],
)
def test_flat_keyed_files_become_numbers(text, expected):
    assert flat_keyed(text) == expected


def test_flat_keyed_files_of_newer_kernels_keep_the_older_keys():
    assert flat_keyed(CPU_STAT_6_1).items() > flat_keyed(CPU_STAT_5_15).items()
    assert flat_keyed(MEMORY_EVENTS_6_18).items() > flat_keyed(MEMORY_EVENTS_5_15).items()


def test_nested_keyed_files_become_dicts():
    found = nested_keyed(IO_STAT)
    assert list(found) == ["8:16", "8:0"]
    assert found["8:0"]["rbytes"] == "90430464"
    assert found["8:16"] == {
        "rbytes": "1459200", "wbytes": "314773504", "rios": "192", "wios": "353", "dbytes": "0", "dios": "0",
    }  # fmt: skip
    assert nested_keyed("") == {}


def test_devices_without_values_do_not_hide_those_that_have_some():
    found = nested_keyed(IO_STAT_WITHOUT_VALUES)
    assert found["253:1"] == found["259:0"] == {}
    assert sum(int(device.get("rbytes", 0)) for device in found.values()) == 4096


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4096\n", 4096), ("0\n", 0), ("12", 12), ("max\n", None), ("", None), ("\n", None), ("-1\n", None),
     ("1 2\n", None), (None, None)],
)  # fmt: skip
def test_a_file_of_one_number_is_that_number_or_none(text, expected):
    assert number(text) == expected


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        (PRESSURE_6_18, "some", 6273728), (PRESSURE_6_18, "full", 120),
        (PRESSURE_5_15_CPU, "some", 6273728), (PRESSURE_5_15_CPU, "full", None),
        (IRQ_PRESSURE, "some", None), (IRQ_PRESSURE, "full", 99),
        ("", "some", None), (None, "some", None), ("some \n", "some", None), ("some total=\n", "some", None),
    ],
)  # fmt: skip
def test_the_total_of_a_pressure_file_is_that_of_the_line_asked_for(text, kind, expected):
    assert stall_usec(text, kind) == expected


# What `reread` can hand to a parser: no more than ASCII and the replacement character.
TEXTS = st.binary(max_size=300).map(lambda data: data.decode("ascii", "replace")) | st.text(
    st.sampled_from("populated frozensmefultvg10=.0123456789 \t\n\r\x0c:-max"), max_size=100
)


@given(TEXTS)
def test_no_parser_raises_on_any_text_that_a_file_can_hold(text):
    assert all(type(value) is int for value in flat_keyed(text).values())
    assert number(text) is None or number(text) >= 0
    assert stall_usec(text, "some") is None or stall_usec(text, "some") >= 0


@given(TEXTS)
def test_nested_keyed_raises_on_no_text_that_a_file_can_hold(text):
    assert all(isinstance(pairs, dict) for pairs in nested_keyed(text).values())


@pytest.mark.parametrize("digits", ["²", "①", "9" * 5000], ids=["superscript", "circled", "5000 digits"])
def test_what_only_looks_like_a_number_is_none(digits):
    assert flat_keyed(f"key {digits}\n") == {}
    assert number(digits) is None
    assert stall_usec(f"some total={digits}\n", "some") is None
