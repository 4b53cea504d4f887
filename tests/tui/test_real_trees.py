"""Lock chains and sessions of real processes and a real server, in views 1, 3 and 4."""

from __future__ import annotations

from contextlib import closing

import pytest
from drawn import screen_text
from helpers import until, until_async

from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.postgres.actions import DsnActions
from poolwatch.tui.app import Dashboard

pytestmark = [pytest.mark.postgres, pytest.mark.processes]

APP = """
import sys, threading
from sqlalchemy import create_engine, text
import poolwatch
engine = create_engine(sys.argv[1], pool_size=4)
poolwatch.instrument(engine, name="shop")
LOCK = text("select from chain where id = :id for update")
def work(number):
    with engine.begin() as connection:  # site
        connection.execute(LOCK, {"id": number})
        print("ready", flush=True)
        connection.execute(LOCK, {"id": number - 1})
print("ready", flush=True)
for line in sys.stdin:
    number = int(line)
    threading.Thread(target=work, args=(number,), name=f"work-{number}").start()
"""


def line_of(app, words):
    """The line of the screen with all these words; None if there is none."""
    lines = screen_text(app).splitlines()
    return next((line for line in lines if all(word in line for word in words)), None)


async def test_the_root_of_a_chain_of_four_is_first_by_name(apps, postgres_tcp):
    postgres_tcp.execute("drop table if exists chain")
    postgres_tcp.execute("create table chain as select generate_series(0, 4) as id")
    dsn = postgres_tcp.dsn
    running = [apps.start(APP, "app.py", postgres_tcp.url()) for _ in range(2)]
    with (
        closing(postgres_tcp.connect(application_name="dba-laptop")) as stranger,
        closing(
            LiveSource(Client(apps.directory), environ={}, dsn=dsn, sessions=True)
        ) as source,
    ):
        stranger.autocommit = False
        stranger.cursor().execute("select from chain where id = 0 for update")
        root = stranger.info.backend_pid
        for number in range(1, 5):
            app = running[number % 2]
            app.stdin.write(f"{number}\n")
            app.stdin.flush()
            assert app.stdout.readline() == "ready\n"
        actions = DsnActions(dsn, connection_facts)
        dashboard = Dashboard(source, refresh=0.2, actions=actions)
        async with dashboard.run_test(size=(160, 45)) as pilot:
            await until_async(lambda: len(dashboard.board.trees.nodes) == 5)
            await pilot.press("4")
            shown = ["▲ ROOT not ours", '"dba-laptop" 127.0.0.1', f" {root} ", " 4 "]
            await until_async(lambda: line_of(dashboard, shown))
            assert line_of(dashboard, ["1 root holds up 4 sessions, all of them ours"])
            for number in range(1, 5):
                words = ["└─ ▽", f"work-{number}", f"app.py:{apps.line('site')}"]
                assert line_of(dashboard, [*words, str(running[number % 2].pid)])
            assert line_of(dashboard, ["work-2", "row of"])
            await until_async(lambda: "all of them can go on" in screen_text(dashboard))
            selection = dashboard.board.tables["blocking"].selection
            assert selection.row.session.session.pid == root
            await pilot.press("3")
            await until_async(lambda: line_of(dashboard, ["SESSIONS", "4 held"]))
            assert line_of(dashboard, [str(root), "not ours", '"dba-laptop" 127.0.0.1'])
            await pilot.press("1")
            await until_async(lambda: line_of(dashboard, ["▽ BLOCKED", "work-1"]))
            await pilot.press("4", "K")
            behind = "4 sessions behind it can go on"
            await until_async(lambda: behind in screen_text(dashboard))
            await pilot.press("y")
            done = f"backend {root} is gone"
            await until_async(lambda: done in screen_text(dashboard))
            await pilot.press("enter", "1")
            await until_async(lambda: line_of(dashboard, ["HOLDS 0"]))
            await pilot.press("3")
            idle = ["○ idle in pool shop", f"app.py:{apps.line('site')}", "idle "]
            await until_async(lambda: line_of(dashboard, idle))
    until(lambda: all(not each["holds"] for each in apps.ps()["processes"]))
