"""The running dashboard, headless: keys, states, selection, pause."""

import time

import pytest
from drawn import screen_text
from fakes import FakeSource, frame, hold, process, server_row, snapshot, times
from helpers import until_async

from poolwatch.errors import NoProcessError
from poolwatch.model import NO_SAMPLES, SiteStats, Unreachable
from poolwatch.tui.app import Dashboard
from poolwatch.tui.draw.painted import Painted
from poolwatch.tui.pages import HelpPage


def many(count=40, **changes):
    holds = (hold(f"h{n}", held_s=100.0 - n, **changes) for n in range(count))
    return snapshot(process(*holds))


def dashboard(source, **settings):
    settings.setdefault("now", time.monotonic)
    return Dashboard(source, clock=lambda: "12:00:00", **settings)


async def test_the_first_frame_names_the_holders():
    source = FakeSource(many())
    source.free.clear()
    app = dashboard(source)
    async with app.run_test(size=(80, 24)):
        await until_async(lambda: "HOLDS" in screen_text(app))
        source.free.set()
        await until_async(lambda: "HOLDS 40" in screen_text(app))


async def test_keys_ask_the_source_nothing_and_work_while_it_hangs():
    source = FakeSource(many())
    app = dashboard(source, refresh=0.25)
    async with app.run_test(size=(100, 30)) as pilot:
        await until_async(lambda: app.board.last_good)
        source.free.clear()
        before = source.calls
        await until_async(lambda: source.calls > before)
        asked = source.calls
        for key in ("j", "down", "G", "k", "s", "g", "j", "v"):
            await pilot.press(key)
        assert source.calls == asked
        table = app.board.tables["holds"]
        assert table.selection.at == 1
        assert table.sort == "verdict"
        await pilot.press("enter")
        await until_async(lambda: "CHECKED OUT HERE" in screen_text(app))
        await pilot.press("q")
        await until_async(lambda: "HOLDS" in screen_text(app))
        await until_async(lambda: "STALE" in screen_text(app))
        assert "HOLDS 40" in screen_text(app)
        source.free.set()
        await until_async(lambda: "LIVE" in screen_text(app))


async def test_pause_freezes_and_read_now_reads():
    source = FakeSource(*[many(n) for n in range(1, 60)])
    app = dashboard(source, refresh=0.25)
    async with app.run_test(size=(100, 30)) as pilot:
        await until_async(lambda: len(app.board.rows) >= 2)
        await pilot.press("p")
        await until_async(lambda: "PAUSED" in screen_text(app))
        assert "p go on" in screen_text(app)
        frozen = len(app.board.rows)
        await pilot.pause(0.6)
        assert len(app.board.rows) == frozen
        await pilot.press("R")
        await until_async(lambda: len(app.board.rows) > frozen)
        await pilot.press("p")
        await until_async(lambda: "LIVE" in screen_text(app))


async def test_the_filter_narrows_and_esc_clears():
    two = snapshot(process(hold("a", task="export"), hold("b", task="[/b]")))
    app = dashboard(FakeSource(two))
    async with app.run_test(size=(120, 30)) as pilot:
        await until_async(lambda: len(app.board.rows) == 2)
        await pilot.press("slash", *"export")
        await until_async(lambda: "1 row hidden" in screen_text(app))
        await pilot.press("enter")
        await until_async(lambda: not app.screen.query("#filter"))
        assert app.board.filter.text == "export"
        await pilot.press("escape")
        await until_async(lambda: app.board.tables["holds"].hidden == 0)
        await pilot.press("slash", "left_square_bracket", "slash")
        await until_async(lambda: app.board.filter.text == "[/")
        table = app.board.tables["holds"]
        await until_async(lambda: [row.key[1] for row in table.rows] == ["b"])


async def test_the_detail_follows_its_hold_and_says_when_it_ended():
    row = server_row(query="select a from b")
    one = hold("a", held_s=5.0, server=row, backend_pid=3)
    source = FakeSource(snapshot(process(one, hold("b"))))
    app = dashboard(source, refresh=0.25)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_async(lambda: app.board.last_good)
        await pilot.press("enter")
        await until_async(lambda: "STATEMENT" in screen_text(app))
        source.answers.append(snapshot(process(hold("b"))))
        await until_async(lambda: "returned after 5.0s" in screen_text(app))
        await pilot.press("f", "escape")
        await until_async(lambda: "HOLDS 1" in screen_text(app))


async def test_the_call_sites_have_a_page_and_opening_it_asks_nothing():
    one = frame("/srv/app/pay.py:9")
    stats = SiteStats("orders", one, 4, 1.25, times(2.0), NO_SAMPLES, 0)
    source = FakeSource(snapshot(process(hold(), sites=(stats,))))
    app = dashboard(source, refresh=60.0)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_async(lambda: app.board.last_good)
        assert "5 sites" in screen_text(app)
        asked = source.calls
        await pilot.press("c")
        await until_async(lambda: "SITES 1" in screen_text(app))
        assert "app/pay.py:9" in screen_text(app)
        assert "1.25" in screen_text(app)
        await pilot.press("j", "G", "1")
        await until_async(lambda: "HOLDS 1" in screen_text(app))
        assert source.calls == asked


async def test_a_click_selects_the_row_under_the_mouse():
    app = dashboard(FakeSource(many(5)))
    async with app.run_test(size=(100, 30)) as pilot:
        await until_async(lambda: "HOLDS 5" in screen_text(app))
        pools = app.screen.get_child_by_id("pools")
        await until_async(lambda: pools.size.height > 1)
        await pilot.pause()
        await pilot.click("#table", offset=(10, 3))
        await until_async(lambda: app.board.tables["holds"].selection.at == 3)


async def test_no_process_is_a_friendly_page_that_fills_by_itself():
    source = FakeSource(NoProcessError("no instrumented process in /run/[/b]"))
    app = dashboard(source, refresh=0.25, empty_hint="poolwatch.instrument(engine)")
    async with app.run_test(size=(80, 24)):
        await until_async(lambda: "poolwatch.instrument(engine)" in screen_text(app))
        assert "no instrumented process in /run/[/b]" in screen_text(app)
        source.answers.append(many(3))
        await until_async(lambda: "HOLDS 3" in screen_text(app))
        source.answers.append(NoProcessError("nobody"))
        await until_async(lambda: "LOST" in screen_text(app))
        assert "HOLDS 3" in screen_text(app)


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_without_a_process_nothing_is_called_well(size):
    """Neither on the first screen nor on the page of findings."""
    source = FakeSource(NoProcessError("nobody"))
    app = dashboard(source, refresh=0.25)
    async with app.run_test(size=size) as pilot:
        await until_async(lambda: "NO PROCESS" in screen_text(app))
        await pilot.press("w")
        await until_async(lambda: "FINDINGS 0" in screen_text(app))
        assert "nothing is wrong" not in screen_text(app)
        assert "no instrumented process found" in screen_text(app)
        stopped = Unreachable(9, "it is stopped (state T) and does not answer")
        source.answers.append(snapshot(unreachable=(stopped,)))
        await until_async(lambda: "FINDINGS 1" in screen_text(app))
        assert "process 9 is stopped (state T)" in screen_text(app)
        await pilot.press("1")
        await until_async(lambda: "SILENT" in screen_text(app))
        source.answers.append(many(3))
        await until_async(lambda: "✓ healthy" in screen_text(app))
        await pilot.press("w")
        await until_async(lambda: "✓ healthy" in screen_text(app))


async def test_a_source_that_breaks_does_not_end_the_view():
    source = FakeSource(RuntimeError("boom [/b] \x1b[2J"))
    app = dashboard(source, refresh=0.25)
    async with app.run_test(size=(80, 24)):
        await until_async(lambda: "NO ANSWER" in screen_text(app))
        assert "boom [/b] ␛[2J" in screen_text(app)


@pytest.mark.parametrize("size", [(60, 15), (30, 8), (200, 60)])
async def test_any_size_and_resizing(size):
    app = dashboard(FakeSource(many()))
    async with app.run_test(size=size) as pilot:
        await until_async(lambda: app.board.last_good)
        await pilot.press("G", "enter", "escape", "question_mark", "escape", "w")
        await pilot.press("1")
        await pilot.resize_terminal(160, 45)
        await until_async(lambda: "enter all of it" in screen_text(app))
        await pilot.resize_terminal(60, 15)
        await pilot.pause()
        assert app.is_running


async def test_without_colour_everything_is_still_said(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = dashboard(FakeSource(many(3, verdict="leaked")))
    async with app.run_test(size=(160, 45)) as pilot:
        await until_async(lambda: "■ LEAKED" in screen_text(app))
        await pilot.press("j", "enter", "escape", "question_mark")
        await until_async(lambda: "VERDICTS" in screen_text(app))
        app.export_screenshot()


def styles_of(app, words):
    """The styles in which a text is on the screen, as the terminal gets them."""
    lines = app.screen._compositor.render_strips()
    background = app.screen.background_colors[1]
    return [
        segment.style
        for strip in lines
        for segment in strip.apply_filter(app._filters[-1], background)
        if words in segment.text
    ]


async def test_without_colour_the_bad_is_the_loudest(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    bad, good = hold("h1", verdict="leaked"), hold("h2")
    app = dashboard(FakeSource(snapshot(process(bad, good))))
    async with app.run_test(size=(160, 45)):
        await until_async(lambda: "■ LEAKED" in screen_text(app))
        loud, calm = styles_of(app, "LEAKED")[0], styles_of(app, "ok")[0]
    assert loud.bold
    assert loud.reverse
    assert not calm.bold
    assert not calm.reverse
    assert loud.color.triplet == calm.color.triplet


async def test_a_theme_by_name():
    """In a theme of the terminal's colours, what is faint is dim."""
    app = dashboard(FakeSource(many(3)), theme="ansi-dark")
    async with app.run_test(size=(160, 45)):
        await until_async(lambda: "HOLDS 3" in screen_text(app))
        assert app.theme == "ansi-dark"
        faint = app.screen.query(Painted).first().get_component_rich_style("ink--faint")
        assert faint.dim
    app = dashboard(FakeSource(many(3)), theme="textual-dark")
    async with app.run_test():
        assert app.theme == "textual-dark"


async def test_a_picture_that_does_not_change_repaints_nothing(monkeypatch):
    app = dashboard(FakeSource(many(5)), refresh=60.0, now=lambda: 100.0)
    async with app.run_test(size=(100, 30)) as pilot:
        await until_async(lambda: app.board.last_good)
        await pilot.pause()
        painted = []
        monkeypatch.setattr(Painted, "refresh", lambda self, *r, **k: painted.append(r))
        app.paint()
        assert painted == []


async def test_a_reading_may_come_before_a_screen_is_there_and_after_the_last():
    app = dashboard(FakeSource(many(5)), refresh=60.0)
    async with app.run_test(size=(100, 30)) as pilot:
        await until_async(lambda: app.board.last_good)
        app.push_screen(HelpPage(app.board))
        app.paint()  # the page has no parts yet
        await pilot.pause()
        await until_async(lambda: "KEYS" in screen_text(app))
    app.paint()
