"""The server's connection is made the engine's way, and its pool knows nothing."""

from __future__ import annotations

import gc
import socket
import ssl
import sys

import pytest
import sqlalchemy as sa
from psycopg2.pool import AbstractConnectionPool
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from poolwatch.adapters import sync_driver
from poolwatch.adapters.asyncpg_pool.connect import libpq_parameters
from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.adapters.pg8000.connect import libpq_to_pg8000
from poolwatch.adapters.sqlalchemy.connect import server_connect
from poolwatch.errors import ServerViewError
from poolwatch.postgres.agent_reader import AgentReader
from poolwatch.runtime.libraries import driver_named

SYNC = ["psycopg2", "psycopg", "pg8000"]
ASYNC = ["asyncpg", "psycopg"]


def read(target, pids=()):
    return AgentReader(server_connect(target), connection_facts).read(list(pids))


def sync_engine(server, driver, **more):
    pytest.importorskip(driver)
    return sa.create_engine(server.url(driver), **more)


@pytest.mark.parametrize("driver", SYNC)
@pytest.mark.parametrize("poolclass", [QueuePool, NullPool, StaticPool])
def test_a_sync_engine(postgres, driver, poolclass):
    """Every pool, every driver, and no event of the pool fires."""
    engine = sync_engine(postgres, driver, poolclass=poolclass)
    events = []
    for name in ("connect", "first_connect", "checkout", "checkin", "close", "reset"):
        event.listen(engine, name, lambda *_, name=name: events.append(name))
    assert read(engine).version.startswith(postgres.version)
    assert read(engine.pool).version.startswith(postgres.version)
    assert events == []
    engine.dispose()


@pytest.mark.parametrize("driver", SYNC)
def test_connect_args_listeners_and_timeouts(postgres_tcp, driver):
    """What the application gives its driver is given here, and a time limit."""
    engine = sync_engine(postgres_tcp.as_role("postgres", "wrong"), driver)
    seen = []

    @event.listens_for(engine, "do_connect")
    def token(dialect, record, positional, keywords):
        assert record is None
        seen.append(dict(keywords))
        keywords["password"] = "token"

    assert read(engine).sessions
    assert seen[0]["password"] == "wrong"
    assert seen[0].get("connect_timeout") or seen[0].get("timeout")
    read(engine)
    assert seen[1] == seen[0], "the engine's own arguments stay what they are"


def test_a_listener_may_connect_by_itself(postgres):
    engine = sa.create_engine("postgresql+psycopg2://nowhere.invalid/x")
    event.listen(engine, "do_connect", lambda *_: postgres.connect())
    assert read(engine).sessions


def test_a_creator_of_the_application(postgres):
    """With and without the record that SQLAlchemy passes to it."""
    for creator in (postgres.connect, lambda record: postgres.connect()):
        engine = sa.create_engine("postgresql+psycopg2://", creator=creator)
        assert read(engine).sessions
        assert read(QueuePool(creator)).sessions


def test_a_wrapped_creator_is_not_called(postgres):
    """A measurement in the pool's path must not count our connection."""
    engine = sa.create_engine(postgres.url(), creator=postgres.connect)
    engine.pool._invoke_creator = None
    assert read(engine).sessions


async def test_an_async_engine(postgres, postgres_tcp):
    """Through a sync driver, also over TCP; the loop is not needed."""
    for server in (postgres, postgres_tcp):
        for driver in ASYNC:
            engine = create_async_engine(server.url(driver))
            async with engine.connect() as connection:
                raw = await connection.get_raw_connection()
                pid, address, port = connection_facts(raw.dbapi_connection)
                (backend,) = read(engine, [pid]).backends
                assert backend.pid == pid
                assert address == f"{server.host}:{server.port}"
                assert backend.client_port == (-1 if port is None else port)
                assert read(engine.sync_engine).address == address
            await engine.dispose()


@pytest.mark.parametrize("available", SYNC)
@pytest.mark.parametrize("driver", ASYNC)
def test_any_sync_driver_will_do(
    postgres, postgres_tcp, driver, available, monkeypatch
):
    pytest.importorskip(available)
    monkeypatch.setattr(sync_driver, "drivers", lambda: (driver_named(available),))
    for server in (postgres, postgres_tcp):
        engine = create_async_engine(server.url(driver))
        connection = server_connect(engine)()
        assert type(connection).__module__.split(".")[0].startswith(available)
        connection.close()


def test_one_that_is_loaded_comes_first(monkeypatch):
    """The application should not load a second driver for us."""
    pytest.importorskip("psycopg")
    monkeypatch.delitem(sys.modules, "psycopg2", raising=False)
    _, module = sync_driver._choose_driver(accepts_ssl_context=False)
    assert module.__name__ == "psycopg"


def test_no_sync_driver_at_all(postgres, monkeypatch):
    missing = driver_named("psycopg")._replace(connect_module="no_such_driver")
    monkeypatch.setattr(sync_driver, "drivers", lambda: (missing,))
    engine = create_async_engine(postgres.url("asyncpg"))
    with pytest.raises(ServerViewError, match="no synchronous driver"):
        read(engine)


def test_an_async_creator_cannot_be_called(postgres):
    async def creator():
        raise AssertionError

    engine = create_async_engine("postgresql+asyncpg://", async_creator=creator)
    with pytest.raises(ServerViewError, match="async_creator"):
        read(engine)


def test_tokens_for_async_engines(postgres_tcp):
    """A listener that changes arguments works, one that connects cannot."""
    server = postgres_tcp.as_role("nobody_yet")
    engine = create_async_engine(server.url("asyncpg"))

    @event.listens_for(engine.sync_engine, "do_connect")
    def token(dialect, record, positional, keywords):
        keywords["user"] = "postgres"

    assert read(engine).sessions
    event.listen(engine.sync_engine, "do_connect", lambda *_: object())
    with pytest.raises(ServerViewError, match="do_connect listener"):
        read(engine)


def test_an_engine_that_is_not_on_postgresql(tmp_path):
    file = tmp_path / "x.db"
    assert server_connect(sa.create_engine(f"sqlite:///{file}")) is None
    assert server_connect(sa.create_engine(f"sqlite:///{file}").pool) is None
    made = []

    def creator():
        import sqlite3

        made.append(sqlite3.connect(file))
        return made[-1]

    pool = QueuePool(creator)
    connect = server_connect(pool)
    for _ in range(3):
        with pytest.raises(ServerViewError, match="not recognised as PostgreSQL"):
            connect()
    assert len(made) == 1, "found out once"
    with pytest.raises(Exception, match="closed"):
        made[0].execute("select 1")


def test_dispose_is_followed_and_nothing_is_kept_alive(postgres):
    engine = sa.create_engine(postgres.url())
    connect = server_connect(engine)
    engine.dispose()
    connect().close()
    del engine
    gc.collect()
    with pytest.raises(ServerViewError, match="engine is gone"):
        connect()


@pytest.mark.parametrize("driver", SYNC)
def test_facts_agree_with_the_server(postgres, postgres_tcp, driver):
    """The port the server sees is the one we see, without asking anybody."""
    for server in (postgres, postgres_tcp):
        engine = sync_engine(server, driver)
        with engine.connect() as connection:
            facts = connection_facts(connection.connection.dbapi_connection)
            (backend,) = read(engine, [facts[0]]).backends
            assert facts[1] == f"{server.host}:{server.port}"
            assert backend.client_port == (-1 if facts[2] is None else facts[2])
        engine.dispose()


def test_facts_of_what_is_closed_or_foreign(postgres):
    """Unknown is None; nothing is raised, nothing of the driver's is closed."""
    connection = postgres.connect()
    descriptor = connection.fileno()
    connection_facts(connection)
    assert socket.fromfd(descriptor, socket.AF_UNIX, socket.SOCK_STREAM).close() is None
    connection.close()
    assert connection_facts(connection) == (None, None, None)
    assert connection_facts(object()) == (None, None, None)
    assert connection_facts(None) == (None, None, None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ssl": "verify-ca"}, {"sslmode": "verify-ca"}),
        ({"ssl": True}, {"sslmode": "verify-full", "sslrootcert": "system"}),
        ({"ssl": False}, {"sslmode": "disable"}),
        ({"host": ["a", "b"], "port": [1, 2]}, {"host": "a,b", "port": "1,2"}),
        ({"password": lambda: "called"}, {"password": "called"}),
        ({"database": "d", "command_timeout": 5}, {"dbname": "d"}),
    ],
)
def test_asyncpgs_words_in_libpqs(given, words):
    assert libpq_parameters(given) == words


def test_an_asynchronous_password_is_refused():
    async def password():
        return "p"

    with pytest.raises(ServerViewError, match="asynchronously"):
        libpq_parameters({"password": password})


def test_a_tls_context_is_never_weakened():
    """It goes to pg8000 as it is; libpq gets what is at least as strict."""
    strict, lax = ssl.create_default_context(), ssl.create_default_context()
    lax.check_hostname = False
    lax.verify_mode = ssl.CERT_NONE
    words = libpq_parameters({"ssl": strict})
    assert libpq_to_pg8000(words)["ssl_context"] is strict
    assert sync_driver.libpq_arguments(words)["sslmode"] == "verify-full"
    words = libpq_parameters({"ssl": lax})
    assert sync_driver.libpq_arguments(words)["sslmode"] == "require"
    for mode, check, verify in [
        ("require", False, ssl.CERT_NONE),
        ("verify-ca", False, ssl.CERT_REQUIRED),
        ("verify-full", True, ssl.CERT_REQUIRED),
    ]:
        context = libpq_to_pg8000({"sslmode": mode})["ssl_context"]
        assert (context.check_hostname, context.verify_mode) == (check, verify)
    assert libpq_to_pg8000({"sslmode": "disable"})["ssl_context"] is False
    assert "ssl_context" not in libpq_to_pg8000({"sslmode": "prefer"})


def test_a_creator_that_takes_from_another_pool_is_not_called():
    """The server view would take a slot of that pool, and psycopg2's never gets it
    back.
    """

    class Inner(AbstractConnectionPool):
        def __init__(self):
            """Without a server."""

        def getconn(self, key=None):
            raise AssertionError

    engine = sa.create_engine("postgresql+psycopg2://", creator=Inner().getconn)
    with pytest.raises(
        ServerViewError, match="takes its connections from another pool"
    ):
        server_connect(engine)()


def tls_arguments(driver, server):
    """What the drivers call a certificate that must be right."""
    if driver in {"asyncpg", "pg8000"}:
        context = ssl.create_default_context(cafile=server.certificate)
        return {"ssl" if driver == "asyncpg" else "ssl_context": context}
    return {"sslmode": "verify-full", "sslrootcert": str(server.certificate)}


IS_TLS = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"


@pytest.mark.parametrize("driver", SYNC)
def test_tls(postgres_tls, driver):
    """The server view's own connection is as strict, and the facts stay right."""
    arguments = tls_arguments(driver, postgres_tls)
    engine = sync_engine(postgres_tls, driver, connect_args=arguments)
    with engine.connect() as connection:
        assert connection.scalar(sa.text(IS_TLS))
        pid, address, port = connection_facts(connection.connection.dbapi_connection)
        (backend,) = read(engine, [pid]).backends
        assert (backend.pid, backend.client_port) == (pid, port)
        assert address == f"127.0.0.1:{postgres_tls.port}"
    assert is_tls(server_connect(engine)())
    engine.dispose()


async def test_tls_asyncpg(postgres_tls, monkeypatch):
    """Its context goes to pg8000 as it is."""
    monkeypatch.setattr(sync_driver, "drivers", lambda: (driver_named("pg8000"),))
    arguments = tls_arguments("asyncpg", postgres_tls)
    engine = create_async_engine(postgres_tls.url("asyncpg"), connect_args=arguments)
    async with engine.connect() as connection:
        assert await connection.scalar(sa.text(IS_TLS))
        raw = await connection.get_raw_connection()
        pid, _, port = connection_facts(raw.dbapi_connection)
        (backend,) = read(engine, [pid]).backends
        assert (backend.pid, backend.client_port) == (pid, port)
    assert is_tls(server_connect(engine)())
    await engine.dispose()


def is_tls(connection):
    cursor = connection.cursor()
    cursor.execute(IS_TLS)
    (row,) = cursor.fetchall()
    connection.close()
    return row[0]
