"""What is selected stays selected: merged or not, sorted, reversed; counts agree."""

from __future__ import annotations

import pytest
from drawn import selection, title
from fakes import (
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

from poolwatch.model import Backend, SiteStats, Unreachable
from poolwatch.tui.panels import tabs
from poolwatch.tui.polling import Reading
from poolwatch.tui.screens import MainScreen
from poolwatch.tui.state.board import Board
from poolwatch.tui.views import VIEWS, named

SITES = [frame(f"/srv/app/{name}.py:{line}") for name, line in (("a", 1), ("b", 2))]


def stats(site, connections):
    from fakes import times

    few = times(0.1)
    values = {"hold_s": few, "wait_s": few, "leaked": 0, "wait_caused_s": 0.0}
    return SiteStats("orders", site, count=9, connections=connections, **values)


def worker(pid):
    holds = [
        hold(f"h{at}", site=SITES[at % 2], held_s=90.0 - at + pid / 10)
        for at in range(4)
    ]
    waits = [wait(f"w{at}", site=SITES[at % 2], waited_s=pid / 10) for at in range(3)]
    found = [
        finding("long_hold", holds=(f"h{at}",), sites=(SITES[at % 2],))
        for at in range(4)
    ]
    return process(
        *holds,
        pid=pid,
        name="web",
        pools=(pool(size=9),),
        waits=tuple(waits),
        findings=tuple(found),
        sites=tuple(stats(site, at + 1) for at, site in enumerate(SITES)),
    )


@pytest.fixture
def fleet() -> Board:
    board = Board()
    board.accept(Reading(100.0, snapshot(*map(worker, (11, 12, 13)))))
    return board


def things(view, row):
    return set(view.members(row))


@pytest.mark.parametrize("name", ["holds", "waits", "sites", "findings", "processes"])
def test_the_selection_goes_with_its_row(fleet: Board, name: str) -> None:
    view, state = named(name), named(name).state(fleet)
    for merged in (True, False):
        state.merged = merged
        for at in range(len(selection(fleet, view=name).shown)):
            state.merged, state.sort, state.reverse = merged, None, False
            selection(fleet, view=name).move(at)
            chosen = things(view, state.selection.row)
            for _ in range(2):
                state.merged = not state.merged
                shown = selection(fleet, view=name)
                assert shown.gone_at is None
                assert things(view, shown.row) & chosen, (merged, at)
            chosen = things(view, state.selection.row)
            keys = [column.key for column in view.columns if column.value]
            for key in keys:
                for state.reverse in (False, True):
                    state.sort = key
                    assert things(view, selection(fleet, view=name).row) == chosen


def test_the_tab_the_title_and_the_rows_count_the_same(fleet: Board) -> None:
    """The title has the number of the tab; the position counts the rows."""
    said = {}
    for view in VIEWS:
        for merged in (True, False):
            view.state(fleet).merged = merged
            text = title(fleet, 160, view=view.name)
            number, _ = view.count(fleet)
            assert text.startswith(f"  {view.name.upper()} {number}")
            said[view.name, merged] = text
    tab = "".join(text for text, _ in tabs.tab_line(fleet, VIEWS, 160))
    assert "1 HOLDS 12   2 waits 9" in tab
    assert "6 findings 2   7 processes 3" in tab
    shown = selection(fleet, view="processes").shown
    assert [len(row.findings) for row in shown[:3]] == [2, 2, 2]
    assert "row 1 of 9" in said["waits", False]
    assert "of 2" in said["waits", True]


def test_rows_of_a_silent_process_say_so_in_every_view() -> None:
    blocker = hold("a", backend_pid=10, server=server_row())
    victim = hold("b", backend_pid=20, server=server_row(blocked_by=(10,)))
    others = (Backend(30, 60.0, -1, "psql", server_row()),)
    servers = (server_status(others=others),)
    one = process(blocker, victim, pid=1, waits=(wait(),), servers=servers)
    other = process(pid=2)
    board = Board()
    board.accept(Reading(100.0, snapshot(one, other)))
    lost = Unreachable(1, "it is stopped (state T) and does not answer", alive=True)
    board.accept(Reading(108.0, snapshot(other, unreachable=(lost,))))
    for name in ("holds", "waits", "blocking"):
        assert "as last seen 8.0s ago" in title(board, 160, view=name), name
    assert "~ 2 as last seen 8.0s ago" in title(board, 160, view="sessions")


def test_rows_of_processes_that_have_ended_say_so() -> None:
    board = Board()
    board.accept(Reading(100.0, snapshot(process(hold()))))
    ended = Unreachable(8812, "it has ended", alive=False)
    board.accept(Reading(103.0, snapshot(unreachable=(ended,))))
    assert board.mode(103.0) == "lost"
    assert "~ 1 as last seen 3.0s ago" in title(board, 160)


def test_the_footer_offers_what_does_something() -> None:
    screen = MainScreen(Board())
    idle = {}
    for view in VIEWS:
        screen.board.view = view.name
        idle[view.name] = screen._idle_keys()
    assert "merge" in idle["sessions"] & idle["blocking"]
    assert "merge" not in idle["findings"] | idle["processes"] | idle["holds"]
    assert [name for name in idle if "copy" in idle[name]] == ["processes"]
    screen.board.fixed = "saved"
    assert {"time", "incidents"} <= screen._idle_keys()
