"""Findings, call sites and processes: merged over workers, and over time."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from drawn import rows, screen_text, selection, text, title
from fakes import (
    FakeSource,
    finding,
    frame,
    hold,
    pool,
    process,
    server_status,
    snapshot,
    wait,
)
from helpers import until_async

from poolwatch.diagnosis.incidents import Incidents
from poolwatch.model import Distribution, LabelStats, Process, SiteStats, Unreachable
from poolwatch.text.format import utc_time
from poolwatch.tui.app import Dashboard
from poolwatch.tui.draw.line import plain
from poolwatch.tui.draw.table import TIMES
from poolwatch.tui.panels import header
from poolwatch.tui.polling import Reading
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.filtering import parse
from poolwatch.tui.state.site_rows import together
from poolwatch.tui.state.table_state import TableState
from poolwatch.tui.views import known_fields, named

LINES = [
    frame(f"/srv/app/{name}.py:{line}", name)
    for name, line in (("report", 41), ("export", 88), ("cart", 14), ("users", 55))
]
START = 1_793_000_000.0


def buckets(*up_to: int, count: int, p95: float, longest: float) -> Distribution:
    return Distribution(count, count * 0.1, longest, p95 / 2, p95, p95, up_to)


FAST = buckets(0, 0, 0, 8, 10, 10, 10, 10, 10, count=10, p95=0.08, longest=0.09)
SLOW = buckets(0, 0, 0, 0, 0, 9, 10, 10, 10, count=10, p95=0.4, longest=0.9)


def stats(site, times=FAST, **changes) -> SiteStats:
    values = {"count": 10, "connections": 0.5, "leaked": 1, "wait_caused_s": 2.0}
    return SiteStats(
        "orders", site, hold_s=times, wait_s=times, **{**values, **changes}
    )


def worker(number: int, **changes) -> Process:
    """A worker of the one program, with each of its faults."""
    holds = [
        hold(f"h{at}", site=site, held_s=60.0 * at + number, labels={"shop": str(at)})
        for at, site in enumerate(LINES)
    ]
    kinds = "leaked.orphaned", "long_hold", "held_across_io", "idle_in_transaction"
    found = [
        finding(kind, severity="warning", holds=(f"h{at}",), sites=(site,))
        for at, (kind, site) in enumerate(zip(kinds, LINES, strict=True))
    ]
    waits = (wait(waited_s=3.0),)
    found.append(finding("exhausted", holds=("h0", "h1"), waits=("w1",)))
    values = {
        "pid": 500 + number,
        "pools": (pool(checked_out=4, size=4, max_overflow=0, waiting=1),),
        "waits": waits,
        "findings": tuple(found),
        "sites": tuple(
            stats(site, connections=0.5 - at / 10) for at, site in enumerate(LINES)
        ),
        "callers": (stats(LINES[0], caller=LINES[3]), stats(LINES[0], caller=LINES[2])),
    }
    return process(*holds, **{**values, **changes})


def fleet(count: int = 64) -> Board:
    made = Board()
    made.accept(Reading(100.0, snapshot(*map(worker, range(count))), at=START))
    return made


def at(board: Board, second: float, *processes: Process, **changes) -> None:
    shown = snapshot(*processes, **changes)
    board.accept(Reading(100.0 + second, shown, at=START + second))


# -- findings ----------------------------------------------------------------------


def test_faults_of_64_workers_are_a_row_each():
    b = fleet()
    shown = rows(b, 160, view="findings")
    assert len(shown) == 5
    assert "exhausted" in plain(shown[0])
    assert all("64 of 64" in plain(line) for line in shown)
    assert title(b, 160, view="findings").startswith("  FINDINGS 5 ")
    assert named("findings").count(b) == ("5", "bad")
    b.tables["findings"] = TableState(merged=False)
    assert len(rows(b, 160, view="findings")) == 320


def test_the_cause_is_said_first_and_what_it_leads_to():
    b = fleet(3)
    first, second = map(plain, header.why(b, 100.0, 160, 2))
    assert first.startswith(
        "  WHY  ■ pool 'orders' is empty in 3 processes: 12 of 12 out"
    )
    assert "+4 more w" in first
    assert "→ return the connection" in second
    leads = [row.leads_to for row in selection(b, view="findings").shown]
    assert leads[1:] == ["exhausted"] * 4


def test_a_silent_process_is_a_finding_and_leads_to_its_row():
    b = Board()
    at(b, 0, worker(1))
    lost = Unreachable(777, "it is stopped (state T) and does not answer", alive=True)
    at(b, 1, worker(1), unreachable=(replace(lost, name="billing", silent_s=8.0),))
    first = selection(b, view="findings").shown[0]
    assert "billing 777 is stopped" in first.finding.text
    drill = named("findings").leads_to(b, first)
    assert drill == ("processes", "pid=777", False)
    b.filter = parse(drill.filter, known_fields(b))
    assert [r.name for r in selection(b, view="processes").shown] == ["billing"]
    # when all have ended, nobody is silent any more
    at(b, 2, unreachable=(replace(lost, alive=False),))
    assert "billing" not in text(rows(b, 160, view="findings"))


def test_findings_have_a_history():
    b = Board()
    at(b, 0, process())
    leak = finding("leaked.orphaned", holds=("h1",), sites=LINES[:1], text="it leaks")
    for second in (60, 61, 90):
        at(b, second, process(hold(), findings=(leak,)))
    (line,) = map(plain, rows(b, 160, view="findings"))
    assert re.search(r"\d\d:\d\d:\d\d +30s +··■■ +leaked.orphaned +it leaks", line)
    for second in (91, 92, 93):
        at(b, second, process())
    assert title(b, 160, view="findings").startswith("  FINDINGS 0 open, 1 over ")
    (line,) = map(plain, rows(b, 160, view="findings"))
    assert re.search(r"○ +\d\d:\d\d:\d\d +30s .* over \d\d:\d\d:\d\d: it leaks", line)
    b.tables["findings"].show_all = False
    assert rows(b, 160, view="findings") == []
    b.tables["findings"].show_all = None
    at(b, 93 + 601, process())
    assert rows(b, 160, view="findings") == []


@pytest.mark.parametrize("left", ["nothing", "ended"])
def test_findings_end_with_the_last_process(left):
    """The screen shows them as last seen; their history says that they are over."""
    b = Board()
    for second in (0, 1, 2):
        at(b, second, process(hold(), findings=(finding(),)))
    assert [entry.over for entry in b.found.open] == [None]
    if left == "ended":
        at(b, 3, unreachable=(Unreachable(7, "it has ended", alive=False),))
    else:
        b.accept(Reading(3.0, error="no process", no_process=True, at=START + 3))
    assert (b.found.open, len(b.found.over), len(b.findings)) == ([], 1, 1)


def test_what_was_there_at_the_first_look_may_be_older():
    b = Board()
    for second in (0, 5):
        at(b, second, process(hold(), findings=(finding(),)))
    (line,) = map(plain, rows(b, 160, view="findings"))
    assert re.search(r"≤\d\d:\d\d:\d\d +≥5.0s", line)


def test_a_moment_of_the_past_has_findings_but_no_history():
    b = Board()
    at(b, 0, process(hold(), findings=(finding(),)))
    past = snapshot(process(hold(), findings=(finding(),)), at="2026-01-01T00:00:00Z")
    other = Board()
    other.accept(Reading(1.0, past))
    (line,) = map(plain, rows(other, 160, view="findings"))
    assert line.split()[1:5] == ["■", "-", "-", "-"]


def test_a_moment_of_the_past_has_what_its_incidents_tell():
    leak = finding("leaked.orphaned", holds=("h1",), sites=LINES[:1], text="it leaks")
    live, tracker = Board(), Incidents()
    for second in range(3):
        at(live, second, process(hold(), findings=(leak,)))
        incidents = tracker.update(live.snapshot, START + second).lasting
    assert [incident.kind for incident in incidents] == ["leaked.orphaned"]
    then = snapshot(process(hold(), findings=(leak,)), at=utc_time(START + 120))
    b = live.at_another_moment()
    b.show_moment(then, [replace(incidents[0], last_seen_at=utc_time(START + 300))])
    (line,) = map(plain, rows(b, 160, view="findings"))
    assert re.search(r"\d\d:\d\d:\d\d +1m59s +·{15}■■■■■ +leaked", line)
    b.show_moment(replace(then, at=utc_time(START + 400)), incidents)
    (line,) = map(plain, rows(b, 160, view="findings"))
    assert line.split()[1:5] == ["■", "-", "-", "-"]  # that one was over
    assert live.entry(live.findings[0]).since == START


def test_no_process_is_no_all_clear():
    b = Board()
    assert "known" in named("findings").empty(b) or b.last is None
    at(b, 0, process())
    assert named("findings").empty(b) == "no finding"
    b.accept(Reading(101.0, no_process=True, error="no process"))
    assert named("findings").empty(b) == "nothing is known: no process answers"


@pytest.mark.parametrize("kind", ["long_hold", "exhausted"])
def test_enter_finds_exactly_the_holds_of_a_finding(kind):
    b = fleet(3)
    row = next(r for r in selection(b, view="findings").shown if r.finding.kind == kind)
    view, drill, _ = named("findings").leads_to(b, row)
    b.filter = parse(drill, known_fields(b))
    assert b.filter.error is None
    found = {
        (group.first.process.pid, group.first.hold.id)
        for group in selection(b, view=view).shown
    }
    assert found == {(process.pid, hold.id) for process, hold in row.finding.holds}


def test_an_issue_in_markdown():
    b = fleet(30)
    row = selection(b, view="findings").shown[1]
    issue = named("findings").issue(b, row)
    assert issue.startswith("### ")
    for words in (
        "- kind: `leaked.orphaned (warning)`",
        "- since: `",
        "at least 0.0s",
        "- proof: nothing is free",
        "- remedy: return the connection",
        "- call site: `/srv/app/report.py:41`",
        "Leads to: pool 'orders' is empty",
        "| 529 orders-api | app/report.py:41 |",
        "and 10 holds more",
    ):
        assert words in issue


# -- call sites --------------------------------------------------------------------


def test_call_sites_of_64_workers_are_those_of_one():
    b, one = fleet(), fleet(1)
    names = [row.frame for row in selection(one, view="sites").shown]
    shown = selection(b, view="sites").shown
    assert [row.frame for row in shown] == names
    assert names[1:3] == [LINES[2], LINES[3]]  # the callers of the first one
    first = shown[0]
    assert (first.stats.count, first.stats.connections) == (640, 32.0)
    assert (first.stats.leaked, first.stats.wait_caused_s) == (64, 128.0)
    assert first.oldest_s == 63.0
    assert "64 processes" in text(rows(b, 200, view="sites"))
    assert title(b, 160, view="sites").startswith("  SITES 4 ")
    assert named("sites").count(b) == ("4", "strong")
    b.tables["sites"] = TableState(merged=False)
    assert len(selection(b, view="sites").shown) == 64 * 6


def test_callers_stay_below_their_call_site_in_every_order():
    b = fleet(2)
    for column in ("oldest", "site", "count"):
        b.tables["sites"] = TableState(sort=column, reverse=True)
        shown = selection(b, view="sites").shown
        above = next(at for at, row in enumerate(shown) if row.below) - 1
        assert shown[above].frame == LINES[0]
        assert [row.below for row in shown[above : above + 3]] == [False, True, True]


def test_distributions_are_merged_by_their_buckets():
    both = together([FAST, SLOW])
    assert (both.count, both.max) == (20, 0.9)
    assert both.p50 == 0.1  # the edge of the bucket
    assert both.p95 == 0.4  # not above the greatest of its parts
    assert both.up_to == (0, 0, 0, 8, 10, 19, 20, 20, 20)
    unknown = replace(SLOW, up_to=())
    assert together([FAST, unknown]).p95 == 0.4
    assert together([FAST, unknown]).in_buckets is None
    assert together([]).count == 0


def test_the_values_of_a_label_in_place_of_call_sites():
    def values(*names):
        return tuple(
            LabelStats("orders", "shop", n, 5, 1.0, FAST, FAST, 0, None, None, 0.0)
            for n in names
        )

    b = Board()
    at(b, 0, worker(1, labels=values("1", "2")), worker(2, labels=values("1")))
    view = named("sites")
    assert "L: by shop" in title(b, 160, view="sites")
    assert view.next_label(b)
    shown = selection(b, view="sites").shown
    assert [(r.label, r.stats.count) for r in shown] == [
        (("shop", "1"), 10),
        (("shop", "2"), 5),
    ]
    assert [row.oldest_s for row in shown] == [62.0, 121.0]
    assert "  by shop" in title(b, 160, view="sites")
    assert view.leads_to(b, shown[0]).filter == 'shop="1"'
    b.filter = parse("shop=2", known_fields(b))
    assert len(selection(b, view="sites").shown) == 1
    b.filter = parse("")
    view.next_label(b)
    assert selection(b, view="sites").shown[0].site == LINES[0]
    assert not view.next_label(fleet(1))


# -- processes ---------------------------------------------------------------------


def test_processes_say_how_they_answer():
    b = Board()
    one_server = (server_status(identity="7/1"),)
    workers = [worker(n, servers=one_server) for n in range(3)]
    other = process(pid=900, host="web-2", pools=(), servers=one_server)
    at(b, 0, *workers, other)
    at(
        b,
        8,
        *workers[:1],
        other,
        unreachable=(
            Unreachable(501, "it is alive and does not answer", alive=True),
            Unreachable(502, "it is stopped (state T) and does not answer", alive=True),
            Unreachable(7, "it is alive, its socket file is gone", alive=True),
            Unreachable(9, "it has ended", since="2026-01-01T09:03:24+00:00",
                        alive=False, name="old", host="web-1"),
        ),
    )  # fmt: skip
    answers = {row.pid: row.answers[0] for row in selection(b, view="processes").shown
               if hasattr(row, "pid")}  # fmt: skip
    assert answers[501] == "silent 8.0s"
    assert answers[502] == "stopped 8.0s"
    assert answers[7] == "socket gone"
    assert re.fullmatch(r"ended at \d\d:\d\d:24", answers[9])
    assert answers[500] == answers[900] == "0.0s"
    shown = [plain(line) for line in rows(b, 160, view="processes")]
    assert shown[-1].split()[:5] == ["·", "PostgreSQL", "18.4", "at", "db:5432"]
    assert "pools may open 12 of 100" in shown[-1]
    assert "9 old" in shown[-2]  # the ended one is no fault of the others
    assert "4/4" in shown[0]
    head = title(b, 160, view="processes")
    assert head.startswith("  PROCESSES 5 on 3 hosts, 1 ended  SERVERS 1 ")
    assert named("processes").count(b) == ("5", "bad")


def test_enter_shows_only_this_process_in_every_view():
    b = fleet(3)
    row = next(r for r in selection(b, view="processes").shown if r.pid == 501)
    drill = named("processes").leads_to(b, row)
    assert drill == ("holds", 'process="501 orders-api" host="web-1"', False)
    b.filter = parse(drill.filter, known_fields(b))
    assert b.filter.error is None
    b.tables["sites"] = TableState(merged=False)
    for view, count in (("holds", 4), ("waits", 1), ("sites", 6), ("processes", 1)):
        assert len(selection(b, view=view).shown) == count, view


def test_processes_of_one_name_are_merged():
    b = fleet(64)
    b.tables["processes"] = TableState(merged=True)
    first, server = map(plain, rows(b, 160, view="processes"))
    assert f"64 {TIMES}orders-api" in first
    assert "256/256" in first
    assert "PostgreSQL" in server
    row = selection(b, view="processes").shown[0]
    assert named("processes").leads_to(b, row).filter == 'app="orders-api" host="web-1"'


def test_a_server_that_is_down_comes_first():
    b = Board()
    down = server_status(address="a:1", down="refused", error="refused", silent_s=3.0)
    at(b, 0, worker(1, servers=(server_status("x", address="b:1"), down)))
    shown = [plain(line) for line in rows(b, 160, view="processes")]
    assert "a:1  DOWN 3.0s" in shown[1]
    assert "b:1" in shown[2]
    server = selection(b, view="processes").shown[1]
    assert "refused" in text(named("processes").pane(b, server, 120, 9))


# -- on the screen -----------------------------------------------------------------


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_64_workers_on_one_screen(size):
    source = FakeSource(snapshot(*map(worker, range(64))))
    app = Dashboard(source, refresh=60.0, clock=lambda: "12:00:00")
    async with app.run_test(size=size) as pilot:
        await until_async(lambda: app.board.last_good)
        await pilot.press("6")
        await until_async(lambda: "FINDINGS 5" in screen_text(app))
        assert screen_text(app).count(" 64 processes") >= 1
        assert "proof" in screen_text(app)
        await pilot.press("j", "enter")
        await until_async(lambda: 'filter finding="leaked' in screen_text(app))
        assert app.board.view == "holds"
        await pilot.press("escape")
        await until_async(lambda: "FINDINGS 5" in screen_text(app))
        await pilot.press("Y")
        assert "### " in app.clipboard
        await pilot.press("m")
        await until_async(lambda: "of 320" in screen_text(app))
        await pilot.press("5")
        await until_async(lambda: "SITES 4" in screen_text(app))
        assert "64 holds now" in screen_text(app)
        await pilot.press("L")
        await until_async(lambda: "no label yet" in screen_text(app))
        await pilot.press("7")
        await until_async(lambda: "PROCESSES 64" in screen_text(app))
        await pilot.press("L")
        await until_async(lambda: "press 5 first" in screen_text(app))
        await pilot.press("G")
        await until_async(lambda: "PostgreSQL at db:5432" in screen_text(app))
        await pilot.press("m")
        await until_async(lambda: f"64 {TIMES}orders-api" in screen_text(app))
        lines = screen_text(app).splitlines()
        assert {len(line) for line in lines} == {size[0]}
