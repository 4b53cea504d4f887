"""What the panels say, without a terminal."""

import os

import pytest
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
    wait,
)

from poolwatch.errors import NoProcessError, UnreachableError
from poolwatch.model import Unreachable
from poolwatch.text import width
from poolwatch.tui import footer, header, holders, pools, sql, waiters
from poolwatch.tui.board import Board
from poolwatch.tui.detail import detail_lines, headline
from poolwatch.tui.help import help_lines
from poolwatch.tui.ink import length, plain, wrap
from poolwatch.tui.poller import look, stepped
from poolwatch.tui.source_lines import around
from poolwatch.tui.stack import stack_lines

HOSTILE = "x' [/b] [red] \x1b]0;owned\x07\x1b[2J \x9b31m \u202e \ud800 漢字 " * 20
RAW = set(map(chr, [*range(32), *range(0x7F, 0xA0)])) | {"\u202e", "\ud800"}


def text(lines):
    return "\n".join(plain(line) for line in lines)


def everything(board, cells):
    columns = holders.layout(board, cells)
    lines = [header.header(board, 101, "12:00:00", cells)]
    lines += header.why(board, 101, cells, 2)
    lines += pools.pool_lines(board, cells, 9)
    lines += holders.title_lines(board, columns, cells)
    lines += holders.row_lines(board, columns, cells, dim=False)
    lines += waiters.waiter_lines(board, cells, 9, dim=False)
    for row in board.rows.values():
        lines += [headline(row, gone=False), *detail_lines(board, row, cells)]
    return lines


def hostile(**changes):
    row = server_row(HOSTILE, wait_event=HOSTILE, query=HOSTILE, blocked_by=(7,))
    site = frame(HOSTILE + ":12", HOSTILE)
    one = hold(
        thread=HOSTILE,
        task=HOSTILE,
        labels={HOSTILE: HOSTILE},
        site=site,
        now=(site,),
        server=row,
        backend_pid=3,
        statement=HOSTILE,
        evidence=(HOSTILE,),
    )
    named = pool(name=HOSTILE, id="orders", url=HOSTILE)
    found = finding(text=HOSTILE, proof=HOSTILE, remedy=HOSTILE, holds=("h1",))
    status = server_status(error=HOSTILE, version=HOSTILE, address=HOSTILE)
    asking = wait(task=HOSTILE, labels={"a": HOSTILE}, site=site)
    values = {"pools": (named,), "findings": (found,), "servers": (status,)}
    whole = process(one, name=HOSTILE, host=HOSTILE, waits=(asking,), **values)
    return snapshot(whole, unreachable=(Unreachable(9, HOSTILE),), **changes)


@pytest.mark.parametrize("cells", [60, 80, 120, 160])
def test_hostile_text_is_neutral_on_every_panel(board, cells):
    lines = everything(board(hostile()), cells)
    assert not RAW & set(text(lines).replace("\n", ""))


@pytest.mark.parametrize("cells", [40, 60, 80, 100, 140, 160, 220])
def test_no_line_of_the_tables_is_wider_than_the_terminal(board, cells):
    b = board(hostile())
    columns = holders.layout(b, cells)
    rows = holders.row_lines(b, columns, cells, dim=False)
    assert {length(row) for row in rows} == {2 + sum(w + 2 for _, w in columns)}
    assert length(rows[0]) <= cells
    assert length(header.header(b, 101, "12:00:00", cells)) <= cells
    assert all(length(line) <= cells - 2 for line in header.why(b, 101, cells, 2))


def test_columns_leave_by_rank(board):
    b = board(snapshot(process(hold())))
    shown = {w: [c.key for c, _ in holders.layout(b, w)] for w in (60, 80, 160)}
    assert shown[60] == ["verdict", "held", "holder", "site"]
    assert {"state", "pid"} <= set(shown[80])
    assert {"statement", "wait", "xact", "age"} <= set(shown[160])
    assert not {"pool", "process"} & set(shown[160])


def test_what_is_unknown_is_a_dash_and_not_a_zero(board):
    b = board(snapshot(process(hold(), servers=())))
    line = text(holders.row_lines(b, holders.layout(b, 160), 160, dim=False))
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
    gone = board(snapshot(process(), unreachable=(Unreachable(77, "timed out"),)))
    assert "process 77 gives no answer: timed out" in text(
        pools.pool_lines(gone, 100, 6)
    )


def test_waiters_show_the_longest_and_count_the_rest(board):
    asking = tuple(wait(f"w{n}", waited_s=n) for n in range(1, 9))
    b = board(snapshot(process(waits=asking)))
    lines = waiters.waiter_lines(b, 100, 4, dim=False)
    assert "8.0s" in plain(lines[1])
    assert "5 more" in plain(lines[0])
    assert waiters.waiter_lines(board(snapshot(process())), 100, 4, dim=False) == []


def test_a_blocker_is_named_by_its_call_site(board):
    blocker = hold(
        "a",
        backend_pid=10,
        server=server_row(),
        site=frame("/srv/billing/export.py:88"),
    )
    blocked = hold("b", backend_pid=11, server=server_row(blocked_by=(10, 99)))
    b = board(snapshot(process(blocker, blocked)))
    shown = text(detail_lines(b, b.rows[8812, "b"], 80))
    assert "10  billing/export.py:88" in shown
    assert "99  not ours" in shown


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
    b.take(look(nobody), 100)
    assert b.mode(100) == "none"
    good = FakeSource(snapshot(process(hold())))
    b.take(look(good), 100)
    now = b.last.asked_at
    assert b.mode(now) == "live"
    assert b.mode(now + 60) == "stale"
    b.take(look(FakeSource(UnreachableError("no answer"))), now)
    assert b.mode(now) == "failed"
    b.take(look(nobody), now)
    assert b.mode(now) == "lost"
    assert len(b.rows) == 1
    b.take(look(FakeSource(RuntimeError("boom"))), now)
    assert "boom" in b.error
    b.paused = True
    assert b.mode(now) == "paused"


def test_small_things():
    assert stepped(1.0, faster=True) == 0.5
    assert stepped(60.0, faster=False) == 60.0
    assert stepped(0.25, faster=True) == 0.25
    assert all(width(line) <= 20 for line in wrap("漢字 " * 50 + "x" * 99, 20))
    assert "q" in plain(footer.footer(footer.MAIN, 40))
    for word in ("LEAKED", "BLOCKS", "IDLE-TX", "xact"):
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
