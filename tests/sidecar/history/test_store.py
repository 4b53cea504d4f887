"""The store: what is opened, what is made, what is refused."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import inspect, update

from poolwatch.errors import ForbiddenError, UsageError
from poolwatch.sidecar.history import partitions, schema
from poolwatch.sidecar.history.store import AwayError, open_store, place


def refused(url, *, write=True) -> str:
    """The sentence with which a store is refused; it never shows the password."""
    with pytest.raises(UsageError) as caught:
        open_store(url, write=write)
    sentence = str(caught.value)
    assert "geheim" not in sentence
    assert "\n" not in sentence
    assert caught.value.exit_code == 2
    return sentence


def test_a_store_is_made_once_and_opened_again(url):
    for _ in range(2):
        engine = open_store(url, write=True)
        assert set(inspect(engine).get_table_names()) >= {*schema.metadata.tables}
        engine.dispose()
    open_store(url, write=False).dispose()


def test_a_reader_makes_nothing(url, tmp_path):
    assert "there is no history in" in refused(url, write=False)
    assert list(tmp_path.iterdir()) == []


def test_a_newer_store_is_refused(url):
    engine = open_store(url, write=True)
    with engine.begin() as connection:
        connection.execute(update(schema.store).values(version=7, made_by="9.9"))
    engine.dispose()
    for write in (True, False):
        assert "has version 7, this poolwatch reads version 1" in refused(
            url, write=write
        )


def test_the_default_file_is_for_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    open_store(None, write=True).dispose()
    path = tmp_path / "state" / "poolwatch" / "history.db"
    assert place(None) == str(path)
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent)]
    assert modes == [0o600, 0o700]
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_foreign_files_are_refused_and_left_alone(tmp_path):
    text = tmp_path / "text.db"
    text.write_text("notes")
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE incidents (a)")
    connection.close()
    before = [text.read_bytes(), foreign.read_bytes()]
    assert "is not a SQLite database" in refused(f"sqlite:///{text}")
    assert "is the database of another program" in refused(f"sqlite:///{foreign}")
    assert "is a directory" in refused(f"sqlite:///{tmp_path}")
    assert "is not a regular file" in refused("sqlite:////dev/null")
    assert "cannot be opened" in refused(f"sqlite:///{text}/history.db")
    assert before == [text.read_bytes(), foreign.read_bytes()]


@pytest.mark.parametrize("value", ["text", b"\xff", 1e300, -1e300])
@pytest.mark.parametrize("column", ["pid", "last_seen_at", "ended_at", "program"])
def test_values_of_a_wrong_type_are_refused(tmp_path, column, value):
    path = tmp_path / "history.db"
    open_store(f"sqlite:///{path}", write=True).dispose()
    row = dict.fromkeys([each.name for each in schema.processes.c], 1)
    row |= dict.fromkeys(("host", "program", "name", "python", "poolwatch"), "x")
    row[column] = value
    names, places = ", ".join(row), ", ".join("?" * len(row))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            f"INSERT INTO processes ({names}) VALUES ({places})", [*row.values()]
        )
        connection.commit()
    if column == "program" and isinstance(value, (str, float)):
        open_store(f"sqlite:///{path}", write=False).dispose()  # SQLite makes it a text
    else:
        assert "is damaged: processes has values" in refused(f"sqlite:///{path}")


def test_an_empty_file_becomes_a_store(tmp_path):
    path = tmp_path / "history.db"
    path.touch()
    open_store(f"sqlite:///{path}", write=True).dispose()
    assert path.stat().st_size


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://u:geheim@h/d", "not in mysql"),
        ("history.db", "cannot be read"),
        ("postgresql://u:geheim@h:port/d", "cannot be read"),
        ("postgresql://u:geheim@h/d?colour=blue", "the DSN cannot be read"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_urls_that_are_none(url, words):
    assert words in refused(url)


def test_a_server_that_is_away_is_told_apart():
    with pytest.raises(AwayError, match="no PostgreSQL answers") as caught:
        open_store("postgresql://u:geheim@127.0.0.1:1/d", write=True)
    assert "geheim" not in str(caught.value)


def test_a_locked_file_is_away(tmp_path, monkeypatch):
    monkeypatch.setattr("poolwatch.sidecar.history.store._BUSY_S", 0.01)
    path = tmp_path / "history.db"
    open_store(f"sqlite:///{path}", write=True).dispose()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(AwayError, match="database is locked"):
            open_store(f"sqlite:///{path}", write=True)


_AS_NOBODY = """
import os, sys
from poolwatch.sidecar.history.store import open_store
os.setuid(65534)
for write in (True, False):
    try:
        open_store(sys.argv[1], write=write)
    except Exception as error:
        print(type(error).__name__, error.exit_code)
"""


@pytest.mark.processes
@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_no_permission(tmp_path):
    path = tmp_path / "history.db"
    open_store(f"sqlite:///{path}", write=True).dispose()
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, f"sqlite:///{path}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.split() == ["ForbiddenError", "4"] * 2, done.stderr


@pytest.mark.postgres
class TestPostgres:
    """What only PostgreSQL can refuse."""

    def test_a_wrong_password(self, start_postgres):
        server = start_postgres()
        server.execute("CREATE ROLE web LOGIN PASSWORD 'right'")
        hba = server.directory / "pg_hba.conf"
        hba.write_text("host all web 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
        server.control("reload")
        web = server.over_tcp().as_role("web", "geheim")
        assert "refused the password" in refused(web.url())

    def test_a_missing_database(self, postgres):
        url = postgres.url().replace("/postgres?", "/nowhere?")
        assert "no database of that name" in refused(url)

    def test_a_role_that_may_not(self, postgres):
        postgres.execute("CREATE ROLE guest LOGIN")
        postgres.execute("CREATE DATABASE closed")
        url = postgres.as_role("guest").url().replace("/postgres?", "/closed?")
        with pytest.raises(ForbiddenError, match="may not"):
            open_store(url, write=True)

    def test_a_server_without_a_slot_is_away(self, postgres):
        postgres.execute("CREATE ROLE crowd LOGIN CONNECTION LIMIT 0")
        with pytest.raises(AwayError, match="no connection slot left"):
            open_store(postgres.as_role("crowd").url(), write=True)

    def test_a_sidecar_that_hangs_holds_up_no_other(self, postgres):
        postgres.execute("CREATE DATABASE hung")
        url = postgres.url().replace("/postgres?", "/hung?")
        open_store(url, write=True).dispose()
        engine = open_store(url, write=True)
        with engine.begin() as connection:
            partitions.lock(connection)
            limited = f"{url}&options=-cstatement_timeout%3D2s"
            open_store(limited, write=True).dispose()
        engine.dispose()

    def test_tables_of_another_program(self, postgres):
        postgres.execute("CREATE DATABASE taken")
        url = postgres.url().replace("/postgres?", "/taken?")
        engine = open_store(url, write=True)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE poolwatch_store")
        engine.dispose()
        assert "of another program" in refused(url)

    def test_many_sidecars_start_at_once(self, postgres):
        postgres.execute("CREATE DATABASE shared")
        url = postgres.url().replace("/postgres?", "/shared?")
        failures = []

        def start() -> None:
            try:
                open_store(url, write=True).dispose()
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        engine = open_store(url, write=True)
        with engine.begin() as connection:
            assert len(partitions.days_kept(connection)) == 2
        engine.dispose()
