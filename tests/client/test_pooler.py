"""Holds behind a real PgBouncer: with its console joined, without it unknown."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import UTC, datetime
from functools import partial

import fakes
import pytest
from helpers import LONG_S, until

from poolwatch.client.calls import Calls
from poolwatch.client.client import Client as AgentClient
from poolwatch.client.live import LiveSource
from poolwatch.client.pooler import Pooler
from poolwatch.client.view import CarriedState, View
from poolwatch.commands.main import main
from poolwatch.diagnosis.sessions import Session
from poolwatch.errors import RefusedError
from poolwatch.model import Connection
from poolwatch.postgres.pgbouncer import Client, Link
from poolwatch.tui.state.chosen import chosen

pytestmark = [pytest.mark.postgres, pytest.mark.processes]

APP = """
import sys, threading
from sqlalchemy import create_engine, text
import poolwatch

engine = create_engine(sys.argv[1])
poolwatch.instrument(engine, name="shop")
begun = threading.Semaphore(0)
def work(name):
    with engine.connect() as connection:
        begun.release()
        connection.execute(text(f"SELECT pg_backend_pid() AS {name}"))
        begun.release()
        end.wait()
end = threading.Event()
for number in range(4):
    name = f"w{number}"
    threading.Thread(target=work, args=(name,), name=name, daemon=True).start()
for _ in range(6):  # four holds, two of them with a server connection
    begun.acquire()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def look(socket_dir):
    """``look(dsn=..., pgbouncer=...)``: the process as a viewer sees it."""

    def look(**options):
        with closing(
            LiveSource(AgentClient(socket_dir), environ={}, **options)
        ) as source:
            (process,) = source.snapshot().processes
            return process

    return look


def pids(process):
    return [each.backend_pid for each in process.holds]


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_holds_are_joined_by_the_console(apps, look, postgres, start_pgbouncer, mode):
    """Four clients, two server connections: two holds have a session."""
    bouncer = start_pgbouncer(postgres, mode)
    apps.start(APP, "app.py", bouncer.url())
    assert pids(look()) == pids(look(dsn=postgres.dsn)) == [None] * 4
    process = look(dsn=postgres.dsn, pgbouncer=bouncer.console)
    joined = [hold for hold in process.holds if hold.server is not None]
    assert len({hold.backend_pid for hold in joined}) == len(joined) == 2
    for hold in joined:
        assert hold.server.state == "idle in transaction"
        assert hold.server.query == f"SELECT pg_backend_pid() AS {hold.thread}"
    assert [pid for pid in pids(process) if pid] == [h.backend_pid for h in joined]
    joined_ids = {hold.id for hold in joined}

    def queued():
        holds = look(dsn=postgres.dsn, pgbouncer=bouncer.console).holds
        return {h.id for h in holds if "for a server conn" in " ".join(h.evidence)}

    everybody = {hold.id for hold in process.holds}
    until(lambda: queued() == everybody - joined_ids)
    postgres.execute("DROP ROLE IF EXISTS curious; CREATE ROLE curious LOGIN")
    curious = postgres.as_role("curious")
    process = look(dsn=curious.dsn, pgbouncer=bouncer.console)
    assert pids(process) == [None] * 4
    assert "grant it pg_read_all_stats" in process.servers[0].error


def test_the_pooler_is_told(apps, look, postgres, start_pgbouncer):
    """All its server connections are in use: that is no server that is down. Over a
    Unix socket, the console cannot tell one client from another.
    """
    bouncer = start_pgbouncer(postgres)
    apps.start(APP, "app.py", bouncer.over_socket().url())
    done = apps.poolwatch("check")
    assert done.returncode == 0, done.stdout
    assert "pooler such as PgBouncer" in done.stderr
    assert "give --dsn and --pgbouncer" in done.stderr
    shown = apps.poolwatch("ps").stdout
    assert "shop (QueuePool, behind a pooler)" in shown
    assert "pooler such as PgBouncer" in shown
    process = look(dsn=postgres.dsn, pgbouncer=bouncer.console)
    assert pids(process) == [None] * 4
    assert "its console proves no server session" in process.servers[0].error


def test_a_pid_that_a_stranger_has_is_not_shown(apps, look, postgres, start_proxy):
    """The pooler made up a number that is the pid of another session."""
    with closing(postgres.connect()) as stranger:
        pooler = start_proxy(postgres, pid=stranger.info.backend_pid)
        apps.start(APP.replace("range(6)", "range(8)"), "app.py", pooler.url())
        for _ in range(2):
            assert pids(look()) == [None] * 4


def test_a_link_in_session_mode_must_last_while_the_server_is_read():
    facts = Connection(60.0, 0.0, "10.0.0.2:6432", 40_000, client_host="10.0.0.9")
    pool = fakes.pool(behind_pooler=True)
    process = fakes.process(fakes.hold(connection=facts), pools=(pool,))
    ends = "10.0.0.9:40000", "10.0.0.2:6432"
    first = Link(77, 50_000, datetime(2026, 1, 1, tzinfo=UTC), 60.0, session=True)
    answers = [
        (first._replace(age_s=61.0), {"h1"}),
        (first._replace(pid=78), set()),
        (first._replace(session=False), set()),
        (None, set()),
    ]
    for later, expected in answers:
        console = iter([{ends: Client(60.0, first)}, {ends: Client(60.0, later)}])
        pooler = Pooler("", Calls())
        pooler._console.read = partial(next, console)
        now = time.monotonic()
        view = View(process, now, now, CarriedState(), (pool.id,))
        views = pooler.with_links({"a": view}, LONG_S)
        assert views["a"].links == {"h1": first}
        assert set(pooler.confirmed(views, LONG_S)["a"].links) == expected


def test_its_actions_are_refused():
    """The session may be another client's by the time of the action."""
    pool = fakes.pool(behind_pooler=True)
    hold = fakes.hold(backend_pid=77, server=fakes.server_row())
    process = fakes.process(hold, pools=(pool,))
    with pytest.raises(RefusedError, match="pooler"):
        chosen(
            Session(77, process, hold=hold),
            fakes.server_status(),
            fakes.snapshot(process),
            (0.0, 0.0),
        )


def test_one_sentence_for_what_cannot_be(capsys):
    for options, sentence in {
        ("--pgbouncer", "host=pooler"): "--pgbouncer needs --dsn",
        ("--dsn", "host=db", "--pgbouncer", "nonsense"): "the DSN cannot be read",
    }.items():
        assert main(["ps", *options]) == 2
        assert sentence in capsys.readouterr().err
