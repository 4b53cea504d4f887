"""Every error is one sentence without a secret in it."""

from __future__ import annotations

import pytest

from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.errors import (
    MissingExtraError,
    PoolwatchError,
    ServerDownError,
    ServerViewError,
)
from poolwatch.postgres import dsn_reader
from poolwatch.postgres.agent_reader import AgentReader
from poolwatch.postgres.dsn_reader import DsnReader
from poolwatch.postgres.errors import as_failure

SECRET = "s3cret-p%ss w0rd"
HBA = """
local all all trust
host all all 127.0.0.1/32 scram-sha-256
"""


@pytest.fixture
def guarded(start_postgres):
    """Three slots, one of them for superusers; passwords over TCP."""
    server = start_postgres(max_connections=4, superuser_reserved_connections=1)
    (server.directory / "pg_hba.conf").write_text(HBA)
    server.execute(f"create role app login password '{SECRET}'")
    server.execute("select pg_reload_conf()")
    return server.over_tcp().as_role("app", SECRET)


def read(server, driver):
    """The error message of reading this server; None if it succeeds."""
    if driver == "viewer":
        reader = DsnReader(server.dsn, connection_facts)
    else:
        module = pytest.importorskip(driver)
        if driver == "pg8000.dbapi":
            given = {"database": server.database}
        else:
            given = {"dbname": server.database}
        reader = AgentReader(
            lambda: module.connect(
                host=server.host,
                port=server.port,
                user=server.user,
                password=server.password,
                **given,
            ),
            connection_facts,
        )
    try:
        reader.read([])
    except ServerViewError as error:
        sentence = str(error)
    else:
        sentence = None
    reader.close()
    return sentence


DRIVERS = ["viewer", "psycopg2", "psycopg", "pg8000.dbapi"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_refusal_of_a_server(guarded, driver):
    """Password, database, role, no free slot, stopped: each has its own sentence."""
    import psycopg2

    assert read(guarded, driver) is None
    wrong = guarded.as_role("app", "wr0ng-" + SECRET)
    assert read(wrong, driver) == "PostgreSQL refused the password"
    nobody = guarded.as_role("nobody", SECRET)
    assert read(nobody, driver) == "PostgreSQL refused the password"
    none = guarded.as_role("app")
    if driver != "pg8000.dbapi":  # which sends the word None
        assert read(none, driver) == "PostgreSQL asks for a password and none was given"
    missing = replace_database(guarded, "nowhere")
    assert read(missing, driver) == "PostgreSQL has no database of that name"
    taken = [psycopg2.connect(guarded.dsn) for _ in range(3)]
    assert read(guarded, driver) == "PostgreSQL has no connection slot left"
    for connection in taken:
        connection.close()
    guarded.stop()
    assert read(guarded, driver) == "no PostgreSQL answers at this address"


def replace_database(server, name):
    from dataclasses import replace

    return replace(server, database=name)


def test_a_role_that_pg_hba_refuses(start_postgres):
    server = start_postgres()
    (server.directory / "pg_hba.conf").write_text("local all postgres trust\n")
    server.execute("select pg_reload_conf()")
    sentence = "PostgreSQL refused this role or this address (see its pg_hba.conf)"
    assert read(server.as_role("stranger"), "viewer") == sentence
    assert read(server.over_tcp(), "viewer") == sentence


def test_a_host_that_does_not_exist():
    reader = DsnReader("postgresql://u:p@no-such-host.invalid/d", connection_facts)
    with pytest.raises(ServerViewError) as caught:
        reader.read([])
    assert str(caught.value) in {
        "the host name of the database cannot be resolved",
        "PostgreSQL has not answered in time",
    }


def test_a_server_that_accepts_and_stays_silent():
    """connect_timeout is ours unless the DSN has one."""
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host, port = silent.getsockname()
        dsn = f"host={host} port={port} user=u password=hunter2 connect_timeout=2"
        with pytest.raises(ServerViewError, match="has not answered in time"):
            DsnReader(dsn, connection_facts).read([])


@pytest.mark.parametrize(
    "dsn",
    [
        "hunter2",
        "host=h hunter2",
        "hunter2=x password=hunter2",
        "postgresql://u:hunter2@h:hunter2/d",
        "postgresql://u:hunter2@h/d?hunter2=hunter2",
        "postgresql+asyncpg://u:hunter2@h:hunter2/d",
        "postgresql+hunter2://u:hunter2@127.0.0.1:1/d",
        "postgresql://u:hun@ter2@127.0.0.1:1/d",
        "host='hunter2",
        "mysql://u:hunter2@h/d",
        "service=hunter2",
        "host=127.0.0.1 port=1 sslmode=hunter2",
    ],
)
def test_a_dsn_that_cannot_be_used_is_not_quoted(dsn):
    """Parts of a mistyped password end up in host names and options."""
    with pytest.raises(PoolwatchError) as caught:
        DsnReader(dsn, connection_facts).read([])
    said = str(caught.value)
    assert "hunter2" not in said
    assert "ter2" not in said
    assert "\n" not in said
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_of_an_unknown_error_only_the_class_is_named():
    class TokenBrokerError(Exception):
        pass

    said = str(as_failure(TokenBrokerError("token abc123 was refused by https://x")))
    assert said == "PostgreSQL could not be read (TokenBrokerError)"


def test_a_dsn_needs_a_driver(monkeypatch):
    """A missing extra is one sentence that says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "psycopg2", None)
    monkeypatch.setitem(__import__("sys").modules, "psycopg2.extensions", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'poolwatch\[tui\]'"):
        DsnReader("host=h", connection_facts).read([])
    monkeypatch.setitem(__import__("sys").modules, "sqlalchemy.engine.url", None)
    with pytest.raises(MissingExtraError, match="needs sqlalchemy"):
        dsn_reader.libpq_parameters("postgresql+asyncpg://h/d")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("FATAL:  the database system is starting up", "starting up"),
        ("FATAL:  the database system is shutting down", "shutting down"),
        ("FATAL:  the database system is not yet accepting connections", "not yet"),
        ("connection refused\n\tIs the server running", "connection refused"),
        ('on socket "/x/.s.PGSQL.1" failed: No such file or directory', "no such file"),
        ("could not connect: No route to host", "no route to host"),
        ("[Errno 111] Connect call failed ('127.0.0.1', 1)", "connect call failed"),
        ("server closed the connection unexpectedly", "server closed the connection"),
        ("connection timeout expired", "connection timeout expired"),
    ],
)
def test_errors_of_a_server_that_is_down(said, words):
    """The server's own message is quoted only if it cannot contain a secret."""
    failure = as_failure(OSError(f"host hunter2: {said}"))
    assert isinstance(failure, ServerDownError)
    assert words in failure.words
    assert "hunter2" not in failure.words


@pytest.mark.parametrize(
    "said",
    [
        "FATAL:  sorry, too many clients already",
        "FATAL:  remaining connection slots are reserved for roles with ...",
        'FATAL:  too many connections for role "app"',
        'FATAL:  password authentication failed for user "app"',
        'FATAL:  role "app" does not exist',
        'FATAL:  database "shop" does not exist',
        'FATAL:  no pg_hba.conf entry for host "1.2.3.4"',
        "permission denied for view pg_stat_activity",
        "canceling statement due to statement timeout",
        'could not translate host name "db" to address: Name or service not known',
        'private key file "/x" is not accessible: No such file or directory',
        "server does not support SSL, but SSL was required",
        'definition of service "x" not found',
    ],
)
def test_errors_of_a_server_that_is_up_or_was_not_reached(said):
    assert not isinstance(as_failure(OSError(said)), ServerDownError)
