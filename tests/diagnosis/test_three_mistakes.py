"""The three mistakes that every text about pooling warns of, as people write them.

A pool made inside a function, a connection that is not put back, and far too many
connections: in a program that knows nothing of poolwatch, each is found, with its line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from helpers import line_of, until

APP = """
from psycopg2.pool import SimpleConnectionPool

DSN = {dsn!r}


def get_user(user_id):
    pool = SimpleConnectionPool(1, 10, DSN)  # mistake 1: a pool for every call
    conn = pool.getconn()
    cur = conn.cursor()
    cur.execute("SELECT %s::int, 'Ada'", (user_id,))
    user = cur.fetchone()
    pool.putconn(conn)
    pool.closeall()
    return user


pool = SimpleConnectionPool(minconn=1, maxconn=10, dsn=DSN, application_name="shop")


def save_order(total):
    conn = pool.getconn()  # leaked
    cur = conn.cursor()
    cur.execute("SELECT %s::int", (total,))
    conn.commit()  # mistake 2: no putconn


big_pool = SimpleConnectionPool(minconn=100, maxconn=500, dsn=DSN)  # mistake 3

for number in range(20):
    get_user(number)
for total in (10, 20, 30):
    save_order(total)
print("ready", flush=True)
input()
"""


@pytest.fixture
def shop(apps, start_postgres):
    """The program, under ``poolwatch run``, and its text."""
    server = start_postgres(max_connections=200)
    source = textwrap.dedent(APP).format(dsn=server.dsn)
    path = apps.write(source, "shop.py")
    app = subprocess.Popen(
        [sys.executable, "-m", "poolwatch", "run", "--", sys.executable, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=apps.environ,
        cwd=apps.home,
    )
    apps.running.append(app)
    assert app.stdout is not None
    assert app.stdout.readline().strip() == "ready"
    return path.read_text()


def test_each_is_found(apps, shop):
    """By kind and line, and nothing else is said of that program."""
    wanted = {
        ("pool_churn", line_of(shop, "mistake 1: a pool for every call")),
        ("leaked.collected", line_of(shop, "leaked")),
        ("over_capacity", line_of(shop, "mistake 3")),
    }

    def found():
        (process,) = apps.ps()["processes"]
        return {
            (each["kind"], site["line"] if site else None)
            for each in process["findings"]
            for site in each["sites"] or [None]
        }

    until(lambda: found() >= wanted)
    assert found() == wanted
    (process,) = apps.ps()["processes"]
    said = {each["kind"]: each for each in process["findings"]}
    assert "created 20 pools" in said["pool_churn"]["text"]
    assert "500" in said["over_capacity"]["proof"] + said["over_capacity"]["text"]
    assert len([h for h in process["holds"] if h["verdict"] == "leaked"]) == 3
    assert apps.poolwatch("check").returncode == 1
    assert json.dumps(process).count("password") == 0
