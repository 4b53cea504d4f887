"""The panes and pages of a hold and a wait, and what they give to an issue."""

from __future__ import annotations

from dataclasses import replace

import pytest
from drawn import rows, selection, text, title
from fakes import (
    finding,
    frame,
    hold,
    pool,
    process,
    server_row,
    snapshot,
    times,
    wait,
)

from poolwatch.model import NO_SAMPLES, SiteStats
from poolwatch.tui.draw.line import plain
from poolwatch.tui.panels import pools
from poolwatch.tui.panels.detail import detail_lines, pane_lines, statement_of
from poolwatch.tui.panels.issue import hold_issue, wait_issue
from poolwatch.tui.polling import Reading
from poolwatch.tui.state.filtering import parse
from poolwatch.tui.views import named
from poolwatch.tui.views.view import Detail, Drill

SOURCE = """\
def export_invoice(id):
    engine = billing_engine()
    with engine.begin() as connection:
        connection.execute(mark_sent)
        requests.post(TAX_OFFICE, data=invoice.xml())
        log.info("sent")
"""


@pytest.fixture
def export(tmp_path):
    """``export(line)``: a frame of a file with SOURCE."""
    file = tmp_path / "billing" / "export.py"
    file.parent.mkdir()
    file.write_text(SOURCE)
    return lambda line: frame(f"{file}:{line}", "export_invoice")


def exported(export, **changes):
    values = {"site": export(3), "stack": (export(3),), "now": (export(5),)}
    values |= {"statement": "UPDATE invoice SET sent = ?", "held_s": 176.0}
    return hold("h1", **(values | changes))


def only(board):
    (row,) = board.rows.values()
    return row


def test_at_80_columns_the_pane_has_the_two_lines_of_source(board, export):
    b = board(snapshot(process(exported(export))))
    lines = text(pane_lines(b, only(b), 80, 5)).splitlines()
    assert "held 2m56s   billing/export.py:3" in lines[0]
    assert lines[1:4] == [
        "    → 3  with engine.begin() as connection:",
        "  now 5  requests.post(TAX_OFFICE, data=invoice.xml())",
        "  UPDATE invoice SET sent = ?",
    ]


def test_a_wide_pane_has_the_source_side_by_side_and_then_why(board, export):
    found = finding("held_across_io", text="it waits", holds=("h1",))
    b = board(snapshot(process(exported(export), findings=(found,))))
    lines = [plain(line) for line in pane_lines(b, only(b), 160, 12)]
    assert "CHECKED OUT HERE  billing/export.py:3" in lines[2]
    assert "NOW HERE  billing/export.py:5" in lines[2]
    (taken,) = [line for line in lines if "→    3  " in line]
    assert "with engine.begin() as connection:" in taken
    (now,) = [line for line in lines if "→    5  " in line]
    assert now.rindex("→") == lines[2].index("NOW HERE") + 2
    why = lines.index("  ■ it waits")
    assert why > max(lines.index(taken), lines.index(now))
    assert "UPDATE invoice SET sent = ?" in text(pane_lines(b, only(b), 160, 12))
    assert len(lines) <= 12


@pytest.mark.parametrize(("year", "is_said"), [(2000, True), (2999, False)])
def test_a_file_that_is_newer_than_the_process(board, export, year, is_said):
    """The lines on the screen may not be those that run."""
    shown = process(exported(export), started_at=f"{year}-01-01T00:00:00+00:00")
    b = board(snapshot(shown))
    for lines in (pane_lines(b, only(b), 160, 12), detail_lines(b, only(b), 80)):
        assert ("file changed since" in text(lines)) == is_said


def test_a_page_says_the_full_path_and_nothing_twice(board, export):
    evidence = ("held 176 s", "kept alive by a global")
    found = finding(holds=("h1",), proof="held 176 s", remedy="commit before it")
    one = exported(export, evidence=evidence)
    b = board(snapshot(process(one, findings=(found,))))
    for cells in (80, 120, 160):
        shown = text(detail_lines(b, only(b), cells))
        assert "export.py:3" in shown
        assert shown.count("held 176 s") == 1
        assert shown.count("commit before it") == 1
        assert shown.count("kept alive by a global") == 1
        order = [shown.index(w) for w in ("CHECKED OUT HERE", "WHY", "APPLICATION")]
        assert order == sorted(order)
    b = board(snapshot(process(hold())))
    assert "call site /srv/app/orders/repo.py:55 in load" in text(
        detail_lines(b, only(b), 120)
    )


def test_a_hold_that_has_ended_runs_nothing_now(board, export):
    one = exported(export, used=(export(4),), unused_s=0.0)
    b = board(snapshot(process(one)), snapshot(process()))
    b2 = board(snapshot(process(one)))
    row = only(b2)
    assert "running now" in text(detail_lines(b2, row, 100))
    shown = text(detail_lines(b, row, 100))
    assert "was running" in shown
    assert "LAST SEEN HERE" in shown
    assert "now" not in shown.casefold()


WHOLE = "SELECT " + ", ".join(f"c{n} AS a{n}" for n in range(200)) + " WHERE x = %(x)s"


@pytest.mark.parametrize(
    ("query", "own", "shown"),
    [
        (WHOLE[:1000], WHOLE, WHOLE),
        ("UPDATE t SET a = ?", "UPDATE t SET a = %(a)s WHERE b = %(b)s", 1),
        ("SELECT ? FROM t", "SELECT %s\n  FROM t WHERE a", 1),
        ("COMMIT", WHOLE, 0),
        ("SELECT 1 FROM longer", "SELECT 1", 0),
        (None, "SELECT 1", 1),
        ("SELECT 1", None, 0),
    ],
)
def test_the_longer_statement_where_one_begins_with_the_other(query, own, shown):
    server = server_row(query=query) if query else None
    text = statement_of(hold(server=server, statement=own))
    assert text == {0: query, 1: own}.get(shown, shown)


def test_a_statement_that_the_server_has_cut_says_so(board):
    cut = ("SELECT " + "a, " * 400)[:1023]
    b = board(snapshot(process(hold(server=server_row(query=cut), backend_pid=1))))
    assert "cut by the server at 1,024 bytes" in " ".join(
        text(detail_lines(b, only(b), 80)).split()
    )


def test_how_long_a_line_usually_holds(board):
    stats = SiteStats(
        "orders", hold().site, 50, 1.0, times(0.8), NO_SAMPLES, 0
    )  # fmt: skip
    b = board(snapshot(process(hold(held_s=9.0), sites=(stats,))))
    assert "held 9.0s (usual ~800 ms)" in text(pane_lines(b, only(b), 160, 12))
    assert "shorter than ~800 ms" in " ".join(
        text(detail_lines(b, only(b), 160)).split()
    )


# -- short holds --------------------------------------------------------------------


def crowd(count, **changes):
    short = [hold(f"s{n}", held_s=0.01 * n) for n in range(count)]
    return snapshot(process(hold("old", held_s=5.0), *short, **changes))


def shown(board):
    return [row.key if row.key == "young" else row.key[1] for row in board]


def test_many_short_holds_are_one_row(board):
    b = board(crowd(30))
    assert shown(selection(b).shown) == ["old", "young"]
    assert "· 30 holds younger than 1 s  (a shows them)" in text(rows(b, 80))
    assert title(b, 80).startswith("  HOLDS 31 ")
    folded = selection(b).shown[1]
    assert named("holds").leads_to(b, folded) == Drill(
        "holds", "verdict:ok held:<1s", each=True
    )
    assert named("holds").pane(b, folded, 80, 9) == []
    assert named("holds").place(folded) is None
    b.tables["holds"].show_all = True
    assert len(selection(b).shown) == 31


def test_few_short_holds_and_those_that_are_asked_for_are_rows(board):
    b = board(crowd(10))
    assert len(selection(b).shown) == 11
    b = board(crowd(30))
    b.filter = parse("verdict:ok")
    assert len(selection(b).shown) == 31
    b.filter = parse("")
    named("holds").state(b).sort = "held"
    assert len(selection(b).shown) == 31


def test_the_selected_hold_is_not_folded_away(board):
    b = board(crowd(8))
    selection(b).move(3)
    key = selection(b).key
    b.accept(Reading(101.0, crowd(30)))
    assert selection(b).key == key
    assert len(selection(b).shown) == 3
    b.accept(Reading(102.0, crowd(5)))
    assert "young" not in shown(selection(b, 102.0).shown)


def test_the_row_of_short_holds_leaves_no_tombstone(board):
    b = board(crowd(30))
    selection(b).move(1)
    b.accept(Reading(101.0, crowd(0)))
    assert shown(selection(b).shown) == ["old"]


def test_a_tombstone_matches_the_filter(board):
    two = [hold("a", verdict="leaked"), hold("b", held_s=0.5)]
    for word, left in (("leaked", ["a"]), ("", ["a", "b"]), ("verdict:ok", ["b"])):
        b = board(snapshot(process(*two)))
        at = [row.key[1] for row in selection(b).shown].index("b")
        selection(b).move(at)
        b.accept(Reading(101.0, snapshot(process(two[0]))))
        b.filter = parse(word)
        assert shown(selection(b).shown) == left


def test_the_threshold_is_told(board):
    one, other = pool(long_after_s=2.0), pool("audit", long_after_s=30.0)
    b = board(snapshot(process(hold(), pools=(one,))))
    assert "long = over 2.0s here" in title(b, 80)
    b = board(snapshot(process(hold(), pools=(one, other))))
    assert "long = over 2.0s or 30s here" in title(b, 80)


def test_leaks_that_are_out_and_leaks_that_came_back(board):
    counted = pool(counters=pool().counters.__class__(
        checkouts=9, checkins=2, timeouts=0, connects=0, closes=0, invalidated=0,
        collected=3, leaked=7,
    ))  # fmt: skip
    leaks = [hold(f"h{n}", verdict="leaked", held_s=n) for n in range(4)]
    b = board(snapshot(process(*leaks, pools=(counted,))))
    titles, line = (plain(each) for each in pools.pool_lines(b, 160, 6)[:2])
    assert line[: titles.index("leaked") + 6].endswith(" 4+3")
    assert line[: titles.index("oldest") + 6].endswith(" 3.0s")
    assert "last 30s" in titles


# -- waits --------------------------------------------------------------------------


def crowded(**changes):
    holds = [hold(f"h{n}", held_s=17.0 - n) for n in range(6)]
    leak = hold("z", verdict="leaked", site=frame("/srv/app/exh.py:9"))
    waits = [wait(f"w{n}", waited_s=9.0 - n) for n in range(3)]
    found = finding(text="it is empty", waits=("w0", "w1", "w2"))
    return snapshot(
        process(*holds, leak, waits=tuple(waits), findings=(found,), **changes)
    )


@pytest.mark.parametrize(("cells", "height"), [(80, 5), (160, 12)])
def test_the_pane_of_waits_says_who_holds_the_pool(board, cells, height):
    b = board(crowded())
    selection(b, view="waits")
    (row,) = selection(b, view="waits").shown
    pane = named("waits").pane(b, row, cells, height)
    shown = text(pane)
    assert len(pane) <= height
    assert "waits for 9.0s of 30s   pay/service.py:101   3 requests" in shown
    assert "WHO HOLDS pool orders  7 of 10 out" in shown
    assert "6  orders/repo.py:55  longest 17s" in shown
    assert "1  app/exh.py:9  longest 1.0s  ■ LEAKED" in shown
    assert isinstance(named("waits").leads_to(b, row), Drill)


def test_a_wait_has_a_page(board):
    b = board(crowded())
    named("waits").state(b).merged = False
    rows = selection(b, view="waits").shown
    assert len(rows) == 3
    target = named("waits").leads_to(b, rows[0])
    assert isinstance(target, Detail)
    assert target.row.key == rows[0].key
    assert "it is empty" in wait_issue(b, rows[0])


# -- the issue ----------------------------------------------------------------------


def test_an_issue_says_what_the_screen_says(board, export):
    found = finding(
        "leaked.orphaned", text="it is <leaked>", holds=("h1",), remedy="use with"
    )
    secret = "postgresql://web:hunter2@db/orders"
    one = exported(
        export,
        verdict="leaked",
        evidence=("its thread has ended",),
        labels={"endpoint": "/pay"},
        statement="SELECT '```' FROM t",
    )
    b = board(snapshot(process(one, findings=(found,), pools=(pool(url=secret),))))
    text = hold_issue(b, only(b))
    assert text.startswith(
        "### LEAKED: billing/export.py:3 holds a connection of orders"
    )
    for words in (
        f"`{export(3).file}:3 in export_invoice`",
        "orders-api pid 8812 on web-1",
        "- evidence: `its thread has ended`",
        "endpoint=/pay",
        "it is \\<leaked\\>",
        "- remedy: use with",
        "````sql\nSELECT '```' FROM t\n````",
        "<details><summary>Checked out here</summary>",
    ):
        assert words in text
    assert "hunter2" not in text
    waiting = board(crowded())
    (row,) = selection(waiting, view="waits").shown
    text = wait_issue(waiting, row)
    assert text.startswith("### 3 requests for a connection of orders, the longest for")
    assert "app/exh.py:9" in text
    assert "/srv/app/pay/service.py:101 in pay" in text


def test_of_an_adopted_hold_it_says_what_is_known_and_never_an_age(board, export):
    line = export(5)
    adopted = exported(export, site=None, stack=(), held_s=None, waited_s=None)
    adopted = replace(
        adopted, thread=None, adopted_s=40.0, user="used by worker-1", used_at=line
    )
    waiting = wait("w1", waited_s=None, adopted_s=12.0)
    b = board(snapshot(process(adopted, waits=(waiting,))))
    shown = [text(rows(b, cells)) for cells in (80, 160)]
    shown.append(text(detail_lines(b, only(b), 100)))
    for each in shown:
        assert ">40s" in each
        assert "used by" in each
        assert "export.py:5" in each
    assert "it was out when poolwatch attached" in shown[-1]
    assert "for >40s" in hold_issue(b, only(b))
    assert ">12s" in text(rows(b, 100, view="waits"))
    assert text(pane_lines(b, only(b), 160, 12))
