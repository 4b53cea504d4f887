"""What the panels say, without a terminal."""

import os
from dataclasses import replace
from datetime import datetime

import pytest
from drawn import rows, selection, text, title
from fakes import (
    FakeSource,
    finding,
    frame,
    hold,
    pool,
    process,
    server_row,
    server_status,
    snapshot,
    times,
    wait,
)

from poolwatch.errors import NoProcessError, UnreachableError
from poolwatch.model import NO_SAMPLES, IncidentMark, SiteStats, Unreachable
from poolwatch.text.format import local_time, width
from poolwatch.tui.draw import sql
from poolwatch.tui.draw.line import length, plain, wrap
from poolwatch.tui.draw.source_lines import around
from poolwatch.tui.draw.stack import stack_lines
from poolwatch.tui.draw.table import TIMES
from poolwatch.tui.draw.time_bar import spent_line
from poolwatch.tui.panels import footer, header, pools, tabs
from poolwatch.tui.panels.detail import detail_lines, headline
from poolwatch.tui.panels.help import help_lines
from poolwatch.tui.polling import next_interval, read_source
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.filtering import parse
from poolwatch.tui.state.table_state import TableState
from poolwatch.tui.views import VIEWS, named

HOSTILE = "x' [/b] [red] \x1b]0;owned\x07\x1b[2J \x9b31m \u202e \ud800 漢字 " * 20
RAW = set(map(chr, [*range(32), *range(0x7F, 0xA0)])) | {"\u202e", "\ud800"}


def everything(board, cells):
    lines = [header.header(board, 101, "12:00:00", cells)]
    lines += header.why(board, 101, cells, 2)
    lines += pools.pool_lines(board, cells, 9)
    lines.append(tabs.tab_line(board, VIEWS, cells))
    for view in VIEWS:
        for view.state(board).merged in (False, True):
            lines += rows(board, cells, view=view.name)
            lines.append(view.title_line(board, cells))
            for row in view.state(board).rows:
                lines += view.pane(board, row, cells, 30)
    for row in board.rows.values():
        lines += [headline(row), *detail_lines(board, row, cells)]
    return lines


def hostile(**changes):
    row = server_row(HOSTILE, wait_event=HOSTILE, query=HOSTILE, blocked_by=(7,))
    site = frame(HOSTILE + ":12", HOSTILE)
    one = hold(
        thread=HOSTILE,
        task=HOSTILE,
        labels={HOSTILE: HOSTILE},
        site=site,
        caller=site,
        now=(site,),
        used=(site, site),
        unused_s=1.0,
        in_sql_s=0.1,
        in_transaction_idle_s=0.2,
        server=row,
        backend_pid=3,
        statement=HOSTILE,
        evidence=(HOSTILE,),
    )
    named = pool(name=HOSTILE, id="orders", url=HOSTILE, switched_off=True)
    found = finding(text=HOSTILE, proof=HOSTILE, remedy=HOSTILE, holds=("h1",))
    status = server_status(error=HOSTILE, version=HOSTILE, address=HOSTILE)
    asking = wait(task=HOSTILE, labels={"a": HOSTILE}, site=site)
    values = {"pools": (named,), "findings": (found,), "servers": (status,)}
    values |= {"left_out": (HOSTILE,), "frozen": (IncidentMark("x", HOSTILE, HOSTILE),)}
    whole = process(one, name=HOSTILE, host=HOSTILE, waits=(asking,), **values)
    return snapshot(whole, unreachable=(Unreachable(9, HOSTILE),), **changes)


@pytest.mark.parametrize("cells", [60, 80, 120, 160])
def test_hostile_text_is_neutral_on_every_panel(board, cells):
    lines = everything(board(hostile()), cells)
    assert not RAW & set(text(lines).replace("\n", ""))


@pytest.mark.parametrize("cells", [40, 60, 80, 100, 140, 160, 220])
def test_no_line_of_the_tables_is_wider_than_the_terminal(board, cells):
    b = board(hostile())
    for view in VIEWS:
        drawn, table = rows(b, cells, view=view.name), view.layout(b, cells)
        wide = 2 + sum(w + 2 for _, w in table.columns)
        assert {length(row) for row in drawn} <= {wide}
        assert wide <= cells
    assert rows(b, cells)
    assert length(header.header(b, 101, "12:00:00", cells)) <= cells
    assert all(length(line) <= cells - 2 for line in header.why(b, 101, cells, 2))


def test_a_finding_without_words_is_shown(board):
    b = board(snapshot(process(findings=(finding("newer.kind", text=" "),))))
    assert header.why(b, 101, 80, 3)


def test_columns_leave_by_rank(board):
    b = board(snapshot(process(hold())))
    shown = {
        w: [c.key for c, _ in named("holds").layout(b, w).columns]
        for w in (60, 80, 160)
    }
    assert shown[60] == ["verdict", "held", "holder", "call site"]
    assert {"state", "backend"} <= set(shown[80])
    assert {"statement", "wait event", "xact", "for"} <= set(shown[160])
    assert not {"pool", "process"} & set(shown[160])


def test_what_is_unknown_is_a_dash_and_not_a_zero(board):
    b = board(snapshot(process(hold(), servers=())))
    line = text(rows(b, 160))
    assert line.split()[-6:] == ["-"] * 6


def test_why_says_the_worst_first_and_healthy_in_plain_words(board):
    info = finding("undersized", severity="info", text="a little small")
    bad = finding("exhausted", text="is empty")
    sick = board(snapshot(process(hold(), findings=(info, bad))))
    assert "is empty" in text(header.why(sick, 101, 100, 2))
    assert "+1 more" in text(header.why(sick, 101, 100, 2))
    well = board(snapshot(process(hold())))
    assert "healthy" in text(header.why(well, 101, 100, 2))


def test_a_pool_without_a_server_view_says_why(board):
    status = server_status(error="connection refused", version=None)
    b = board(snapshot(process(hold(), servers=(status,))))
    assert "no server view of orders: connection refused" in text(
        pools.pool_lines(b, 100, 6)
    )


def test_silent_processes_are_told_once(board):
    """The first one by the WHY lines, the others below the pools."""
    lost = tuple(Unreachable(pid, "it does not answer in time") for pid in (77, 78))
    gone = board(snapshot(process(), unreachable=lost))
    assert "process 77 does not answer in time" in text(header.why(gone, 1.0, 100, 2))
    notes = text(pools.pool_lines(gone, 100, 6))
    assert "process 78 does not answer in time" in notes
    assert "process 77" not in notes


def test_waiters_show_the_longest_and_count_the_rest(board):
    asking = tuple(wait(f"w{n}", waited_s=n) for n in range(1, 9))
    b = board(snapshot(process(waits=asking)))
    (line,) = rows(b, 100, view="waits")
    assert f"{TIMES}8" in plain(line)
    assert "8.0s" in plain(line)
    named("waits").state(b).merged = False
    lines = rows(b, 100, view="waits")
    assert [plain(each).split()[0].lstrip("▌") for each in lines[1:3]] == [
        "7.0s",
        "6.0s",
    ]
    assert "WAITS 8" in title(b, 100, view="waits")
    assert rows(board(snapshot(process())), 100, view="waits") == []


def test_a_blocker_is_named_by_its_call_site(board):
    blocker = hold(
        "a",
        backend_pid=10,
        server=server_row(),
        site=frame("/srv/billing/export.py:88"),
    )
    blocked = hold("b", backend_pid=11, server=server_row(blocked_by=(10, 99)))
    b = board(snapshot(process(blocker, blocked)))
    row = next(row for row in b.rows.values() if row.hold.id == "b")
    shown = text(detail_lines(b, row, 80))
    assert "blocked by  billing/export.py:88 (active, pid 10)" in shown
    assert "and by      99" in shown


def test_library_frames_fold_but_never_the_call_site():
    site = frame("/app/.venv/lib/python3.12/site-packages/app/db.py:3")
    stack = (site, frame("/usr/lib/python3.12/threading.py:9"), frame("/app/x.py:1"))
    folded = text(stack_lines(stack, site, unfold=False))
    assert "app/db.py:3" in folded
    assert "1 library frame" in folded
    assert "threading.py" in text(stack_lines(stack, site, unfold=True))


def test_source_is_read_from_plain_files_only(tmp_path):
    here = tmp_path / "code.py"
    here.write_text("a = 1\nb = 2\n")
    assert around(str(here), 2, 1, 1) == [(1, "a = 1"), (2, "b = 2")]
    pipe = tmp_path / "pipe.py"
    os.mkfifo(pipe)
    for path in (
        str(pipe),
        "/dev/zero",
        "relative.py",
        "\0",
        "<string>",
        str(tmp_path),
    ):
        assert around(path, 1, 0, 0) == []


@pytest.mark.parametrize(
    "statement",
    ["select a, b from t where x = ?", HOSTILE, "(" * 1500, "x" * 1_000_000, "'", ""],
)
def test_any_statement_can_be_laid_out(statement):
    lines = sql.statement_lines(statement, 60)
    assert len(lines) <= 61
    assert not RAW & set(text(lines).replace("\n", ""))


def test_states():
    nobody = FakeSource(NoProcessError("no process in /run/x"))
    b = Board(empty_hint="call poolwatch.instrument(engine)")
    assert b.mode(100) == "starting"
    b.accept(read_source(nobody))
    assert b.mode(100) == "none"
    good = FakeSource(snapshot(process(hold())))
    b.accept(read_source(good))
    now = b.last.requested_at
    assert b.mode(now) == "live"
    assert b.mode(now + 60) == "stale"
    b.accept(read_source(FakeSource(UnreachableError("no answer"))))
    assert b.mode(now) == "failed"
    b.accept(read_source(nobody))
    assert b.mode(now) == "lost"
    assert len(b.rows) == 1
    b.accept(read_source(FakeSource(RuntimeError("boom"))))
    assert "boom" in b.error
    b.paused = True
    assert b.mode(now) == "paused"


def test_small_things():
    assert next_interval(1.0, faster=True) == 0.5
    assert next_interval(60.0, faster=False) == 60.0
    assert next_interval(0.25, faster=True) == 0.25
    assert all(width(line) <= 20 for line in wrap("漢字 " * 50 + "x" * 99, 20))
    assert "q" in plain(footer.footer("main", 40))
    for word in ("LEAKED", "ROOT n", "IDLE-TX", "xact"):
        assert word in text(help_lines(80))


def test_the_pool_in_need_is_shown_however_little_room_there_is(board):
    calm = [pool(f"calm{n}", checked_out=0) for n in range(9)]
    needy = pool("needy", checked_out=10, waiting=4)
    status = server_status(error="refused")
    b = board(snapshot(process(pools=(*calm, needy), servers=(status,))))
    for limit in (3, 6):
        lines = pools.pool_lines(b, 80, limit)
        assert len(lines) <= limit
        assert any("needy" in plain(line) for line in lines)


INNER = frame("/srv/app/billing/charge.py:12", "charge")
OUTER = frame("/srv/app/billing/views.py:40", "post")
TAKEN = (frame("/srv/app/billing/export.py:88", "export"), OUTER)


def told(board, **changes):
    changes.setdefault("site", TAKEN[0])
    b = board(snapshot(process(hold("a", stack=TAKEN, **changes))))
    (row,) = b.rows.values()
    return text(detail_lines(b, row, 100))


def test_the_detail_shows_where_it_was_checked_out_last_used_and_is_now(board):
    shown = told(
        board,
        used=(INNER, *TAKEN[1:]),
        unused_s=12.0,
        statement="select x from y",
        now=(frame("/srv/app/mail.py:7", "send"), *TAKEN),
    )
    checkout, used, now = (
        shown.index(title)
        for title in ("CHECKED OUT HERE", "LAST USED HERE", "NOW HERE")
    )
    assert checkout < used < now
    assert "LAST USED HERE  12s ago\n    select x from y\n" in shown
    assert "billing/charge.py:12" in shown[used:now]
    assert "same callers as above (1 frame)" in shown[used:now]
    assert "app/mail.py:7" in shown[now:]
    assert "same callers as above (2 frames)" in shown[now:]
    assert shown.count("billing/views.py:40") == 1


def test_a_stack_that_was_shown_is_not_shown_again(board):
    shown = told(board, used=TAKEN, unused_s=0.0, now=TAKEN)
    assert "LAST USED HERE  running now  where it was checked out" in shown
    assert "NOW HERE  where it was checked out" in shown
    shown = told(board, used=(INNER,), unused_s=1.0, now=(INNER,))
    assert "NOW HERE  where it was last used" in shown
    assert "LAST USED HERE  no statement yet" in told(board)


def test_the_time_of_a_hold_is_divided(board):
    values = {"held_s": 40.0, "in_sql_s": 1.0, "in_transaction_idle_s": 29.0}
    for cells in (56, 64, 100):
        line = spent_line(hold(**values), cells)
        assert length(line) <= cells
        for word in ("in SQL 1.0s", "idle in tx 29s", "outside 10s"):
            assert word in plain(line)
    assert "idle in tx 29s 72%" in plain(line)
    bar = plain(line).split("▏")[1]
    assert 0 < bar.count("█") < bar.count("░") < bar.count("▓")
    narrow = spent_line(hold(**values), 44)
    assert plain(narrow) == "█ SQL 1.0s  ▓ idle-tx 29s  ░ rest 10s"
    assert spent_line(hold(), 100) is None
    assert spent_line(hold(held_s=0.0, in_sql_s=0.0), 100) is None
    assert "other 3.0s" in plain(spent_line(hold(held_s=4.0, in_sql_s=1.0), 100))
    assert "outside 10s" in told(board, **values)
    assert "in SQL" not in told(board)


@pytest.mark.parametrize(
    ("out", "lost", "limit", "waiting", "level"),
    [
        (1, 1, 1, 0, "warn"),
        (0, 2, 0, 0, "bad"),
        (2, 0, 2, 0, "warn"),
        (2, 0, 2, 1, "bad"),
    ],
    ids=str,
)
def test_a_pool_with_nothing_left_to_lend_is_drawn_full(
    board, out, lost, limit, waiting, level
):
    """Lost slots count against its size; it is red only while somebody waits."""
    counts = {"checked_out": out, "lost_slots": lost, "waiting": waiting}
    stats = pool(size=2, max_overflow=0, **counts)
    _, line = pools.pool_lines(board(snapshot(process(pools=(stats,)))), 160, 6)[:2]
    track = [run for run in line if run[0][:1] in "━╸─╌" and run[0]]
    assert f" {out}/{limit} " in plain(line)
    assert [(set(text.rstrip()), ink) for text, ink in track] == [({"━"}, level)]


def test_the_gauge_of_a_pool_with_lost_slots_stays_in_its_column(board):
    stats = pool(size=5, max_overflow=0, checked_out=1, idle=0, lost_slots=3)
    whole = pool(size=2, max_overflow=0, checked_out=1, idle=0)
    drawn = [
        plain(pools.pool_lines(board(snapshot(process(pools=(each,)))), 120, 6)[1])
        for each in (stats, whole)
    ]
    assert drawn[0] == drawn[1]


def test_a_pool_shows_average_and_cancelled_waits(board):
    b = board(snapshot(process(pools=(pool(waiting_s_per_s=2.4, gave_up=3),))))
    titles, line = (plain(each) for each in pools.pool_lines(b, 160, 6)[:2])
    assert "1m avg" in titles
    assert " 2.4 " in line
    assert line[: titles.index("cancelled") + 9].endswith(" 3")
    assert " 2.4 " in plain(pools.pool_lines(b, 80, 6)[1])
    few = board(snapshot(process(pools=(pool(waiting_s_per_s=0.04),))))
    assert " 0.04 " in plain(pools.pool_lines(few, 80, 6)[1])
    calm = board(snapshot(process(pools=(pool(waiting_s_per_s=0.005),))))
    assert "s/s" not in plain(pools.pool_lines(calm, 160, 6)[1])


@pytest.mark.parametrize("cells", [80, 160])
def test_what_is_not_recorded_is_said_loudly(board, cells):
    b = board(snapshot(process(pools=(pool(switched_off=True),))))
    lines = pools.pool_lines(b, cells, 6)
    assert "■ pool orders: nothing is recorded: a hook" in plain(lines[2])
    assert lines[2][0][1] == "bad"
    why = text(header.why(b, 101, cells, 2))
    assert "healthy" not in why
    assert "1 pool no longer recorded" in why


def test_incident_snapshots_and_what_was_left_out_are_named(board):
    now = datetime.now().astimezone().replace(hour=3, minute=12, second=44)
    marks = (
        IncidentMark("orders", "timeout", "2026-01-01T03:10:00+00:00"),
        IncidentMark("orders", "exhausted", now.isoformat()),
        IncidentMark("gone", "pool_deadlock", "\x1b[2J"),
    )
    gone = hold(held_s=40.0, verdict="long")
    one = process(gone, frozen=marks, left_out=("who keeps h1 alive",))
    shown = text(pools.pool_lines(board(snapshot(one)), 160, 9))
    assert "orders exhausted 03:12:44" in shown
    assert f"orders timed out {local_time(marks[0].at)}" in shown
    assert "leak search incomplete: who keeps h1 alive" in shown
    for cells in (60, 80, 160):
        shown = pools.pool_lines(board(snapshot(one)), cells, 9)
        assert any(plain(line).endswith("z shows them") for line in shown)
        assert all(length(line) <= cells for line in shown)
        assert not RAW & set(text(shown).replace("\n", ""))


def site(place="/srv/app/pay.py:9", **changes):
    values = {"pool": "orders", "site": frame(place), "count": 4, "leaked": 0}
    values |= {"connections": 1.0, "hold_s": times(2.0), "wait_s": NO_SAMPLES}
    return SiteStats(**{**values, **changes})


def site_lines(b, cells):
    return [plain(line) for line in rows(b, cells, view="sites")]


def site_titles(b, cells):
    return plain(named("sites").layout(b, cells).titles())


def test_call_sites_come_by_what_they_keep(board):
    few = site("/srv/app/few.py:1", connections=0.2)
    many = site(
        connections=3.14159,
        in_sql_s=times(2.0).sum / 4,
        in_transaction_idle_s=times(2.0).sum / 2,
        wait_caused_s=75.0,
        leaked=2,
    )
    b = board(snapshot(process(sites=(few, many))))
    assert [each.stats for each in selection(b, view="sites").shown] == [many, few]
    titles = site_titles(b, 160).split()
    first, second = site_lines(b, 160)
    for word in ("app/pay.py:9", "3.14", "1m15s", "25%", "50%", "~1 s", "2 s"):
        assert word in first
    assert {"SQL", "idle-tx", "caused", "leaked", "p50", "p95", "max"} <= set(titles)
    assert second.split()[-3:] == ["-", "-", "0"]
    narrow = site_titles(b, 80).split()
    assert {"p95", "caused", "SQL", "idle-tx", "leaked"} <= set(narrow)


@pytest.mark.parametrize("cells", [30, 60, 80, 120, 160, 220])
def test_call_sites_fit_and_are_neutral(board, cells):
    odd = SiteStats(
        HOSTILE, frame(HOSTILE + ":1", HOSTILE), 0, 0.0, NO_SAMPLES, NO_SAMPLES, 0
    )
    one = process(sites=(odd, site()), name=HOSTILE)
    called = (replace(odd, caller=odd.site), replace(odd, caller=None))
    one = replace(one, callers=called)
    b = board(snapshot(one, process(sites=(site(),), pid=2)))
    b.tables["sites"] = TableState(merged=False)
    found = selection(b, view="sites").shown
    assert len(found) == 5
    table = named("sites").layout(b, cells)
    lines = [table.titles(), *map(table.line, found)]
    assert len({length(line) for line in lines}) == 1
    assert length(lines[0]) <= cells
    assert not RAW & set(text(lines).replace("\n", ""))


CALLER = frame("/srv/app/orders/views.py:12", "checkout")


@pytest.mark.parametrize("cells", [80, 120, 200])
def test_the_caller_stands_beside_a_call_site_that_is_shared(board, cells):
    b = board(snapshot(process(hold(caller=CALLER), waits=(wait(caller=CALLER),))))
    holds, asking = (text(rows(b, cells, view=view)) for view in ("holds", "waits"))
    for shown, line in ((holds, 55), (asking, 101)):
        assert f":{line} " in shown
        assert ":12" in shown
    (row,) = b.rows.values()
    assert "repo.py:55 from orders/views.py:12" in plain(headline(row))
    shown = text(detail_lines(b, row, cells))
    assert "from      /srv/app/orders/views.py:12 in" in shown


def test_callers_stand_below_their_call_site(board):
    shared, other = site(connections=2.0), site("/srv/app/x.py:1", connections=1.0)
    callers = (
        site(caller=CALLER, connections=0.5),
        site(caller=None, connections=1.5),
        site("/srv/app/x.py:1", pool="another", caller=CALLER),
    )
    one = process(sites=(other, shared), callers=callers)
    lines = site_lines(board(snapshot(one)), 160)
    shown = [line[:30].lstrip("▌ ") for line in lines]
    assert [name.split("  ")[0] for name in shown] == [
        "app/pay.py:9",
        "from a library",
        "from orders/views.py:12",
        "app/x.py:1",
    ]


def test_a_filter_finds_the_caller(board):
    b = board(snapshot(process(hold("h1", caller=CALLER), hold("h2"))))
    b.filter = parse("orders/views")
    assert [row.first.hold.id for row in selection(b).shown] == ["h1"]


def test_pools_of_one_name_are_told_apart(board):
    alike = [pool("main", id=d, url=f"postgresql://db/{d}") for d in ("a", "b")]
    shown = text(pools.pool_lines(board(snapshot(process(pools=alike))), 120, 9))
    assert "main (a)" in shown
    assert "main (b)" in shown


def test_a_server_view_of_a_pool_that_is_gone_is_no_news(board):
    status = server_status(pools=("p9",), error="the engine is gone")
    shown = text(pools.pool_lines(board(snapshot(process(servers=(status,)))), 120, 9))
    assert "no server view" not in shown
