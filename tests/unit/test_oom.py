"""Whose memory limit it was, and who was chosen: by the texts that kernels write."""

from __future__ import annotations

import errno
import os
from contextlib import closing

import pytest

from pinfold.cgroup import oom
from pinfold.cgroup.oom import AncestorOom, verdict

# Derived: the keys, in their order, of mm/memcontrol.c in 5.15 (no oom_group_kill, which came with 5.17) and 6.1.
KEYS = {
    "5.15": ("low", "high", "max", "oom", "oom_kill"),
    "6.1": ("low", "high", "max", "oom", "oom_kill", "oom_group_kill"),
    "6.18": ("low", "high", "max", "oom", "oom_kill", "oom_group_kill", "sock_throttled"),
}
RUN = "/tenant.slice/jobs/runs/run-0123456789abcdef"
UNIT = "/tenant.slice/jobs"


def events(kernel="6.1", **counts):
    return "".join(f"{key} {counts.get(key, 0)}\n" for key in KEYS[kernel])


def texts(kernel="6.1", *, tree, local):
    return {"memory.events": events(kernel, **tree), "memory.events.local": events(kernel, **local)}


@pytest.fixture
def above(cgroups):
    """The cgroups over the run; each with the OOM kills at its own limit before it began."""
    cgroups.add("/", cgroup_type=None)
    for path, count in (("/tenant.slice", 3), ("/tenant.slice/jobs", 0), ("/tenant.slice/jobs/runs", 0)):
        cgroups.add(path, memory_events_local=events(oom=count, oom_kill=5))
    with closing(AncestorOom(cgroups.place("/tenant.slice/jobs/runs"))) as found:
        yield found


def strike(cgroups, path, count):
    (cgroups.directory(path) / "memory.events.local").write_text(events(oom=count, oom_kill=5))


KILLED_AT_ITS_OWN = {"tree": {"max": 40, "oom": 1, "oom_kill": 1}, "local": {"max": 40, "oom": 1, "oom_kill": 1}}
KILLED_FROM_ABOVE = {"tree": {"oom_kill": 1}, "local": {"oom_kill": 1}}
KILLED_BELOW = {"tree": {"max": 9, "oom": 1, "oom_kill": 1}, "local": {}}


def test_the_cgroups_above_count_their_own_limits_nearest_first(above):
    assert list(above.counts().items()) == [("/tenant.slice/jobs/runs", 0), (UNIT, 0), ("/tenant.slice", 3)]
    assert above.complete


@pytest.mark.parametrize("kernel", KEYS)
@pytest.mark.parametrize(("own", "cgroup"), [({RUN}, RUN), ({RUN, UNIT}, RUN)])
def test_a_limit_that_was_hit_in_the_very_cgroup_is_its_own(above, kernel, own, cgroup):
    assert verdict(texts(kernel, **KILLED_AT_ITS_OWN), frozenset(own), above.counts(), above) == ("own", cgroup)


@pytest.mark.parametrize("kernel", KEYS)
def test_a_group_killed_as_one_is_one_verdict(above, kernel):
    killed = {"oom": 1, "oom_kill": 5, "oom_group_kill": 1}
    assert verdict(texts(kernel, tree=killed, local=killed), frozenset({RUN}), {}, above).by == "own"


@pytest.mark.parametrize("kernel", KEYS)
def test_a_limit_that_was_hit_below_was_set_by_the_command(above, kernel):
    assert verdict(texts(kernel, **KILLED_BELOW), frozenset({RUN}), above.counts(), above) == ("below", None)


@pytest.mark.parametrize("path", [UNIT, "/tenant.slice"])
def test_a_limit_above_that_was_hit_meanwhile_is_the_ancestors(cgroups, above, path):
    before = above.counts()
    strike(cgroups, path, before[path] + 1)
    assert verdict(texts(**KILLED_FROM_ABOVE), frozenset({RUN}), before, above) == ("ancestor", path)


def test_of_two_limits_above_the_nearest_is_named(cgroups, above):
    before = above.counts()
    strike(cgroups, UNIT, 1)
    strike(cgroups, "/tenant.slice", 4)
    assert verdict(texts(**KILLED_FROM_ABOVE), frozenset({RUN}), before, above) == ("ancestor", UNIT)


def test_the_limit_of_the_unit_that_is_the_runs_own_is_its_own(cgroups, above):
    before = above.counts()
    strike(cgroups, UNIT, 1)
    assert verdict(texts(**KILLED_FROM_ABOVE), frozenset({RUN, UNIT}), before, above) == ("own", UNIT)


def test_a_kill_at_no_limit_is_the_end_of_the_hosts_memory(above):
    assert verdict(texts(**KILLED_FROM_ABOVE), frozenset({RUN}), above.counts(), above) == ("host", None)


def test_a_kill_at_no_limit_that_can_be_seen_in_a_namespace_is_anybodys(cgroups):
    cgroups.add("/", memory_events_local=events())
    cgroups.add("/runs", memory_events_local=events())
    with closing(AncestorOom(cgroups.place("/runs"))) as above:
        assert not above.complete
        assert verdict(texts(**KILLED_FROM_ABOVE), frozenset({RUN}), above.counts(), above) == (None, None)


def test_a_kernel_without_local_events_tells_of_nobodys_limit(cgroups):
    cgroups.add("/", cgroup_type=None)
    cgroups.add("/runs", memory_events=events(oom=1))
    with closing(AncestorOom(cgroups.place("/runs"))) as above:
        assert above.counts() == {}
        found = {"memory.events": events("5.15", oom=1, oom_kill=1)}
        assert verdict(found, frozenset({RUN}), {}, above) == (None, None)


@pytest.mark.parametrize(
    "found",
    [{}, {"memory.events": ""}, texts(tree={}, local={}), texts(tree={"oom": 2, "max": 7}, local={"oom": 2, "max": 7})],
)
def test_without_a_kill_there_is_no_verdict(cgroups, above, found):
    before = above.counts()
    strike(cgroups, UNIT, 1)
    assert verdict(found, frozenset({RUN}), before, above) == (None, None)


def test_a_cgroup_above_that_is_gone_is_left_out(above, monkeypatch):
    def gone(*_):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(oom, "reread", gone)
    assert above.counts() == {}


def test_a_cgroup_that_is_gone_before_is_left_out(cgroups):
    cgroups.add("/", cgroup_type=None)
    cgroups.add("/runs")
    with closing(AncestorOom(cgroups.place("/runs"))) as above:
        assert above.counts() == {}
        above.close()  # once more is no harm


# ---- the kernel's log ----

NAME = RUN.rpartition("/")[2]


def record(cgroup=RUN, comm="python3", pid=737, constraint="CONSTRAINT_MEMCG"):
    """As dump_oom_summary() of mm/oom_kill.c writes it (5.0 to 6.18), derived; with printk's prefix and dictionary."""
    full = "" if constraint == "CONSTRAINT_NONE" else f",oom_memcg={cgroup}"
    full = full or ",global_oom"
    return (
        f"6,1234,5678901,-;oom-kill:constraint={constraint},nodemask=(null),cpuset={NAME},mems_allowed=0{full},"
        f"task_memcg={cgroup},task={comm},pid={pid},uid=0\n SUBSYSTEM=memory\n DEVICE=+memory:x\n"
    ).encode()


REPORT = (
    b"4,1233,5678900,-;python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0\n",
    b"6,1235,5678902,-;Memory cgroup stats for " + RUN.encode() + b":\n",
    b"3,1236,5678903,-;Memory cgroup out of memory: Killed process 737 (python3) total-vm:106496kB, anon-rss:65024kB\n",
)


@pytest.fixture
def kmsg(monkeypatch):
    """A log that hands out one record per read, an exception where there is one, and EAGAIN at its end."""

    def say(*records):
        left = list(records)

        def read(fd, size):
            if fd != opened[0]:
                return READ(fd, size)
            answer = left.pop(0) if left else BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
            if isinstance(answer, OSError):
                raise answer
            return answer[:size]

        opened = []

        def open_(path, flags, *mode, **how):
            if path != "/dev/kmsg":
                return OPEN(path, flags, *mode, **how)
            assert flags & os.O_NONBLOCK
            opened.append(OPEN(os.devnull, flags))
            return opened[0]

        monkeypatch.setattr(os, "open", open_)
        monkeypatch.setattr(os, "read", read)

    return say


OPEN, READ = os.open, os.read


def test_the_process_that_was_chosen_is_named_by_the_log(kmsg):
    kmsg(REPORT[0], record(), *REPORT[1:])
    assert oom.victim(NAME) == {"pid": 737, "comm": "python3"}


def test_of_several_the_last_one_is_named(kmsg):
    kmsg(record(pid=1), record(comm="late", pid=2))
    assert oom.victim(NAME) == {"pid": 2, "comm": "late"}


@pytest.mark.parametrize("cgroup", [f"{RUN}/made/by/the command", f"{RUN}/a,task=b,pid=1,uid=0"])
def test_a_process_in_a_cgroup_that_the_command_made_is_of_the_run(kmsg, cgroup):
    kmsg(record(cgroup))
    assert oom.victim(NAME)["pid"] == 737


def test_a_process_that_was_chosen_for_the_whole_host_is_named_too(kmsg):
    kmsg(record(constraint="CONSTRAINT_NONE"))
    assert oom.victim(NAME) == {"pid": 737, "comm": "python3"}


@pytest.mark.parametrize(
    "cgroup",
    ["/", "/tenant.slice/jobs/runs", f"{UNIT}/runs/run-fedcba9876543210", f"{RUN}0", f"{UNIT}/x{NAME}",
     f"/x{NAME},task=y"],
)  # fmt: skip
def test_those_of_others_are_not_the_runs(kmsg, cgroup):
    kmsg(record(cgroup))
    assert oom.victim(NAME) is None


@pytest.mark.parametrize(
    ("comm", "name"),
    [
        ("a b", "a b"), ("", ""), ("a,b", "a,b"), ("x,task=y", "x,task=y"), (",pid=1,uid=0", ",pid=1,uid=0"),
        ("tmux: server", "tmux: server"), ("(sd-pam)", "(sd-pam)"), ("a;b", "a;b"),
        ("\\xc3\\xa9\\x0a\\x1b[31m", "é\n\x1b[31m"), ("\\x5cx41", "\\x41"), ("\\xff", "\\xff"),
        ("\\xe3\\x81\\x82" * 5, "あ" * 5),
    ],
    ids=ascii,
)  # fmt: skip
def test_a_task_may_have_any_name(kmsg, comm, name):
    kmsg(record(comm=comm))
    assert oom.victim(NAME) == {"pid": 737, "comm": name}


def test_records_that_were_overwritten_meanwhile_are_passed_over(kmsg):
    lost = BrokenPipeError(errno.EPIPE, "Broken pipe")
    kmsg(lost, record(), lost, REPORT[0])
    assert oom.victim(NAME) == {"pid": 737, "comm": "python3"}


@pytest.mark.parametrize("end", [BlockingIOError(errno.EAGAIN, ""), OSError(errno.EINVAL, ""), b""], ids=repr)
def test_the_log_ends_where_no_more_can_be_read(kmsg, end):
    kmsg(record(), end, record(pid=1))
    assert oom.victim(NAME) == {"pid": 737, "comm": "python3"}


@pytest.mark.parametrize(
    "garbage", [b"\n", b"6,1,2,-;", b"no prefix oom-kill:task_memcg=/" + NAME.encode(), b"\xff;\xff"]
)
def test_what_is_no_record_of_a_kill_is_passed_over(kmsg, garbage):
    kmsg(garbage)
    assert oom.victim(NAME) is None


def test_a_line_of_a_records_dictionary_is_no_record(kmsg):
    """Whoever may write to the log can choose those lines no more than the kernel's own, but they are not the text."""
    kmsg(b"6,1,2,-;text\n " + record().partition(b";")[2])
    assert oom.victim(NAME) is None


@pytest.mark.parametrize("error", [PermissionError(errno.EPERM, ""), FileNotFoundError(errno.ENOENT, "")], ids=repr)
def test_a_log_that_may_not_be_read_tells_nothing(monkeypatch, error):
    def refuse(*_args, **_how):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        found = oom.victim(NAME)
    assert found is None


def test_a_container_whose_log_is_the_null_device_tells_nothing(monkeypatch):
    monkeypatch.setattr(oom, "_KMSG", os.devnull)
    assert oom.victim(NAME) is None
