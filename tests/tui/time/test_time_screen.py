"""The past on the screen: keys only, a fake source, clocks that stand still."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from fake_looks import NOON
from fakes import FakeSource, finding, frame, hold, pool, process, snapshot
from helpers import until_async
from textual.pilot import Pilot

from poolwatch.diagnosis.incidents import Incidents
from poolwatch.errors import UnreachableError
from poolwatch.model import Incident, Snapshot, Step, Unreachable
from poolwatch.text import format as text_format
from poolwatch.text.format import utc_time
from poolwatch.tui.app import Dashboard
from poolwatch.tui.screens import MainScreen
from poolwatch.tui.time.looking import LAST, Looker, NextIncident, Steps, To
from poolwatch.tui.time.ring import Ring
from poolwatch.tui.time.saved import open_saved
from poolwatch.tui.views import VIEWS

SIZES = [(80, 24), (160, 45)]
SITE = frame("/srv/app/billing/export.py:88")
NOW = NOON + 600.0
"""Ten minutes after the first reading: 12:10:00 in UTC."""


class Today(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.fromtimestamp(NOW, tz)


@pytest.fixture(autouse=True)
def new_york(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_format, "datetime", Today)
    yield
    monkeypatch.undo()
    time.tzset()


def at_second(second: float) -> Snapshot:
    """One hold for a minute, more from second 300 on, a finding from 420 to 480."""
    count = 1 + int(second) // 300
    holds = [hold(f"h{n}", held_s=second, site=SITE) for n in range(count)]
    full = (finding(sites=(SITE,)),) if 420 <= second <= 480 else ()
    waiting = 40 if full else 0
    pools = (pool(checked_out=len(holds), waiting=waiting),)
    return snapshot(process(*holds, pools=pools, findings=full))


def filled(ring: Ring, now: float = NOW, every: float = 10.0) -> None:
    clock = {"now": 0.0}
    ring._clock = lambda: clock["now"]
    second = 0.0
    while NOON + second <= now:
        clock["now"] = second
        ring.add(at_second(second), NOON + second)
        second += every


def lines(app: Dashboard) -> list[str]:
    return [strip.text for strip in app.screen._compositor.render_strips()]


def text(app: Dashboard) -> str:
    return "\n".join(lines(app))


def dashboard(source: Any = None, **settings: Any) -> Dashboard:
    source = source or FakeSource(at_second(599.0))
    settings.setdefault("wall", lambda: NOW + 3.0)
    settings.setdefault("refresh", 60.0)
    app = Dashboard(source, clock=lambda: "07:10:03", **settings)
    app._records = False  # what is kept is given
    filled(app.recorder.ring)
    return app


async def opened(app: Dashboard, pilot: Pilot[None], *keys: str) -> None:
    await until_async(lambda: app.board.last_good or app.board.fixed)
    for key in keys or ("t",):
        await pilot.press(key)
    await until_async(lambda: "TIME  07:00:00 to 07:10:00" in text(app))


async def shows(app: Dashboard, *words: str) -> None:
    try:
        await until_async(lambda: all(word in text(app) for word in words), 12)
    except AssertionError:
        raise AssertionError(f"{words}:\n{text(app)}") from None


@pytest.mark.parametrize("size", SIZES)
async def test_step_by_step_and_back_to_now(size: tuple[int, int]) -> None:
    app = dashboard()
    async with app.run_test(size=size) as pilot:
        await opened(app, pilot)
        await shows(app, "07:10:00", "3.0s ago, not now", "esc now", "07:10:03")
        assert "LIVE" not in text(app)
        assert "07:10:00  " in lines(app)[0]
        await pilot.press("left")
        await shows(app, "07:09:50", "13s ago, not now", "HOLDS 2 at 07:09:50")
        await pilot.press("shift+left")
        await shows(app, "07:08:10", "1m53s ago, not now")
        await pilot.press("right", "right")
        await shows(app, "07:08:30")
        for _ in range(4):
            await pilot.press("shift+left")
        await shows(app, "HOLDS 1 at 07:01:50")
        await pilot.press("escape")
        await shows(app, "LIVE", "HOLDS 2")
        assert "not now" not in text(app)
        assert app.screen.id == "main"


@pytest.mark.parametrize("size", SIZES)
async def test_incidents(size: tuple[int, int]) -> None:
    """The finding was seen twice before it is an incident: at second 430."""
    app = dashboard()
    async with app.run_test(size=size) as pilot:
        await opened(app, pilot, "t", "N")
        await shows(app, "HOLDS 2 at 07:07:10", "WHY  ■ pool", "INCIDENTS 1")
        assert "▸  07:07:10  07:08:00  50s     ■ exhausted" in text(app)
        await pilot.press("N")
        await shows(app, "no earlier incident began")
        await pilot.press("n")
        await shows(app, "no later incident began")
        await pilot.press("left", "left")
        await shows(app, "✓ healthy", "07:06:50")
        await pilot.press("n")
        await shows(app, "HOLDS 2 at 07:07:10")


@pytest.mark.parametrize("size", SIZES)
async def test_seek(size: tuple[int, int]) -> None:
    app = dashboard()
    async with app.run_test(size=size) as pilot:
        await opened(app, pilot, "S")
        await until_async(lambda: app.screen.query("#seek"))
        await pilot.press(*"2026-03-02T07:03:14", "enter")
        await until_async(lambda: not app.screen.query("#seek"))
        await shows(app, "HOLDS 1 at 07:03:10")
        assert app.screen.board.filter.text == ""
        await pilot.press("S", *"yesterday", "enter")
        await shows(app, "'yesterday' is not a time", "(local time")
        await pilot.press("S", *"1999-01-01", "enter")
        await shows(app, "is before the first moment that is kept")
        await pilot.press("S", *"9999-01-01", "enter")
        await shows(app, "is after the last moment that is kept")
        await pilot.press("S", *"07", "escape")
        await until_async(lambda: not app.screen.query("#seek"))
        assert app.screen.id == "time"


async def test_every_view_is_of_that_moment_and_keeps_its_state() -> None:
    """Filter, view and selection go there and come back."""
    app = dashboard()
    async with app.run_test(size=(160, 45)) as pilot:
        await until_async(lambda: app.board.last_good)
        await pilot.press("slash", *"export", "enter", "j")
        await opened(app, pilot)
        await shows(app, "filter export", "HOLDS 3")
        for number, view in enumerate(VIEWS, 1):
            await pilot.press(str(number))
            await shows(app, f"\n  {view.name.upper()} ", "TIME  07:00")
        await pilot.press("1")
        for _ in range(4):
            await pilot.press("shift+left")
        await shows(app, "HOLDS 1", "1 of 1")
        await pilot.press("escape")
        await shows(app, "LIVE", "filter export")
        assert app.board.tables["holds"].selection.key[1] == "h1"
        assert app.board.view == "holds"


async def test_from_a_finding_to_its_beginning() -> None:
    app = dashboard(FakeSource(at_second(450.0)))
    async with app.run_test(size=(80, 24)) as pilot:
        await until_async(lambda: app.board.last_good)
        await pilot.press("6")
        await shows(app, "FINDINGS 1")
        await pilot.press("t")
        await shows(app, "07:07:10", "not now", "FINDINGS 1")
        await pilot.press("left", "left")
        await shows(app, "07:06:50", "no finding")
        await pilot.press("1", "escape")
        await shows(app, "LIVE", "HOLDS 2")


async def test_enter_leads_to_a_hold_as_it_was_and_the_readings_go_on() -> None:
    source = FakeSource(at_second(599.0))
    app = dashboard(source, refresh=0.25)
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot, "t", "left")
        await shows(app, "HOLDS 2 at 07:09:50")
        await pilot.press("enter")
        await shows(app, "HERE AT 07:09:50", "held      9m50s", "13s ago, not now")
        before = source.calls
        await until_async(lambda: source.calls > before + 1)
        await pilot.press("p", "escape")
        await shows(app, "HOLDS 2 at 07:09:50")
        assert not app.board.paused
        await pilot.press("q")
        await shows(app, "LIVE")


# -- files ---------------------------------------------------------------------------


async def test_a_moment_is_saved_and_opened(tmp_path: Path) -> None:
    app = dashboard()
    async with app.run_test(size=(160, 45)) as pilot:
        await opened(app, pilot, "t", "left")
        await shows(app, "HOLDS 2 at 07:09:50")
        await pilot.press("e")
        path = tmp_path / "poolwatch-2026-03-02T07-09-50.json"
        await until_async(path.exists)
        await until_async(lambda: str(path) in text(app).replace("\n", ""))
        await pilot.press("E")
        await until_async(path.with_suffix(".svg").exists)
        await pilot.press("escape", "e")
        await until_async(lambda: len(list(tmp_path.glob("*.json"))) == 2)
    svg = path.with_suffix(".svg").read_text()
    assert "13s&#160;ago,&#160;not&#160;now" in svg
    assert "@font-face" not in svg
    saved = Dashboard(open_saved(path), saved=())
    async with saved.run_test(size=(160, 45)) as pilot:
        await until_async(lambda: saved.board.last_good)
        await shows(saved, "SAVED 07:09:50", "not now", "HOLDS 2")
        assert "pace" not in lines(saved)[-1]
        await pilot.press("p", "R", "plus", "t")
        await shows(saved, "this is one saved moment: it has no past")
        assert (saved.board.paused, saved.board.refresh) == (False, 1.0)
        for key in "7654321":
            await pilot.press(key)
        await pilot.press("enter")
        await shows(saved, "HERE AT 07:09:50", "9m50s")


async def test_a_folder_that_is_gone(monkeypatch: Any, tmp_path: Path) -> None:
    app = dashboard()
    async with app.run_test(size=(80, 24)) as pilot:
        await until_async(lambda: app.board.last_good)
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        await pilot.press("e")
        await shows(app, "cannot be written: No such file or")
        os.chdir(tmp_path)


# -- what goes wrong -----------------------------------------------------------------


@dataclass
class FakePast:
    """A history by the minute, that may be away or hang."""

    error: Exception | None = None
    free: threading.Event = field(default_factory=threading.Event)
    read: list[float] = field(default_factory=list)

    def _ask(self) -> None:
        if self.error is not None:
            raise self.error

    def snapshot(self) -> Snapshot:
        self._ask()
        return self.snapshot_at(NOW)

    def extent(self) -> tuple[float, float] | None:
        self._ask()
        return NOW - 86_400, NOW

    def snapshot_at(self, at: float) -> Snapshot:
        self._ask()
        self.free.wait(60)
        self.read.append(at)
        return replace(at_second(at - NOON), at=utc_time(at))

    def steps(self, since: float, until: float, cells: int) -> list[Step | None]:
        self._ask()
        return [Step(1, 0)] * cells

    def moment_after(self, at: float, by: int) -> float:
        self._ask()
        return max(at + 60 * by, NOW - 86_400)

    def incidents(self, since: float, until: float) -> list[Incident]:
        self._ask()
        return []


def history(past: FakePast, **settings: Any) -> Dashboard:
    return Dashboard(past, past=past, refresh=60.0, clock=lambda: "07:10:03",
                     wall=lambda: NOW + 3.0, **settings)  # fmt: skip


async def test_a_history_begins_at_a_time_and_goes_away() -> None:
    past = FakePast()
    past.free.set()
    app = history(past, at=NOW - 3600)
    async with app.run_test(size=(120, 40)) as pilot:
        await shows(app, "1h00m ago, not now", "TIME")
        await pilot.press("minus", "minus", "minus")
        await shows(app, "03-01 07:10")
        past.error = UnreachableError("the history does not answer")
        await pilot.press("left")
        await shows(app, "◆ the history does not answer", "1h00m ago, not now")
        past.error = None
        await pilot.press("left")
        await shows(app, "1h01m ago, not now")
        await until_async(lambda: "does not answer" not in text(app))
        await pilot.press("escape")
        await shows(app, "HISTORY")


async def test_a_history_behind_the_readings_goes_away() -> None:
    past = FakePast(UnreachableError("the history does not answer"))
    app = dashboard(past=past)
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot)
        app._records = True
        await pilot.press("left", "right")
        await shows(app, "◆ the history does not answer", "readings")
        await pilot.press("left")
        await shows(app, "HOLDS 2 at 07:09:50")


async def test_a_store_that_hangs_stops_no_key_and_what_is_read_is_said() -> None:
    past = FakePast()
    app = history(past)
    past.free.set()
    async with app.run_test(size=(120, 40)) as pilot:
        await until_async(lambda: app.board.last_good)
        past.free.clear()
        await pilot.press("t")
        await shows(app, "reading the last moment …")
        past.free.set()
        await shows(app, "TIME  07:00")
        past.free.clear()
        await pilot.press(*["left"] * 5, "j", "6")
        await shows(app, "FINDINGS", "back …")
        past.free.set()
        await shows(app, "5m03s ago, not now")
        assert len(past.read) <= 4, "what was asked for meanwhile is one request"


def test_what_is_asked_for_meanwhile_is_one_request() -> None:
    past, answers = FakePast(), []
    looker = Looker(past, answers.append)
    with looker._wanted:  # it cannot begin
        looker._moves = [Steps(-1)]
        looker.ask(Steps(-2))
        assert looker._moves == [Steps(-3)]
        looker.ask(NextIncident())
        looker.ask(To(NOW))
        assert looker._moves == [To(NOW)]
    looker.stop()


def test_a_shortened_memory_is_told() -> None:
    app = dashboard()
    app._records = True
    app.recorder.ring._dropped = 0.0
    words, trouble = app._past_notes()
    assert words.startswith("61 readings, ")
    assert trouble == "the memory for readings is full: 10m00s are kept"


# -- the board of a moment -----------------------------------------------------------


def test_a_silent_process_is_as_it_was_last_seen(board: Callable[..., Any]) -> None:
    quiet = replace(process(hold("a", held_s=9.0)), pid=77)
    lost = Unreachable(77, "it does not answer", utc_time(NOON - 8.0), alive=True)
    live = board()
    then = live.at_another_moment()
    then.show_moment(snapshot(process(), quiet, unreachable=(lost,), at=utc_time(NOON)))
    assert [each.process.pid for each in then.silent.values()] == [77]
    (key,) = then.silent
    assert then.last_seen(key) == pytest.approx(8.0)
    assert len(then.rows) == 1
    then.show_moment(snapshot(at=utc_time(NOON)))
    assert (then.rows, then.last_good, then.mode(0.0)) == ({}, None, "past")


def test_readings_are_recorded_as_they_are_shown(board: Callable[..., Any]) -> None:
    lost = Unreachable(8812, "it does not answer", alive=True)
    ended = replace(lost, alive=False)
    silent = board(snapshot(process(hold())), snapshot(unreachable=(lost,)))
    assert [each.pid for each in silent.recorded().processes] == [8812]
    over = board(snapshot(process(hold())), snapshot(unreachable=(ended,)))
    assert over.recorded() == snapshot(unreachable=(ended,))


def test_the_ring_takes_the_rules_of_incidents() -> None:
    ring = Ring(Incidents())
    filled(ring)
    assert [each.kind for each in ring.incidents(NOON, NOW)] == ["exhausted"]


async def test_the_past_without_anything_says_so() -> None:
    app = Dashboard(FakeSource(snapshot()), refresh=60.0)
    app._records = False
    async with app.run_test(size=(80, 24)) as pilot:
        await until_async(lambda: app.board.last)
        await pilot.press("t")
        await shows(app, "nothing is recorded yet")
        assert isinstance(app.screen, MainScreen)
        await pilot.press("left", "N", "escape")
        await until_async(lambda: app.screen.id == "main")


assert LAST.words == "the last moment"
