"""The dialogue on real processes and a real server: who is hit, and who goes on."""

from __future__ import annotations

import time
from contextlib import closing

import pytest
from fakes import FakeSource, snapshot
from helpers import until, until_async

from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.diagnosis.sessions import Session
from poolwatch.postgres.actions import DsnActions
from poolwatch.postgres.dsn_reader import DsnReader
from poolwatch.tui.action_dialog import ActionDialog
from poolwatch.tui.app import Dashboard
from poolwatch.tui.state.chosen import chosen

pytestmark = [pytest.mark.postgres, pytest.mark.processes]

APP = """
import sys, threading
from sqlalchemy import create_engine, text
import poolwatch
engine = create_engine(sys.argv[1])
poolwatch.instrument(engine, name="shop")
def work(first, then):
    with engine.begin() as connection:
        for id in filter(None, (first, then)):
            connection.execute(text(f"update links set n = n + 1 where id = {id}"))
            begun.set()
    print("done", flush=True)
for pair in sys.argv[2:]:
    begun = threading.Event()
    threading.Thread(target=work, args=pair.split(","), daemon=True).start()
    begun.wait() if "," in pair[:-1] else None
print("ready", flush=True)
sys.stdin.read()
"""
HOLDER = """
import sys
from sqlalchemy import create_engine, text
import poolwatch
engine = create_engine(sys.argv[1])
poolwatch.instrument(engine, name="shop")
connection = engine.connect()
connection.execute(text("update links set n = n + 1 where id = 1"))
print("ready", flush=True)
sys.stdin.read()
"""


def dialogue_text(app):
    if not app.screen.query("#dialog"):
        return ""
    box = app.screen.query_one("#dialog").region
    strips = app.screen._compositor.render_strips()[box.y : box.bottom]
    shown = " ".join(strip.crop(box.x, box.right).text for strip in strips)
    return " ".join(shown.split())


async def ask(target, actions, *words):
    """Open the dialogue, wait for words, confirm; returns the outcome."""
    results = []
    app = Dashboard(FakeSource(snapshot()), actions=actions)
    async with app.run_test(size=(100, 35)) as pilot:
        app.push_screen(ActionDialog("terminate", target, actions), results.append)
        await until_async(lambda: "Yes, end it" in dialogue_text(app))
        shown = dialogue_text(app)
        for word in words:
            assert word in shown
        await pilot.press("y")
        await until_async(lambda: "Close" in dialogue_text(app))
        await pilot.press("enter")
        await until_async(lambda: results)
    return results[0]


@pytest.fixture
def links(postgres):
    postgres.execute("drop table if exists links")
    postgres.execute("create table links as select generate_series(1, 3) id, 0 as n")
    return postgres


def look(source, condition):
    """Snapshots until one fits; returns it with the times around it."""
    found = []

    def fits():
        began = time.monotonic()
        seen = source.snapshot()
        found[:] = [seen, (began, time.monotonic())]
        return condition(seen)

    until(fits)
    return found


def waiting(seen):
    return sum(
        bool(h.server and h.server.blocked_by) for p in seen.processes for h in p.holds
    )


async def test_a_foreign_root_of_a_chain_of_four_is_ended_and_all_go_on(apps, links):
    with (
        closing(links.connect(application_name="dba-laptop")) as root,
        closing(DsnReader(links.dsn, connection_facts)) as reader,
        closing(LiveSource(Client(apps.directory), dsn=links.dsn)) as source,
    ):
        root.cursor().execute("begin; update links set n = 9 where id = 1")
        pid = root.info.backend_pid
        one = apps.start(APP, "one.py", links.url(), "2,1")
        two = apps.start(APP, "two.py", links.url(), "3,2", "3,")
        seen, times = look(source, lambda seen: waiting(seen) == 3)
        began = time.monotonic()
        (backend,) = reader.read([pid]).backends
        times = (began, time.monotonic())
        status = seen.processes[0].servers[0]
        target = chosen(Session(pid, backend=backend), status, seen, times)
        outcome = await ask(
            target,
            DsnActions(links.dsn, connection_facts),
            "not instrumented: application dba-laptop at a Unix socket",
            "3 sessions behind it can go on",
            "two.py:",
        )
        assert outcome.done
        assert f"backend {pid} is gone" in outcome.text
        assert outcome.text.endswith("3 of 3 sessions behind it go on")
        for app, count in ((one, 1), (two, 2)):
            assert [app.stdout.readline() for _ in range(count)] == ["done\n"] * count


@pytest.mark.parametrize("over_tcp", [False, True])
async def test_the_backend_of_a_hold_is_proven_and_ended(apps, links, over_tcp):
    server = links.over_tcp() if over_tcp else links
    with closing(LiveSource(Client(apps.directory), dsn=links.dsn)) as source:
        app = apps.start(HOLDER, "holder.py", server.url())
        seen, times = look(
            source, lambda seen: all(h.server for p in seen.processes for h in p.holds)
        )
        (process,) = seen.processes
        (hold,) = process.holds
        session = Session(hold.backend_pid, process, hold=hold)
        target = chosen(session, process.servers[0], seen, times)
        outcome = await ask(
            target,
            DsnActions(links.dsn, connection_facts),
            f"pid {app.pid} on",
            "holder.py:7",
            "is rolled back",
            "Nobody waits for its locks.",
        )
        assert outcome.done
    assert links.execute("select sum(n) from links") == [(0,)]
