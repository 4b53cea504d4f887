from fakes import hold, process, snapshot

from poolwatch.tui.filtering import parse
from poolwatch.tui.reading import Reading


def ids(board):
    return [row.key[1] for row in board.selection.shown]


def data(*holds):
    return snapshot(process(*holds))


def select(board, name):
    board.selection.move(ids(board).index(name))


def test_the_selection_follows_its_hold_when_the_order_changes(board):
    b = board(data(hold("a", held_s=9), hold("b", held_s=5), hold("c", held_s=1)))
    select(b, "b")
    b.take(
        _reading(
            data(hold("a"), hold("b", held_s=5), hold("c", held_s=1, verdict="leaked"))
        ),
        101,
    )
    assert ids(b) == ["c", "b", "a"]
    assert b.selection.key == (8812, "b")
    assert b.selection.at == 1


def test_a_returned_hold_leaves_a_tombstone_and_then_its_neighbour(board):
    b = board(data(hold("a", held_s=9), hold("b", held_s=5), hold("c", held_s=1)))
    select(b, "b")
    left = data(hold("a", held_s=9), hold("c", held_s=1))
    b.take(_reading(left), 101)
    assert ids(b) == ["a", "b", "c"]
    assert b.selection.gone_at == 101
    b.settle(103.5)
    assert b.selection.key == (8812, "b")
    b.settle(104.5)
    assert ids(b) == ["a", "c"]
    assert b.selection.key == (8812, "c")


def test_moving_away_from_a_tombstone_selects_what_the_eye_sees(board):
    for step, name in ((1, "c"), (-1, "a")):
        b = board(data(hold("a", held_s=9), hold("b", held_s=5), hold("c", held_s=1)))
        select(b, "b")
        b.take(_reading(data(hold("a", held_s=9), hold("c", held_s=1))), 101)
        b.selection.move(b.selection.at + step)
        assert b.selection.key == (8812, name)
        assert ids(b) == ["a", "c"]


def test_a_hold_that_is_only_filtered_out_leaves_no_tombstone(board):
    b = board(data(hold("a", held_s=9), hold("b", held_s=5, task="x")))
    select(b, "b")
    b.filter = parse("!task:x")
    b.settle(101)
    assert ids(b) == ["a"]
    assert b.hidden == 1
    assert b.selection.key == (8812, "a")


def test_the_last_hold_may_go(board):
    b = board(data(hold("a")))
    b.selection.move(0)
    b.take(_reading(data()), 101)
    b.settle(200)
    assert ids(b) == []
    assert b.selection.key is None


def test_the_same_hold_id_in_two_processes_is_two_holds(board):
    two = snapshot(process(hold("h1"), pid=1), process(hold("h1"), pid=2))
    b = board(two)
    assert len(b.rows) == 2


def _reading(snap):
    return Reading(101.0, 0.01, snap)
