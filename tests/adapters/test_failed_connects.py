"""The connections in the frames of a call that has failed."""

from __future__ import annotations

import asyncio
import time

import psycopg2
import pytest
from fix_core import Look
from sqlalchemy import create_engine

from poolwatch.adapters import failed_connects
from poolwatch.ledger.checkout import ConnectionFacts


class Connection:
    """Looks like a driver's."""

    def __init__(self, pid):
        self.pid = pid


Connection.__module__ = "psycopg2.extensions"


class Trap:
    """Runs code of the application whatever is read of it."""

    def __getattribute__(self, name):
        raise AssertionError(name)

    __eq__ = __hash__ = __repr__ = None


@pytest.fixture(autouse=True)
def _facts(monkeypatch):
    def facts_of(connection, opened, connect_s):
        return ConnectionFacts(connection.pid, opened, connect_s, None, None, 1)

    monkeypatch.setattr(failed_connects, "facts_of", facts_of)


def pids(call):
    """The pids that are found when ``call`` fails."""
    try:
        call()
    except BaseException as error:
        found = failed_connects.connections_opened(error, 1.0, 3.0)
        return [(each.backend_pid, each.opened, each.connect_s) for each in found]
    return None


def creator(pid=7):
    connection = Connection(pid)
    trap = Trap()
    raise PermissionError(connection.pid, trap is None)


def test_a_local_of_the_creator():
    assert pids(creator) == [(7, 3.0, 2.0)]


def test_a_local_behind_another_exception():
    def call():
        try:
            creator()
        except PermissionError as error:
            raise TimeoutError from error

    assert pids(call) == [(7, 3.0, 2.0)]


def test_a_cancelled_coroutine():
    async def connect():
        connection = Connection(8)
        await asyncio.sleep(10)
        return connection

    async def main():
        async with asyncio.timeout(0.01):
            await connect()

    assert pids(lambda: asyncio.run(main())) == [(8, 3.0, 2.0)]


def test_a_connection_of_the_code_that_called_is_not_of_the_call():
    connection = Connection(9)

    def call():
        raise KeyError

    assert pids(call) == []
    assert connection.pid == 9


def test_an_exception_that_is_being_handled_is_not_of_the_call():
    """A retry in an except clause: its frames are in use."""

    def retry():
        connection = Connection(9)
        try:
            {}[connection.pid]
        except KeyError:
            return pids(raises)

    def raises():
        raise ValueError

    assert retry() == []


def test_no_end_of_exceptions():
    error = first = KeyError()
    for _ in range(100):
        error.__context__ = KeyError()
        error = error.__context__
    error.__context__ = first
    assert failed_connects.connections_opened(first, 1.0, 2.0) == []


@pytest.mark.postgres
def test_a_request_leaves_a_connection_behind(postgres, instrument, monkeypatch):
    monkeypatch.undo()
    kept = []

    def fails():
        kept.append(psycopg2.connect(postgres.dsn))
        connection = kept[-1]
        raise PermissionError(connection.closed)

    engine = create_engine("postgresql+psycopg2://", creator=fails)
    instrument(engine)
    with pytest.raises(PermissionError):
        engine.connect()
    assert Look().process.departed == ()  # it may be closing
    time.sleep(2.6)
    (gone,) = Look().process.departed
    assert (gone.backend_pid, gone.error) == (
        kept[0].info.backend_pid,
        "PermissionError",
    )
    assert gone.site.function == "test_a_request_leaves_a_connection_behind"
    kept[0].close()
