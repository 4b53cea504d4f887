"""Every key on every screen, every view at every size: driven as a user would."""

from __future__ import annotations

import pytest
from drawn import screen_text
from fakes import FakeSource, finding, frame, hold, pool, process, snapshot, wait
from helpers import until_async

from poolwatch.model import IncidentMark, IncidentSnapshot
from poolwatch.tui.app import Dashboard
from poolwatch.tui.draw.painted import Painted
from poolwatch.tui.keys import KEYS
from poolwatch.tui.screens import MainScreen
from poolwatch.tui.state.filtering import parse
from poolwatch.tui.state.table_state import TableState
from poolwatch.tui.views import VIEWS

pytestmark = pytest.mark.slow

SIZES = [(80, 24), (120, 40), (160, 45), (200, 60)]
AT = "2026-01-01T03:12:44+00:00"
MARK = IncidentMark("orders", "exhausted", AT)
STACK = tuple(frame(f"/srv/app/step{n}.py:{n + 1}", f"step{n}") for n in range(40))


class Busy(FakeSource):
    """Holds, waits and findings enough for every key; two incident snapshots."""

    def __init__(self):
        held = [
            hold(f"h{n}", held_s=100.0 - n, stack=STACK, site=STACK[n % 2])
            for n in range(40)
        ]
        waits = tuple(wait(f"w{n}", waited_s=9.0 - n) for n in range(5))
        found = (finding(holds=("h0", "h1"), waits=("w0",), sites=STACK[:1]),)
        names = {"waits": waits, "findings": found, "frozen": (MARK,)}
        super().__init__(snapshot(process(*held, pools=(pool(size=40),), **names)))
        picture = process(*held[:3])
        self.pictures = tuple(
            IncidentSnapshot("orders", kind, AT, picture)
            for kind in ("exhausted", "timeout")
        )

    def all_incident_snapshots(self):
        return self.pictures, ()


def dashboard():
    return Dashboard(Busy(), refresh=60.0, clock=lambda: "12:00:00")


def state(app):
    """Everything that a key can change, as far as a user sees it."""
    board, screen = app.top_board, app.screen
    tables = {
        name: (each.sort, each.reverse, each.merged, each.show_all, each.selection.at)
        for name, each in board.tables.items()
    }
    parts = screen.query(Painted) if app.is_running else ()
    return (
        app.is_running,
        id(screen),
        tables,
        (board.view, board.filter.text, board.unfold),
        (board.paused, board.refresh, app.poller._source.calls),
        (getattr(screen, "note", None), getattr(screen, "pane", None)),
        bool(screen.query("#filter")),
        [(part.id, part.scroll_offset.y) for part in parts],
        app.clipboard,
        screen_text(app) if app.is_running else "",
    )


def reset(app):
    """The middle of a table, with a filter."""
    board = app.board
    board.view, board.filter, board.paused = "holds", parse("step"), False
    board.refresh, board.unfold = 60.0, False
    board.tables["holds"] = TableState()
    board.drills.clear()
    main = app.screen
    main.pane, main.note = True, None
    app.paint()
    board.tables["holds"].selection.move(20)
    app.paint()


def keys_of(*screens):
    return [
        (name, key)
        for key in KEYS
        if key.screen in screens
        for name in key.keys.split(",")
        if name and not key.action.startswith("quit")
    ]


async def leave(app):
    """Close the pages over the main screen."""
    while len(app.screen_stack) > 1:
        await app.pop_screen()


async def changes(app, pilot, name):
    """Press a key, and wait until something has changed."""
    await pilot.pause()
    before = state(app)
    await pilot.press(name)
    await until_async(lambda: state(app) != before, 15, f"{name} changes nothing")


async def test_every_key_of_the_main_screen_does_something():
    app = dashboard()
    async with app.run_test(size=(160, 45)) as pilot:
        await until_async(lambda: app.board.last_good)
        for name, key in keys_of("main", "app"):
            reset(app)
            if key.action == "view(1)":
                app.screen.show("waits")
            await changes(app, pilot, name)
            await leave(app)
            await app.screen.query("#filter").remove()


@pytest.mark.parametrize("keys", [["q"], ["ctrl+q"], ["ctrl+c", "ctrl+c"]])
async def test_a_key_quits(keys):
    app = dashboard()
    async with app.run_test(size=(80, 24)) as pilot:
        await until_async(lambda: app.board.last_good)
        await pilot.press(*keys)
        await until_async(lambda: not app.is_running)


async def test_ctrl_c_says_first_what_it_does():
    """Who copies with it would lose what the dashboard remembers."""
    app = dashboard()
    async with app.run_test(size=(80, 24)) as pilot:
        await until_async(lambda: app.board.last_good)
        for keys in (["ctrl+c"], ["j", "ctrl+c"], ["question_mark", "ctrl+c"]):
            await pilot.press(*keys)
            await until_async(lambda: "ctrl+c again quits" in screen_text(app))
        assert app.is_running


async def test_what_is_copied_under_tmux_is_said(monkeypatch):
    app = dashboard()
    async with app.run_test(size=(80, 24)) as pilot:
        await until_async(lambda: app.board.last_good)
        monkeypatch.delenv("TMUX", raising=False)
        await pilot.press("y")
        await until_async(lambda: "terminal's clipboard: /srv" in screen_text(app))
        monkeypatch.setenv("TMUX", "1")
        await pilot.press("y")
        await until_async(lambda: "sent to tmux: /srv" in screen_text(app))
        assert "set-clipboard on" in screen_text(app)


async def test_a_path_with_a_line_end_runs_nothing_where_it_is_pasted():
    site = frame("/srv/a\ntrue\n/b.py:3")
    app = Dashboard(FakeSource(snapshot(process(hold(site=site)))), refresh=60.0)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_async(lambda: app.board.last_good)
        await pilot.press("y")
        await until_async(lambda: app.clipboard)
        assert len(app.clipboard.splitlines()) == 1


@pytest.mark.parametrize("opened", ["hold", "wait"])
async def test_every_key_of_a_page_does_something(opened):
    app = dashboard()
    async with app.run_test(size=(80, 24)) as pilot:
        await until_async(lambda: app.board.last_good)
        for name, key in keys_of("page", "detail"):
            if opened == "wait" and key.action.startswith("scroll"):
                continue  # all of it is in view
            reset(app)
            if opened == "wait":
                app.board.filter = parse("")
                app.screen.show("waits")
                app.board.tables["waits"] = TableState(merged=False)
                app.paint()
                app.board.tables["waits"].selection.move(2)
            await pilot.press("enter")
            await until_async(lambda: len(app.screen_stack) == 2)
            app.board.unfold = True
            app.paint()
            if key.action.startswith("scroll(-"):
                await pilot.press("pagedown")
            await changes(app, pilot, name)
            await leave(app)


async def test_every_key_of_the_incidents_does_something():
    app = dashboard()
    async with app.run_test(size=(120, 40)) as pilot:
        await until_async(lambda: app.board.last_good)
        for name, key in keys_of("incidents"):
            await pilot.press("z")
            await until_async(lambda: "INCIDENT SNAPSHOTS 2" in screen_text(app))
            if key.action == "move(-1)":
                await changes(app, pilot, "down")
            await changes(app, pilot, name)
            await leave(app)
        await pilot.press("z")
        await until_async(lambda: "INCIDENT SNAPSHOTS 2" in screen_text(app))
        await pilot.press("enter")
        await until_async(lambda: "SAVED" in screen_text(app))
        await changes(app, pilot, "q")
        assert "SAVED" not in screen_text(app)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_every_view_at_every_size(size):
    """It has its title and fills the width; its keys work; the footer is last."""
    app = dashboard()
    async with app.run_test(size=size) as pilot:
        await until_async(lambda: app.board.last_good)
        for number, view in enumerate(VIEWS, 1):
            await pilot.press(str(number))
            await until_async(
                lambda view=view: f"{view.name.upper()} " in screen_text(app)
            )
            await pilot.press("j", "G", "g", "s", "r", "r", "less_than_sign", "v", "v")
            await pilot.press("m", "m", "a", "a", "enter", "escape", "escape")
            await pilot.pause()
            lines = screen_text(app).splitlines()
            assert len(lines) == size[1]
            assert {len(line) for line in lines} == {size[0]}
            assert lines[0].lstrip().startswith("poolwatch")
            assert "q quit" in lines[-1]
            assert isinstance(app.screen, MainScreen)
            while app.board.drills:
                await pilot.press("escape")


async def test_a_terminal_that_shrinks_and_grows_again():
    app = dashboard()
    async with app.run_test(size=(160, 45)) as pilot:
        await until_async(lambda: app.board.last_good)
        for view in "1234567":
            await pilot.press(view)
            for size in ((10, 3), (1, 1), (40, 10), (10, 3), (300, 80)):
                await pilot.resize_terminal(*size)
                await pilot.press("j", "G")
            await pilot.press("enter")
            await pilot.resize_terminal(10, 3)
            await pilot.press("escape", "escape", "slash", "x", "escape")
        await pilot.press("1")
        await pilot.resize_terminal(160, 45)
        await until_async(lambda: "HOLDS 40" in screen_text(app))
        assert "enter all of it" in screen_text(app)
        assert "q quit" in screen_text(app)


async def test_from_a_wait_to_its_page_and_on():
    app = dashboard()
    async with app.run_test(size=(160, 45)) as pilot:
        await until_async(lambda: app.board.last_good)
        await pilot.press("2")
        await until_async(lambda: "WHO HOLDS" in screen_text(app))
        assert "20  app/step0.py:1" in screen_text(app)
        assert "5 requests" in screen_text(app)
        await pilot.press("enter")
        await until_async(lambda: "filter" in screen_text(app))
        await pilot.press("enter")
        await until_async(lambda: "WAITS HERE" in screen_text(app))
        assert "waits for 9.0s of 30s" in screen_text(app)
        await pilot.press("n", "n")
        await until_async(lambda: "waits for 7.0s of 30s" in screen_text(app))
        assert "3 of 5" in screen_text(app)
        await pilot.press("Y")
        await until_async(lambda: "pay/service.py:101" in app.clipboard)
        await pilot.press("escape", "escape", "escape")
        await until_async(lambda: "WAITS 5" in screen_text(app))


async def test_the_page_of_a_hold_goes_through_the_table():
    app = dashboard()
    async with app.run_test(size=(120, 40)) as pilot:
        await until_async(lambda: app.board.last_good)
        await pilot.press("enter")
        await until_async(lambda: "1 of 40" in screen_text(app))
        assert "held 1m40s" in screen_text(app)
        await pilot.press("n")
        await until_async(lambda: "held 1m39s" in screen_text(app))
        await pilot.press("N", "N", "N")
        await until_async(lambda: "1 of 40" in screen_text(app))
        await pilot.press("n", "n", "n", "escape")
        await until_async(lambda: "HOLDS 40" in screen_text(app))
        assert app.board.tables["holds"].selection.at == 3
