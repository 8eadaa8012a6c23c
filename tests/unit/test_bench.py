"""The bench, as far as it is pure: from samples to ratios, verdicts, tables and the picture."""

from __future__ import annotations

import contextlib
import json
import math
import re
from xml.etree import ElementTree as ET

import pytest
from bench import __main__ as command
from bench import budget, chart, peers, ratios, report
from bench.cases import ALL, latency
from bench.rounds import interleaved
from bench.words import Case, Goal, Measured, Missing

SVG = "{http://www.w3.org/2000/svg}"
GOAL = Goal("ours / theirs", "ours", "theirs", must=1.1, aim=0.95)


def _report(ours=1.0, theirs=1.0, goal=GOAL, name="fake", rounds=5):
    samples = {goal.quantity: {"theirs": [[theirs] * 3] * rounds, "ours": [[ours] * 3] * rounds}}
    case = Case(name, "a `fake` <case>", "theirs", lambda _rounds: Measured(samples), (goal,))
    data = report.head(rounds)
    data["cases"].append(report.case(case, case.measure(rounds), 1.0, 0.25))
    return data


# --- ratios ---


def test_a_ratio_is_the_median_of_the_rounds_ratios_not_a_ratio_of_medians():
    theirs = [[1.0], [10.0], [100.0], [10.0]]
    ours = [[2.0], [20.0], [200.0], [20.0]]
    assert ratios.ratio(ours, theirs) == (2.0, 2.0, 2.0)
    # Paired otherwise, the same numbers say something else.
    assert ratios.ratio([ours[2], ours[0], ours[1], ours[3]], theirs).value != 2.0


def test_an_outlier_within_a_round_does_not_move_its_ratio():
    assert ratios.ratio([[1.0, 1.0, 50.0]] * 3, [[1.0, 1.0, 1.0]] * 3).value == 1.0


def test_a_difference_is_paired_too():
    assert ratios.difference([[5.0], [7.0], [9.0]], [[1.0], [3.0], [5.0]]) == (4.0, 4.0, 4.0)


def test_rounds_of_unequal_number_are_refused():
    with pytest.raises(ValueError, match="zip"):
        ratios.ratio([[1.0]], [[1.0], [1.0]])


def test_the_interval_holds_the_median_and_narrows_with_more_rounds():
    few, many = [1.0, 1.2, 0.9, 1.1, 1.3], [1.0, 1.2, 0.9, 1.1, 1.3] * 40
    low, high = ratios.bootstrap(few)
    assert low <= 1.1 <= high
    assert 0.9 <= low < high <= 1.3
    closer_low, closer_high = ratios.bootstrap(many)
    assert closer_high - closer_low < high - low


def test_the_interval_is_the_same_each_time_and_absent_for_two_rounds():
    values = [1.0, 2.0, 4.0, 3.0]
    assert ratios.bootstrap(values) == ratios.bootstrap(values)
    assert ratios.bootstrap([1.0, 2.0]) == (None, None)


def test_nine_tenths_do_not_exceed_the_p90():
    assert ratios.p90([float(n) for n in range(1, 11)]) == 10.0
    assert ratios.p90([float(n) for n in range(100, 0, -1)]) == 91.0
    assert ratios.p90([3.0]) == 3.0


# --- verdicts ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.90, "aim met"), (0.95, "aim met"), (0.951, "met"), (1.10, "met"), (1.101, "MISSED"), (None, "skipped")],
)
def test_a_verdict_where_lower_is_better(value, expected):
    assert ratios.verdict(GOAL, value) == expected


@pytest.mark.parametrize(("value", "expected"), [(2.0, "aim met"), (1.99, "met"), (1.3, "met"), (1.29, "MISSED")])
def test_a_verdict_where_higher_is_better(value, expected):
    assert ratios.verdict(Goal("", "a", "b", 1.3, 2.0, higher=True), value) == expected


def test_a_goal_without_marks_demands_nothing():
    assert ratios.verdict(Goal("", "a", "b"), 99.0) == ""


@pytest.mark.parametrize(("ours", "status"), [(1.0, 0), (1.2, 1)])
def test_the_exit_status_tells_of_a_must_that_was_missed(monkeypatch, capsys, ours, status):
    samples = {"time": {"theirs": [[1.0]] * 3, "ours": [[ours]] * 3}}
    case = Case("fake", "fake", "theirs", lambda _rounds: Measured(samples), (GOAL,))
    monkeypatch.setattr(command, "ALL", (case,))
    monkeypatch.setattr(command, "_backend", lambda: "none")
    monkeypatch.setattr("sys.argv", ["bench", "--rounds", "3"])
    assert command.main() == status
    assert ("MISSED" in capsys.readouterr().out) is bool(status)


def test_a_case_that_cannot_be_measured_is_named_and_no_miss(monkeypatch, capsys):
    def measure(_rounds):
        raise Missing("no C compiler (Debian: gcc)")

    monkeypatch.setattr(command, "ALL", (Case("fake", "fake", "theirs", measure, (GOAL,)),))
    monkeypatch.setattr(command, "_backend", lambda: "none")
    monkeypatch.setattr("sys.argv", ["bench"])
    assert command.main() == 0
    out = capsys.readouterr().out
    assert "skipped: all of it: no C compiler (Debian: gcc)" in out
    assert "skipped: ours / theirs" in out


# --- rounds ---


def test_each_round_has_every_variant_once_and_drops_its_first_call():
    calls = []
    variants = {name: lambda name=name: calls.append(name) or {"time": float(calls.count(name))} for name in "ab"}
    samples = interleaved(variants, 4, block=2, drop=1, warm=1)
    blocks = [calls[n : n + 3] for n in range(0, len(calls), 3)]
    assert all(len(set(block)) == 1 for block in blocks)
    assert [{*one, *other} for one, other in zip(blocks[::2], blocks[1::2], strict=True)] == [{"a", "b"}] * 5
    assert len({"".join(block[0] for block in blocks[n : n + 2]) for n in range(0, 10, 2)}) == 2  # in both orders
    assert samples["time"]["a"] == [[5.0, 6.0], [8.0, 9.0], [11.0, 12.0], [14.0, 15.0]]
    assert list(samples["time"]) == ["a", "b"]


def test_the_order_is_the_same_each_time():
    def order():
        calls = []
        interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, 5)
        return calls

    assert order() == order()


def test_states_are_entered_once_a_round_and_left():
    log = []

    @contextlib.contextmanager
    def state(name):
        log.append(f"+{name}")
        yield
        log.append(f"-{name}")

    states = {name: (lambda name=name: state(name)) for name in ("few", "many")}
    samples = interleaved({"a": lambda: log.append("a")}, 2, block=1, drop=0, warm=0, states=states)
    assert sorted(log) == ["+few"] * 2 + ["+many"] * 2 + ["-few"] * 2 + ["-many"] * 2 + ["a"] * 4
    assert {"".join(log[n : n + 3]) for n in range(0, 12, 3)} == {"+fewa-few", "+manya-many"}
    assert list(samples["time"]) == ["a, few", "a, many"]


def test_the_rounds_take_the_time_of_what_has_not_measured_itself():
    samples = interleaved({"a": lambda: None, "b": lambda: {"rate": 7.0}}, 2)
    assert set(samples) == {"time", "parent's CPU", "rate"}
    assert samples["rate"] == {"b": [[7.0] * 3] * 2}
    assert all(value >= 0 for values in samples["time"]["a"] for value in values)


# --- reports ---


def test_the_data_survive_json_and_have_every_figure():
    data = json.loads(json.dumps(_report(1.2), allow_nan=False))
    assert data["schema"] == report.SCHEMA
    (case,) = data["cases"]
    assert case["cpu_waited"] == 0.25
    assert case["quantities"]["time"]["ours"] == {
        "median": 1.2, "p90": 1.2, "count": 15, "ratio": 1.2, "low": 1.2, "high": 1.2,
    }  # fmt: skip
    (goal,) = case["goals"]
    assert (goal["value"], goal["must"], goal["aim"], goal["verdict"]) == (1.2, 1.1, 0.95, "MISSED")
    assert report.missed(data)
    assert not report.missed(_report(1.0))


def test_a_reference_of_nothing_has_no_ratio():
    goal = Goal("cgroups", "ours", "theirs", must=0.0, quantity="cgroups", above=True)
    data = _report(0.0, 0.0, goal)
    assert data["cases"][0]["quantities"]["cgroups"]["ours"]["ratio"] is None
    assert data["cases"][0]["goals"][0]["verdict"] == "met"
    assert report.missed(_report(1.0, 0.0, goal))


@pytest.mark.parametrize(
    ("value", "quantity", "expected"),
    [
        (2.0, "time", "2.00 s"), (0.0123, "time", "12.3 ms"), (0.000762, "time", "762 µs"), (0.0015, "time", "1.50 ms"),
        (1081.4, "rate", "1081 /s"), (15.4, "memory", "15.40 MiB"), (17.0, "descriptors", "17"), (None, "time", ""),
    ],
)  # fmt: skip
def test_an_amount_has_the_unit_that_suits_it(value, quantity, expected):
    assert report.amount(value, quantity) == expected


def test_the_tables_have_as_many_cells_in_every_row():
    lines = report.markdown(_report()).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) == 3 + 4
    assert {line.count("|") for line in tables} == {7}


def test_only_what_is_between_the_marks_is_replaced():
    document = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n"
    once = report.replaced(document, "new")
    assert once == f"# Title\n\n{report.BEGIN}\n\nnew\n\n{report.END}\n\nafter\n"
    assert report.replaced(once, "new") == once


@pytest.mark.parametrize("document", ["", report.BEGIN, report.END])
def test_a_document_without_both_marks_is_refused(document):
    with pytest.raises(ValueError, match="no place"):
        report.replaced(document, "new")


def test_the_budget_adds_up():
    names = {latency.BARE: 700e-6, latency.FRESH: 800e-6, latency.OURS: 950e-6, latency.STANDARD: 750e-6}
    samples = {"time": {name: [[value]] for name, value in names.items()}}
    data = {"cases": [report.case(latency.TRUE, Measured(samples), 1.0, 0.0)]}
    (found,) = budget.budgets(data)
    assert [row[1] for row in budget.rows([found])] == ["700", "+100", "+150", "950", "+50"]
    assert found.bare + found.cgroup + found.rest == pytest.approx(found.whole)
    assert not budget.budgets(_report())  # no C floor


# --- the picture ---


def _bars(drawing):
    return [element for element in ET.fromstring(drawing).iter(f"{SVG}rect") if element.get("height") == "12"]


@pytest.mark.parametrize(("value", "colour"), [(0.9, "good"), (1.0, "fair"), (1.2, "bad")])
def test_a_bar_is_the_share_of_what_is_allowed_in_the_colour_of_its_verdict(value, colour):
    (bar,) = _bars(chart.svg(_report(value)))
    assert bar.get("class") == colour
    at_the_mark = 180.0  # half of the axis
    assert float(bar.get("width")) == pytest.approx(value / 1.1 * at_the_mark, abs=0.1)


def test_a_bar_beyond_the_axis_ends_with_it():
    (bar,) = _bars(chart.svg(_report(50.0)))
    assert float(bar.get("width")) == 360.0


def test_where_higher_is_better_the_bar_is_the_mark_over_the_value():
    assert chart.share({"higher": True, "must": 1.3}, 2.6) == 0.5
    assert chart.share({"higher": True, "must": 1.3}, 0.0) == math.inf


def test_of_nothing_allowed_anything_is_too_much():
    assert chart.share({"higher": False, "must": 0}, 0) == 0
    assert chart.share({"higher": False, "must": 0}, 1) == math.inf


def test_the_picture_is_well_formed_and_within_its_frame_whatever_was_found():
    data = _report(1.2)
    data["cases"] += _report(1.0, goal=Goal("a < b & c", "ours", "nobody", 1.0))["cases"]
    data["cases"] += _report(0.5, 0.002, goal=Goal("", "ours", "theirs"), name="peers")["cases"]
    drawing = ET.fromstring(chart.svg(data))
    assert drawing.tag == f"{SVG}svg"
    texts = [element.text for element in drawing.iter(f"{SVG}text")]
    assert "a < b & c" in texts
    assert "skipped" in texts
    width = float(drawing.get("width"))
    for bar in drawing.iter(f"{SVG}rect"):
        assert float(bar.get("x", "0")) + float(bar.get("width")) <= width


def test_the_picture_of_nothing_is_well_formed_too():
    ET.fromstring(chart.svg({**report.head(1), "cases": []}))


# --- the cases themselves ---


def test_cases_have_names_of_their_own_and_marks_in_order():
    assert len({case.name for case in ALL}) == len(ALL)
    for goal in (goal for case in ALL for goal in case.goals):
        assert goal.must is not None
        if goal.aim is not None:
            assert goal.aim >= goal.must if goal.higher else goal.aim <= goal.must


def test_every_peer_names_its_package_and_has_a_way(tmp_path):
    for peer in peers.peers(str(tmp_path), "/ours"):
        assert peer.package
        assert all(way.argv[0] == peer.program for way in peer.ways)


def test_a_peer_that_is_not_there_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr(peers.ground, "program", lambda _name: None)
    found = Measured({})
    assert not list(peers._usable(peers.peers(str(tmp_path), "/ours"), found))
    assert found.skipped["bwrap"] == "not installed (Debian: bubblewrap)"
    assert set(found.skipped) == {"pinfold", "timeout", "bwrap", "crun", "runc", "runexec", "systemd-run"}


def test_a_peer_that_refuses_is_tried_the_next_way_and_both_are_said():
    shell = peers.Peer("sh", "dash", [
        peers.Way("first", ["sh", "-c", "echo not on this host >&2; exit 3"]),
        peers.Way("second", ["sh", "-c", "exit 0"]),
    ])  # fmt: skip
    found = Measured({})
    ((label, argv),) = peers._usable([shell], found)
    assert (label, argv[1:]) == ("second", ["-c", "exit 0"])
    assert found.notes == ["refused: first: status 3: not on this host", "second: `sh -c exit 0`"]
    refused = Measured({})
    assert not list(peers._usable([shell._replace(ways=shell.ways[:1])], refused))
    assert re.fullmatch("first: status 3: .*", refused.skipped["sh"])
