"""Every form of DSN; a server that stops and starts again."""

from __future__ import annotations

import pytest

from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.errors import ServerViewError
from poolwatch.postgres.dsn_reader import DsnReader, environment_dsn, libpq_parameters


@pytest.mark.parametrize(
    ("dsn", "words"),
    [
        ("host=h dbname=d user=u", {"host": "h", "dbname": "d", "user": "u"}),
        ("", {}),
        (
            "postgresql://u:p%40ss@h:1/d",
            {"user": "u", "password": "p@ss", "host": "h", "port": "1", "dbname": "d"},
        ),
        ("postgres://h/d", {"host": "h", "dbname": "d"}),
        (
            "postgresql://h1:1,h2:2/d?target_session_attrs=any",
            {
                "host": "h1,h2",
                "port": "1,2",
                "dbname": "d",
                "target_session_attrs": "any",
            },
        ),
        (
            "postgresql://u@/d?host=/run/x",
            {"user": "u", "dbname": "d", "host": "/run/x"},
        ),
        (
            "postgresql+asyncpg://u:p%40s%25s@h:1/d?ssl=require&command_timeout=9",
            {
                "user": "u",
                "password": "p@s%s",
                "host": "h",
                "port": "1",
                "dbname": "d",
                "sslmode": "require",
            },
        ),
        (
            "postgresql+psycopg://u@/d?host=h1:1&host=h2:2&plugin=poolwatch",
            {"user": "u", "dbname": "d", "host": "h1,h2", "port": "1,2"},
        ),
        (
            "postgresql://u@/d?host=h1:1&host=h2:2",
            {"user": "u", "dbname": "d", "host": "h1,h2", "port": "1,2"},
        ),
    ],
)
def test_a_dsn_as_libpq_keywords(dsn, words):
    assert libpq_parameters(dsn) == words


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_urls_of_applications_need_no_change(postgres, postgres_tcp, driver):
    for server in (postgres, postgres_tcp):
        reader = DsnReader(server.url(driver), connection_facts)
        assert reader.read([]).address == f"{server.host}:{server.port}"
        reader.close()


def test_pgpass_and_libpqs_environment_are_honoured(
    start_postgres, tmp_path, monkeypatch
):
    server = start_postgres()
    server.execute("create role app login password 'from-the-file'")
    (server.directory / "pg_hba.conf").write_text(
        "local all all trust\nhost all all all scram-sha-256\n"
    )
    server.execute("select pg_reload_conf()")
    file = tmp_path / "pgpass"
    file.write_text("127.0.0.1:*:*:app:from-the-file\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(server.port))
    monkeypatch.setenv("PGUSER", "app")
    monkeypatch.setenv("PGDATABASE", "postgres")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "9")
    dsn = environment_dsn()
    assert dsn == ""
    reader = DsnReader(dsn, connection_facts)
    assert reader.read([]).sessions == 1
    assert "connect_timeout=9" not in reader._connection.dbapi_connection.dsn
    reader.close()


@pytest.mark.parametrize(
    ("environ", "dsn"),
    [
        ({}, None),
        ({"DATABASE_URL": "postgresql+asyncpg://h/d"}, "postgresql+asyncpg://h/d"),
        ({"DATABASE_URL": "postgres://h/d"}, "postgres://h/d"),
        ({"DATABASE_URL": "mysql://h/d"}, None),
        ({"DATABASE_URL": "sqlite://", "PGSERVICE": "s"}, ""),
        ({"PGPASSWORD": "x"}, None),
    ],
)
def test_the_dsn_of_the_environment(environ, dsn):
    assert environment_dsn(environ) == dsn


def test_a_server_that_comes_back(start_postgres):
    """The error is repeated until the next attempt is due, which succeeds."""
    now = [0.0]
    server = start_postgres()
    reader = DsnReader(server.dsn, connection_facts, clock=lambda: now[0])
    before = reader.read([]).identity
    server.stop()
    with pytest.raises(ServerViewError, match="closed the connection"):
        reader.read([])
    server.start()
    with pytest.raises(ServerViewError, match="closed the connection"):
        reader.read([])
    now[0] = 1.0
    after = reader.read([]).identity
    assert after.split("/")[0] == before.split("/")[0]
    assert after != before
    reader.close()


def test_attempts_back_off_up_to_a_limit(postgres):
    now = [0.0]
    waits = []
    reader = DsnReader("host=127.0.0.1 port=1", connection_facts, clock=lambda: now[0])
    for _ in range(6):
        with pytest.raises(ServerViewError):
            reader.read([])
        waits.append(reader._next_attempt_at - now[0])
        now[0] = reader._next_attempt_at
    assert waits == [1, 2, 4, 8, 15, 15]


def test_one_connection_for_many_refreshes(postgres):
    reader = DsnReader(postgres.dsn, connection_facts)
    first = reader.read([]).identity
    connection = reader._connection.dbapi_connection
    assert reader.read([]).identity == first
    assert reader._connection.dbapi_connection is connection
    reader.close()
    assert connection.closed
