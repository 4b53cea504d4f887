"""The cause first and once, of real processes on a real server."""

from __future__ import annotations

import json

import pytest
from helpers import until

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.postgres]

SHOP = """
import sys, threading, time
from sqlalchemy import create_engine, text
import poolwatch
engine = create_engine(
    sys.argv[1], pool_size=2, max_overflow=0, pool_timeout=600, pool_logging_name="shop"
)
poolwatch.instrument(engine)

def export():
    with engine.connect() as connection:  # root
        connection.execute(text("update stock set n = n + 1"))
        time.sleep(600)  # now

def sell():
    with engine.connect() as connection:  # victim
        connection.execute(text("update stock set n = n + 1"))

def keep():
    with engine.connect() as connection:  # kept
        connection.execute(text("select 1"))
        time.sleep(600)

work = {"export": [export], "sell": [sell] * 3, "keep": [keep] * 2}[sys.argv[2]]
for each in work:
    threading.Thread(target=each, daemon=True).start()
while len(poolwatch.snapshot().processes[0].holds) < min(len(work), 2):
    time.sleep(0.01)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def shop(apps):
    """Starts the program on a server; and ``check``: its lines once they begin so."""

    class Shop:
        def start(self, server, what):
            return apps.start(SHOP, "shop.py", server.url(), what)

        def line(self, marker):
            return f"shop.py:{apps.line(marker, 'shop.py')}"

        def check(self, *beginnings):
            def lines():
                done = apps.poolwatch("check")
                found = done.stdout.splitlines()
                pairs = zip(found, beginnings, strict=False)
                begun = [line for line, start in pairs if line.startswith(start)]
                assert done.returncode in {0, 1}
                return done.returncode == 1 and len(begun) == len(beginnings) and found

            return until(lines)

        def ps(self):
            return apps.poolwatch("ps").stdout, apps.ps()

    return Shop()


def test_a_line_that_empties_the_pool_of_another_process(shop, postgres):
    postgres.execute("create table stock as select 1 as n")
    try:
        shop.start(postgres, "export")
        shop.start(postgres, "sell")
        lock, empty = shop.check("critical lock_wait: ", "critical exhausted: ")
        text, document = shop.ps()
    finally:
        postgres.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where query like 'update stock%'"
        )
        postgres.execute("drop table stock")
    assert f"/{shop.line('root')} holds up 2 sessions: idle in transaction for " in lock
    now = shop.line("now").partition(":")[2]
    assert f", its code is asleep at :{now} [" in lock
    assert "pool 'shop' is empty: 2 of 2 out, 1 waits (oldest " in empty
    assert f"/{shop.line('victim')} (in the database at :" in empty
    assert text.startswith("CRITICAL lock_wait: ")
    kinds = [f["kind"] for p in document["processes"] for f in p["findings"]]
    assert sorted(kinds) == ["exhausted", "lock_wait", "lock_wait"]


def test_a_root_of_another_program_is_named(shop, start_postgres):
    server = start_postgres()
    server.execute("create table stock as select 1 as n")
    foreign = server.connect(application_name="dba-laptop")
    foreign.cursor().execute("begin; update stock set n = 0")
    shop.start(server, "sell")
    lock, _ = shop.check("critical lock_wait: a session of", "critical exhausted: ")
    foreign.close()
    assert lock.startswith("critical lock_wait: a session of 'dba-laptop' (pid ")
    assert ", idle in transaction for " in lock
    assert "update stock set n = ?) holds up 2 sessions [" in lock


def test_a_server_that_is_down_and_comes_back(shop, start_postgres):
    server = start_postgres()
    for _ in range(2):
        shop.start(server, "keep")
    server.stop("immediate")
    (down,) = shop.check("critical server_down: PostgreSQL at ")
    assert "2 pools of 2 processes use it" in down
    server.start()
    (restarted,) = shop.check("critical ghost: ")
    assert (
        "ghost: 4 holds of 2 processes are on a server that was restarted at "
        in restarted
    )
    text, document = shop.ps()
    assert text.count("CRITICAL ghost") == 1
    assert json.dumps(document).count('"kind": "ghost"') == 2
