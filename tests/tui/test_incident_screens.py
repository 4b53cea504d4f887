"""Incident snapshots in the dashboard: read on a key, never taken for the present."""

from __future__ import annotations

import threading

import pytest
from drawn import screen_text, title
from fakes import FakeSource, finding, frame, hold, pool, process, snapshot, wait
from helpers import until_async

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.errors import UnreachableError
from poolwatch.model import IncidentMark, IncidentSnapshot, Unreachable
from poolwatch.text.format import local_time
from poolwatch.tui.app import Dashboard
from poolwatch.tui.draw.line import length, plain
from poolwatch.tui.incident_screens import incident_board
from poolwatch.tui.panels import pools
from poolwatch.tui.panels.detail import detail_lines
from poolwatch.tui.panels.header import header
from poolwatch.tui.polling import read_incidents
from poolwatch.tui.views import named

AT = "2026-01-01T03:12:44+00:00"
EXHAUSTED = """
import sys, threading, time
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool
import poolwatch

engine = create_engine("sqlite:///orders.db", poolclass=QueuePool, pool_size=1,
    max_overflow=0, pool_timeout=30)
poolwatch.instrument(engine, name="orders")
begun, done = threading.Event(), threading.Event()

def export():
    with engine.connect() as connection:
        connection.execute(text("select 1"))
        begun.set()
        done.wait()  # then

def pay():
    engine.connect().close()

threads = [threading.Thread(target=each, name=each.__name__) for each in (export, pay)]
threads[0].start()
begun.wait()
threads[1].start()
while not poolwatch.snapshot().processes[0].frozen:
    time.sleep(0.01)
done.set()
for thread in threads:
    thread.join()
print("ready", flush=True)
sys.stdin.read()
"""


def dashboard(source, **settings):
    return Dashboard(source, clock=lambda: "12:00:00", **settings)


class Remembering(FakeSource):
    """A source with pictures, or with an error instead of them."""

    def __init__(self, frozen=(), unreachable=(), error=None):
        mark = IncidentMark("orders", "exhausted", AT)
        super().__init__(snapshot(process(hold("today"), frozen=(mark,))))
        self.pictures = tuple(frozen), tuple(unreachable)
        self.error = error
        self.asked = 0
        self.told = threading.Event()
        self.told.set()

    def all_incident_snapshots(self):
        self.asked += 1
        self.told.wait(60)
        if self.error is not None:
            raise self.error
        return self.pictures


def picture(*holds, kind="exhausted", at=AT, **changes):
    holds = holds or (hold("then", held_s=9.0, thread="exporter"),)
    changes.setdefault("waits", (wait(),))
    return IncidentSnapshot("orders", kind, at, process(*holds, **changes))


async def test_a_real_process_shows_what_it_kept(apps):
    app_ = apps.start(EXHAUSTED)
    source = LiveSource(Client(apps.directory), environ={})
    app = dashboard(source, refresh=0.25)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_async(
            lambda: "incident snapshots: orders exhausted" in screen_text(app)
        )
        assert "HOLDS 0" in screen_text(app)
        await pilot.press("z")
        await until_async(lambda: "INCIDENT SNAPSHOTS 1" in screen_text(app))
        await pilot.press("enter")
        await until_async(lambda: "SAVED" in screen_text(app))
        assert "HOLDS 1 at " in screen_text(app)
        assert "2 waits 1" in screen_text(app)
        await pilot.press("enter")
        await until_async(lambda: "HERE AT" in screen_text(app))
        assert f"app.py:{apps.line('then')}" in screen_text(app)
        assert "SAVED" in screen_text(app)
        assert "NOW HERE" not in screen_text(app)
        await pilot.press("escape", "escape", "escape")
        await until_async(lambda: "LIVE" in screen_text(app))
        assert "HOLDS 0" in screen_text(app)
    source.close()
    apps.finish(app_)


async def test_the_processes_are_asked_once_and_only_for_the_key():
    source = Remembering(
        [picture(), picture(kind="timeout", at="2026-01-02T00:00:00Z")]
    )
    source.told.clear()
    app = dashboard(source, refresh=0.25)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_async(lambda: source.calls > 3)
        assert source.asked == 0
        assert "z snapshots" in screen_text(app)
        await pilot.press("z", "escape", "z")
        await until_async(lambda: "reading from the processes" in screen_text(app))
        assert source.asked == 1
        before = source.calls
        await until_async(lambda: source.calls > before)  # nothing waits for the answer
        source.told.set()
        await until_async(lambda: "INCIDENT SNAPSHOTS 2" in screen_text(app))
        lines = screen_text(app).splitlines()
        (first,) = [n for n, line in enumerate(lines) if "2026-01-02 00:00:00" in line]
        assert f"{local_time(AT)}  orders" in lines[first + 1]
        await pilot.press("j", "j", "enter")
        await until_async(lambda: f"SAVED {local_time(AT)}" in screen_text(app))
        assert source.asked == 1


async def test_the_past_does_not_move_and_has_the_same_keys():
    two = (hold("a", task="export"), hold("b", task="report"))
    found = finding(text="it was empty then")
    source = Remembering([picture(*two, findings=(found,))])
    app = dashboard(source, refresh=0.25)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_async(lambda: app.board.last_good)
        await pilot.press("z")
        await until_async(lambda: "INCIDENT SNAPSHOTS 1" in screen_text(app))
        await pilot.press("enter")
        await until_async(lambda: f"HOLDS 2 at {local_time(AT)}" in screen_text(app))
        await pilot.press("p", "plus", "R", "j", "s")
        assert not app.board.paused
        assert app.board.refresh == 0.25
        assert app.top_board.tables["holds"].selection.at == 1
        assert app.board.tables["holds"].selection.at == 0
        await pilot.press("slash", *"export", "enter")
        await until_async(lambda: "1 row hidden" in screen_text(app))
        await pilot.press("escape")
        await until_async(lambda: "HOLDS 2 at" in screen_text(app))
        for key, shown in (("w", "it was empty then"), ("c", "SITES 0")):
            await pilot.press(key)
            await until_async(lambda shown=shown: shown in screen_text(app))
            assert f"SAVED {local_time(AT)}" in screen_text(app)
            await pilot.press("1")
            await until_async(lambda: "HOLDS 2 at" in screen_text(app))
        await pilot.press("q")
        await until_async(lambda: "INCIDENT SNAPSHOTS" in screen_text(app))
        await pilot.click("#body", offset=(10, 0), times=2)
        await until_async(lambda: "HOLDS 2 at" in screen_text(app))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Remembering(), "no incident snapshot: no pool"),
        (Remembering([], [Unreachable(7, "too old \x1b[2J")]), "process 7 could not"),
        (Remembering(error=UnreachableError("it [/b] broke")), "it [/b] broke"),
        (Remembering(error=RuntimeError("boom")), "the source failed: RuntimeError"),
        (
            FakeSource(snapshot(process(hold()))),
            "source has no incident snapshots",
        ),
    ],
)
async def test_no_picture_is_a_sentence(source, said):
    app = dashboard(source)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_async(lambda: app.board.last_good)
        await pilot.press("z")
        await until_async(lambda: said in screen_text(app))
        await pilot.press("enter", "j", "escape")
        await until_async(lambda: "LIVE" in screen_text(app))


def test_pictures_end_with_their_process(apps):
    apps.finish(apps.start(EXHAUSTED))
    found = read_incidents(LiveSource(Client(apps.directory), environ={}))
    assert "no instrumented process found" in (found.error or "")


@pytest.mark.parametrize("cells", [60, 80, 120, 160])
def test_the_past_is_said_in_every_panel(cells):
    used = (frame("/srv/app/a.py:7"),)
    one = hold("a", used=used, unused_s=4.0, statement="select 1", task="export")
    board = incident_board(picture(one, pools=(pool(checked_out=1),)))
    assert f"SAVED {local_time(AT)}" in plain(header(board, 0.0, "12:00:00", cells))
    assert length(header(board, 0.0, "12:00:00", cells)) <= cells
    table = named("holds").layout(board, cells)
    assert local_time(AT) in title(board, cells)
    assert not {"state", "backend"} & {column.key for column, _ in table.columns}
    (row,) = board.rows.values()
    shown = "\n".join(plain(line) for line in detail_lines(board, row, cells))
    assert f"HERE AT {local_time(AT)}" in shown
    assert "4.0s before" in shown
    assert "an incident snapshot has no server view" in shown
    with_other = (one, hold("b", pool="other"))
    pair = (pool(), pool("other"))
    shown = incident_board(picture(*with_other, pools=pair))
    assert [key[:3] for key in shown.rows] == [(8812, "a", "web-1")]
    assert "other" not in "\n".join(map(plain, pools.pool_lines(shown, cells, 9)))
    assert "z shows" not in "\n".join(map(plain, pools.pool_lines(board, cells, 9)))
