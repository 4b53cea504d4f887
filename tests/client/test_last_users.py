"""A lock that came back with its connection, seen through the agent or a DSN.

Behind a pooler, and on another server, nothing is said.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest
from helpers import until

pytestmark = [pytest.mark.postgres, pytest.mark.processes]

APP = """
import sys
from sqlalchemy import create_engine, text
import poolwatch

engine = create_engine(sys.argv[1])
poolwatch.instrument(engine, name="jobs")
with engine.connect() as connection:  # the job
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": int(sys.argv[2])})
    connection.commit()
print("ready", flush=True)
sys.stdin.read()
"""

WAITER = """
import sys
from sqlalchemy import create_engine, text
import poolwatch

engine = create_engine(sys.argv[1])
poolwatch.instrument(engine, name="next")
with engine.connect() as connection:  # the waiter
    pid = connection.connection.dbapi_connection.info.backend_pid
    print("ready", flush=True)
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": int(sys.argv[2])})
"""


def findings(apps, *options):
    return [each for p in apps.ps(*options)["processes"] for each in p["findings"]]


def lines(finding):
    return [site["line"] for site in finding["sites"]]


@pytest.mark.parametrize("way", ["agent", "dsn"])
def test_a_lock_that_came_back(apps, postgres, way):
    apps.start(APP, "job.py", postgres.url(), "11")
    options = ["--dsn", postgres.dsn] if way == "dsn" else []
    (finding,) = until(lambda: findings(apps, *options), seconds=20)
    assert finding["kind"] == "dirty_return"
    assert lines(finding) == [apps.line("the job", "job.py")]
    assert finding["holds"] == []
    assert "session-level advisory lock" in finding["text"]


def test_the_next_one_waits_in_another_process(apps, postgres):
    """Over TCP, while the first is connected by the socket."""
    job = apps.start(APP, "job.py", postgres.url(), "12")
    apps.start(WAITER, "next.py", postgres.over_tcp().url(), "12")

    def waits():
        return [each for each in findings(apps) if each["kind"] == "lock_wait"]

    (finding,) = until(waits, seconds=20)
    kept = f"kept by a pooled connection (pool 'jobs', process {job.pid}, pid "
    assert kept in finding["text"]
    assert lines(finding) == [
        apps.line("the waiter", "next.py"),
        apps.line("the job", "job.py"),
    ]
    job.kill()


def test_a_stranger_is_named_with_what_it_does_and_no_value(apps, postgres):
    with closing(postgres.connect(application_name="psql")) as psql:
        psql.cursor().execute("SELECT pg_advisory_lock(13), 'a secret'")
        apps.start(WAITER, "next.py", postgres.url(), "13")
        (finding,) = until(lambda: findings(apps), seconds=20)
        assert finding["kind"] == "lock_wait"
        assert "a session of 'psql'" in finding["text"]
        assert "SELECT pg_advisory_lock(?)" in finding["text"]
        assert "secret" not in finding["text"]


def test_behind_a_pooler_nothing_is_said(apps, postgres, start_proxy):
    """The pid that the driver knows belongs to a stranger, who has a lock."""
    with closing(postgres.connect()) as stranger:
        stranger.cursor().execute("SELECT pg_advisory_lock(14)")
        pooler = start_proxy(postgres, pid=stranger.info.backend_pid)
        apps.start(APP, "job.py", pooler.url(), "15")
        time.sleep(1.2)
        for options in ([], ["--dsn", postgres.dsn]):
            assert findings(apps, *options) == []


def test_a_pid_of_another_server_is_not_it(apps, postgres, second_postgres):
    """The DSN is another server than the pool's."""
    apps.start(APP, "job.py", postgres.url(), "16")
    time.sleep(1.2)
    (finding,) = findings(apps, "--dsn", second_postgres.dsn)
    assert finding["kind"] == "dirty_return"  # the agent has read the pool's own


def test_a_lock_that_ends_is_not_told(apps, postgres):
    """Unlocked by the pool's own reset, whoever returned the connection."""
    source = APP.replace(
        'print("ready"',
        "with engine.connect() as connection:\n"
        '    connection.execute(text("SELECT pg_advisory_unlock_all()"))\n'
        'print("ready"',
    )
    apps.start(source, "job.py", postgres.url(), "17")
    stop = threading.Event()
    for _ in range(3):
        assert findings(apps) == []
        stop.wait(0.6)
