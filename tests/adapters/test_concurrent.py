"""Two threads or tasks on one connection: seen when their statements overlap."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

import pytest
from fix_core import Look
from helpers import until
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool

QUERY = text("SELECT 'stay'")


@pytest.fixture
def released():
    """Until then, ``QUERY`` stays inside its statement."""
    gate = threading.Event()
    yield gate
    gate.set()


def staying(gate):
    """A class of connections. A function of SQLite's would not do: its lock is held
    meanwhile, and the other thread may wait for that with the GIL.
    """

    class Cursor(sqlite3.Cursor):
        def execute(self, sql, *parameters):
            if "stay" in sql:
                gate.wait(30)
            return super().execute(sql, *parameters)

    class Connection(sqlite3.Connection):
        def cursor(self, factory=Cursor):
            return super().cursor(factory)

    return Connection


@pytest.fixture
def engine(instrument, tmp_path, released):
    made = create_engine(
        f"sqlite:///{tmp_path}/app.db",
        poolclass=QueuePool,
        connect_args={"check_same_thread": False, "factory": staying(released)},
    )
    instrument(made, name="orders")
    yield made
    made.dispose()


def found():
    return [f for f in Look().process.findings if f.kind == "concurrent_use"]


def running():
    return any((hold.in_sql_s or 0) > 0 for hold in Look().process.holds)


def test_a_statement_during_another_one(engine, released):
    def first():
        connection.execute(QUERY).all()

    def second():
        connection.execute(text("SELECT 1")).all()

    with engine.connect() as connection:
        threads = [threading.Thread(target=each) for each in (first, second)]
        threads[0].start()
        until(running)
        assert found() == []
        threads[1].start()
        until(found)
        released.set()
        for thread in threads:
            thread.join()
    (finding,) = found()
    assert [site.function for site in finding.sites] == ["first", "second"]
    assert finding.text.startswith("two threads use one connection of pool 'orders'")


def test_a_commit_during_a_statement(engine, released):
    with engine.connect() as connection:
        thread = threading.Thread(target=lambda: connection.execute(QUERY).all())
        thread.start()
        until(running)
        commit = threading.Thread(target=connection.commit)
        commit.start()
        until(found)
        released.set()
        thread.join()
        commit.join()


def test_one_after_the_other_is_no_fault(engine, released):
    """Whoever has it, as long as nobody else has."""
    released.set()
    with engine.connect() as connection:
        for _ in range(3):
            thread = threading.Thread(target=lambda: connection.execute(QUERY).all())
            thread.start()
            thread.join()
            connection.execute(QUERY).all()
            connection.commit()
    assert found() == []


def test_a_statement_inside_a_statement(engine, released):
    """The same thread sends both: a function of the database asks the database."""
    released.set()
    with engine.connect() as connection:
        raw = connection.connection.dbapi_connection

        def ask():
            with engine.connect() as other:
                return other.execute(text("SELECT 1")).scalar()

        raw.create_function("ask", 0, ask)
        assert connection.execute(text("SELECT ask()")).scalar() == 1
    assert found() == []


def test_tasks(instrument, tmp_path):
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    instrument(engine)

    async def look(connection):
        await connection.execute(text("SELECT 1"))

    async def in_turns(connection):
        lock = asyncio.Lock()

        async def wait_and_look():
            async with lock:
                await look(connection)

        await asyncio.gather(*(wait_and_look() for _ in range(5)))

    async def main():
        async with engine.connect() as connection:
            await in_turns(connection)
            assert found() == []
            await asyncio.gather(*(look(connection) for _ in range(5)))
        await engine.dispose()

    asyncio.run(main())
    (finding,) = found()
    assert finding.text.startswith("two tasks")
    assert [site.function for site in finding.sites] == ["look"]
