import re
from dataclasses import replace

import pytest
from drawn import rows, selection, text
from fakes import finding, hold, process, server_status, snapshot

from poolwatch.model import Unreachable
from poolwatch.tui.draw.line import plain
from poolwatch.tui.panels import header
from poolwatch.tui.polling import Reading
from poolwatch.tui.state.filtering import parse
from poolwatch.tui.state.rows import process_key


def ids(board, now=101.0):
    return [row.key[1] for row in selection(board, now).shown]


def data(*holds):
    return snapshot(process(*holds))


def select(board, name):
    at = ids(board).index(name)
    selection(board).move(at)


def test_the_selection_follows_its_hold_when_the_order_changes(board):
    b = board(data(hold("a", held_s=9), hold("b", held_s=5), hold("c", held_s=1)))
    select(b, "b")
    b.accept(
        _reading(
            data(hold("a"), hold("b", held_s=5), hold("c", held_s=1, verdict="leaked"))
        )
    )
    assert ids(b) == ["c", "b", "a"]
    assert selection(b).key[:3] == (8812, "b", "web-1")
    assert selection(b).at == 1


def test_a_returned_hold_leaves_a_tombstone_and_then_its_neighbour(board):
    b = board(data(hold("a", held_s=9), hold("b", held_s=5), hold("c", held_s=1)))
    select(b, "b")
    left = data(hold("a", held_s=9), hold("c", held_s=1))
    b.accept(_reading(left))
    assert ids(b) == ["a", "b", "c"]
    assert selection(b).gone_at == 101
    assert selection(b, 103.5).key[:3] == (8812, "b", "web-1")
    assert ids(b, 104.5) == ["a", "c"]
    assert selection(b, 104.5).key[:3] == (8812, "c", "web-1")


def test_moving_away_from_a_tombstone_selects_what_the_eye_sees(board):
    for step, name in ((1, "c"), (-1, "a")):
        b = board(data(hold("a", held_s=9), hold("b", held_s=5), hold("c", held_s=1)))
        select(b, "b")
        b.accept(_reading(data(hold("a", held_s=9), hold("c", held_s=1))))
        table = selection(b)
        table.move(table.at + step)
        assert table.key[:3] == (8812, name, "web-1")
        assert ids(b) == ["a", "c"]


def test_a_hold_that_is_only_filtered_out_leaves_no_tombstone(board):
    b = board(data(hold("a", held_s=9), hold("b", held_s=5, task="x")))
    select(b, "b")
    b.filter = parse("!task:x")
    assert ids(b) == ["a"]
    assert b.tables["holds"].hidden == 1
    assert selection(b).key[:3] == (8812, "a", "web-1")


def test_the_last_hold_may_go(board):
    b = board(data(hold("a")))
    select(b, "a")
    b.accept(_reading(data()))
    assert ids(b) == ["a"]
    assert ids(b, 200) == []
    assert selection(b, 200).key is None


def test_the_same_hold_id_in_two_processes_is_two_holds(board):
    two = snapshot(process(hold("h1"), pid=1), process(hold("h1"), pid=2))
    b = board(two)
    assert len(b.rows) == 2


def _reading(snap):
    return Reading(101.0, snap)


# -- processes that are silent, and processes that have ended -----------------------

SILENT = Unreachable(2, "it is stopped (state T) and does not answer", None, True)
ENDED = Unreachable(2, "it has ended", "2026-01-01T12:00:00+00:00", False)


def two():
    """Process 1 with one hold and process 2 with two of them, the worst selected."""
    return snapshot(
        process(hold("a", held_s=1), pid=1, name="orders"),
        process(
            hold("b", held_s=5, verdict="leaked"),
            hold("c", held_s=2),
            pid=2,
            name="billing",
            findings=(finding("leaked.orphaned", text="took 1", holds=("b",)),),
        ),
    )


def one(*unreachable, holds=("a",)):
    first = process(*map(hold, holds), pid=1, name="orders")
    return snapshot(first, unreachable=unreachable)


def top(board, now):
    lines = [
        header.header(board, now, "12:00:00", 160),
        *header.why(board, now, 160, 2),
    ]
    return text(lines)


def key_of(pid):
    return process_key(process(pid=pid))


def drawn(board, now=101.0):
    return [plain(line) for line in rows(board, 160, now=now)]


def take(board, snap, at):
    board.accept(Reading(at, snap))
    selection(board, at)


def test_a_silent_process_stays_as_it_was_last_seen(board):
    b = board(two())
    select(b, "b")
    for at in (101.0, 105.0, 160.0):
        take(b, one(SILENT), at)
        assert ids(b) == ["b", "a", "c"] or ids(b) == ["b", "c", "a"]
        assert selection(b).key[:3] == (2, "b", "web-1")
        assert selection(b).gone_at is None
        assert b.mode(at) == "live"
        assert b.age(at) == 0.0
        assert b.last_seen(key_of(2), at) == at - 100.0
        assert b.last_seen(key_of(1), at) is None
    said = top(b, 160.0)
    assert "■ billing 2 is stopped (state T) and has not answered for 1m00s" in said
    assert "+1 more" in said
    assert "SIGCONT" in said
    assert "apps 1/2" in said
    assert "healthy" not in said
    rows = [line for line in drawn(b) if "LEAKED" in line or " c " in line]
    assert all("1m00s ago" in line for line in rows)
    assert not any("returned" in line for line in drawn(b))


def test_a_silent_process_that_answers_again_without_the_hold(board):
    """Only then the hold has returned."""
    b = board(two())
    select(b, "b")
    take(b, one(SILENT), 101.0)
    back = snapshot(
        process(hold("a"), pid=1, name="orders"),
        process(hold("c"), pid=2, name="billing"),
    )
    take(b, back, 102.0)
    assert b.silent == {}
    assert selection(b).gone_at == 102.0
    assert any("○ returned" in line for line in drawn(b))
    assert "✓ healthy" in top(b, 102.0)


def test_a_process_that_ends_does_not_return_its_holds(board):
    b = board(two())
    select(b, "b")
    take(b, one(SILENT), 101.0)
    take(b, one(ENDED), 102.0)
    assert ids(b) == ["b", "a"]
    assert selection(b).gone_at == 102.0
    assert any("○ ended" in line for line in drawn(b))
    assert b.ending(selection(b, 102.0).row.first) == "ended"
    assert "billing 2 ended at " in top(b, 102.0)


def test_a_process_of_which_nothing_is_said_is_gone(board):
    b = board(two())
    select(b, "b")
    take(b, one(), 101.0)
    assert any("○ gone" in line for line in drawn(b))


def test_a_pid_that_is_used_again_has_not_returned_the_hold(board):
    b = board(two())
    select(b, "b")
    new = process(pid=2, started_at="2026-01-02T00:00:00Z")
    take(b, snapshot(process(hold("a"), pid=1), new), 101.0)
    assert any("○ ended" in line for line in drawn(b))


def test_all_processes_are_silent(board):
    b = board(two())
    other = replace(SILENT, pid=1, why="it is alive and does not answer")
    take(b, snapshot(unreachable=(other, SILENT)), 105.0)
    assert b.mode(105.0) == "silent"
    assert b.age(105.0) == 5.0
    assert len(b.rows) == 3
    assert "SILENT" in top(b, 105.0)
    assert "orders 1 is alive and has not answered for 5.0s" in top(b, 105.0)
    take(b, snapshot(unreachable=(replace(ENDED, pid=1), ENDED)), 106.0)
    assert b.mode(106.0) == "lost"
    assert len(b.rows) == 3
    assert re.search(
        r"(orders 1|billing 2) ended at \d\d:\d\d:\d\d, and 1 before", top(b, 106)
    )


def test_a_silent_process_that_was_never_seen(board):
    b = board()
    take(b, snapshot(unreachable=(SILENT,)), 100.0)
    assert b.mode(100.0) == "silent"
    assert "process 2 is stopped (state T) and does not answer" in top(b, 100.0)
    take(b, one(SILENT), 101.0)
    assert "healthy" not in top(b, 101.0)


def test_a_silent_process_does_not_speak_for_its_server(board):
    down = finding("server_down", text="PostgreSQL does not answer", pool=None)
    status = server_status(error="refused", down="refused")
    ill = process(hold("b"), pid=2, findings=(down,), servers=(status,))
    b = board(snapshot(process(hold("a"), pid=1, servers=(status,)), ill))
    assert "PostgreSQL does not answer" in top(b, 100.0)
    assert "DOWN" in top(b, 100.0)
    take(b, one(SILENT), 101.0)
    assert "PostgreSQL does not answer" not in top(b, 101.0)
    assert "DOWN" not in top(b, 101.0)


def test_a_server_that_is_down_comes_first(board):
    down = finding("server_down", text="PostgreSQL does not answer", pool=None)
    worse = finding("exhausted", text="is empty")
    b = board(snapshot(process(hold(), findings=(worse, down))))
    assert "■ PostgreSQL does not answer" in top(b, 100.0)
    assert "+1 more" in top(b, 100.0)


@pytest.mark.parametrize("enabled", [True, False])
def test_healthy_needs_a_server_that_was_read(board, enabled):
    status = server_status(error="PostgreSQL refused the password", enabled=enabled)
    b = board(snapshot(process(hold(), servers=(status,))))
    assert ("healthy" in top(b, 100.0)) is not enabled
    assert ("refused the password" in top(b, 100.0)) is enabled


def test_notes_do_not_stop_healthy(board):
    note = finding("duplicate_pool", severity="info", text="two pools on one database")
    b = board(snapshot(process(hold(), findings=(note,))))
    said = top(b, 100.0)
    assert "✓ healthy" in said
    assert "+1 note" in said
    assert "● two pools on one database" in said


def test_healthy_is_said_with_the_count_of_those_that_have_ended(board):
    b = board(two())
    take(b, one(ENDED), 101.0)
    said = top(b, 101.0)
    assert "✓ healthy  1 process has ended; of the others: 1 connection" in said
    assert "billing 2 ended at " in said


def test_what_is_no_longer_read_is_not_healthy(board):
    b = board(snapshot(process(hold())))
    assert "healthy" not in top(b, 130.0)
    assert "nothing was wrong 30s ago" in top(b, 130.0)
    b.paused = True
    assert "healthy" not in top(b, 130.0)


def test_a_dsn_that_cannot_be_read_is_told(board):
    snap = replace(snapshot(process(hold())), dsn_error="PostgreSQL does not answer")
    said = top(board(snap), 100.0)
    assert "the server of the DSN cannot be read" in said
    assert "healthy" not in said


LOSSES = {
    "stopped": (one(SILENT), "healthy"),
    "not known": (one(Unreachable(2, "it does not answer in time")), "healthy"),
    "damaged": (one(Unreachable(2, "the document is damaged", None, True)), "healthy"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_healthy_while_a_process_is_silent(board, loss):
    snap, word = LOSSES[loss]
    b = board(snap)
    assert word not in top(b, 100.0)
    assert "■ process 2 " in top(b, 100.0)
