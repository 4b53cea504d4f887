"""Which session serves a hold behind PgBouncer: proven by both sides, or unknown."""

from __future__ import annotations

from dataclasses import replace

import fakes
import pytest

from poolwatch.errors import ServerViewError
from poolwatch.model import Backend, Connection, LockRequest, ServerRow
from poolwatch.postgres.pgbouncer import (
    Console,
    clients,
    links_of,
    sessions_of,
    with_sessions,
)
from poolwatch.protocol.records import ServerReading

NOW = "2026-11-30 03:00:00 UTC"
A_MINUTE_AGO = "2026-11-30 02:59:00 UTC"
SESSION = [{"database": "shop", "user": "web", "pool_mode": "session"}]
TRANSACTION = [{"database": "shop", "user": "web", "pool_mode": "transaction"}]
AT_ONCE = (0.0, 0.01)
ROW = ServerRow("idle in transaction", 3.0, 4.0, None, "SELECT ?", ())
CONNECTION = Connection(
    age_s=60.0,
    connect_s=0.02,
    address="10.0.0.2:6432",
    client_port=40_000,
    client_host="10.0.0.9",
)


def socket(kind, **changes):
    """A row of SHOW SOCKETS."""
    common = {"type": kind, "database": "shop", "user": "web"}
    times = {"connect_time": A_MINUTE_AGO, "request_time": NOW}
    own = {"local_addr": "10.0.0.2"}
    ends = (
        {"addr": "10.0.0.9", "port": 40_000, "local_port": 6432, "remote_pid": 0}
        if kind == "C"
        else {"addr": "10.0.0.5", "port": 5432, "local_port": 50_000, "remote_pid": 77}
    )
    return {**common, **times, **own, **ends, **changes}


def client(**changes):
    return socket("C", **{"ptr": "c1", "link": "s1", **changes})


def server(**changes):
    return socket("S", **{"ptr": "s1", "link": "c1", **changes})


def backend(**changes):
    facts = {"pid": 77, "age_s": 60.0, "client_port": 50_000, "application": None}
    return Backend(**{**facts, "row": ROW, **changes})


def process(connection=CONNECTION, **changes):
    hold = fakes.hold(pool="p", connection=connection)
    pool = fakes.pool("p", behind_pooler=True)
    return fakes.process(hold, pools=(replace(pool, **changes),), servers=())


def hold_of(sockets, *backends, pools=TRANSACTION, app=None, window=AT_ONCE):
    app = app or process()
    links = links_of(app, clients(pools, sockets), window)
    reading = ServerReading("a/1", "18.4", 3, 100, backends or (backend(),))
    found = sessions_of(links, reading, window[1])
    (hold,) = with_sessions(app, links, found, window).holds
    return hold


def test_a_transaction_is_joined():
    hold = hold_of([client(), server()])
    assert (hold.backend_pid, hold.server, hold.may_have_ended) == (77, ROW, False)


@pytest.mark.parametrize(
    "sockets",
    [
        [],
        [server()],
        [client(link=""), server()],
        [client(link="s2"), server()],
        [client(port=40_001), server()],
        [client(addr="10.0.0.8"), server()],
        [client(local_port=6433), server()],
        [client(local_addr="10.0.0.3"), server()],
        [client(connect_time="2026-11-30 02:59:05 UTC"), server()],
        [client(), server(remote_pid=78)],
        [client(), server(local_port=50_001)],
        [client(), server(addr="unix")],
        [client(), server(connect_time="2026-11-30 02:58:55 UTC")],
    ],
)
def test_without_each_proof_it_is_unknown(sockets):
    """Another client, another PgBouncer, another server, no server at the moment."""
    console = {
        "request_time": NOW,
        "type": "C",
        "database": "pgbouncer",
        "addr": "unix",
    }
    console = {**client(), **console, "link": ""}
    hold = hold_of([*sockets, console])
    assert (hold.backend_pid, hold.server) == (None, None)


def test_a_younger_transaction_may_be_that_of_another_client():
    young = backend(row=replace(ROW, xact_age_s=0.2))
    sockets = [client(), server()]
    assert hold_of(sockets, young).server is not None
    assert hold_of(sockets, young, window=(0.2, 0.3)).server is None
    idle = backend(row=ServerRow("idle", 9.0, None, None, "SELECT ?", ()))
    assert hold_of(sockets, idle).server is None
    assert hold_of(sockets, idle, pools=SESSION).server is not None


def test_a_pool_without_a_pooler_is_left_alone():
    direct = process(behind_pooler=False)
    assert hold_of([client(), server()], app=direct).server is None


def test_a_lock_of_an_earlier_user_is_only_known_in_session_mode():
    lock = LockRequest(None, None, 9.0)
    app = process()
    app = replace(app, holds=(replace(app.holds[0], earlier_lock=lock),))
    sockets = [client(), server()]
    assert hold_of(sockets, app=app).earlier_lock is None
    assert hold_of(sockets, app=app, pools=SESSION).earlier_lock == lock


def test_version_6_addresses():
    connection = replace(CONNECTION, client_host="fe80::9", address="[fe80::2]:6432")
    sockets = [client(addr="fe80::9", local_addr="fe80::2"), server()]
    assert hold_of(sockets, app=process(connection)).server == ROW


def test_a_console_that_cannot_be_read_is_one_sentence(postgres, start_pgbouncer):
    bouncer = start_pgbouncer(postgres)
    sentences = {
        "host=127.0.0.1 port=1": "no PgBouncer answers at this address",
        postgres.dsn: "the server at this address has no such console: it is not "
        "PgBouncer",
        bouncer.dsn: "the role may not use it (see stats_users of PgBouncer)",
    }
    for dsn, sentence in sentences.items():
        with pytest.raises(ServerViewError) as caught:
            Console(dsn).read()
        assert str(caught.value) == f"PgBouncer's console: {sentence}"


def test_a_restarted_pgbouncer_is_read_again(postgres, start_pgbouncer):
    bouncer = start_pgbouncer(postgres)
    console = Console(bouncer.console)
    assert len(console.read()) == 1  # itself
    console._connection.close()
    with pytest.raises(ServerViewError):
        console.read()
    assert len(console.read()) == 1
    console.close()
