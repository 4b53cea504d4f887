"""The agent's reader opens one short-lived connection and always closes it."""

from __future__ import annotations

import os
import threading

import pytest
from helpers import LONG_S, stopped, until

from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.errors import ServerDownError, ServerViewError
from poolwatch.postgres.agent_reader import AgentReader


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Connects:
    """Opens connections and records them."""

    def __init__(self, server):
        self.server = server
        self.made = []

    def __call__(self):
        self.made.append(self.server.connect())
        return self.made[-1]

    @property
    def open(self):
        return [connection for connection in self.made if not connection.closed]


@pytest.fixture
def connects(postgres):
    return Connects(postgres)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def reader(connects, clock):
    reader = AgentReader(connects, connection_facts, clock=clock)
    yield reader
    reader.close()
    assert connects.open == []


def test_nothing_stays_open(reader, connects, postgres):
    assert reader.read([]).version.startswith(postgres.version)
    assert len(connects.made) == 1
    assert connects.open == []


def test_a_polling_viewer_needs_one_connection(reader, connects, clock):
    for _ in range(5):
        reader.read([], linger=5)
        clock.now += 1
        reader.close_idle()
    assert len(connects.made) == 1
    clock.now += 5
    reader.close_idle()
    assert connects.open == []


def test_a_connection_lingers_for_ten_seconds_at_most(reader, connects, clock):
    reader.read([], linger=3600)
    reader.close_idle(clock.now + 9.9)
    assert len(connects.open) == 1
    reader.close_idle(clock.now + 10)
    assert connects.open == []


def test_the_next_request_closes_an_expired_connection(reader, connects, clock):
    reader.read([], linger=5)
    clock.now += 6
    reader.read([])
    assert len(connects.made) == 2
    assert connects.open == []


def test_a_terminated_connection_is_replaced(reader, connects, postgres):
    reader.read([], linger=5)
    postgres.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        f"where pid = {connects.made[0].info.backend_pid}"
    )
    assert reader.read([]).sessions
    assert len(connects.made) == 2


def test_a_stuck_reading_is_abandoned(connects, postgres):
    """Its connection may be dead although the server is back."""
    reader = AgentReader(connects, connection_facts, patience_s=0.1, stuck_s=0.5)
    reader.read([], linger=10)
    backend = connects.made[0].info.backend_pid
    failures = []

    def hang():
        try:
            reader.read([], linger=10)
        except ServerViewError as error:
            failures.append(error)

    with stopped(backend):
        thread = threading.Thread(target=hang)
        thread.start()
        until(lambda: reader._state.reading_since)
        with pytest.raises(ServerDownError, match="previous reading"):
            reader.read([], linger=10)

        def answers():
            try:
                return reader.read([], linger=10).sessions
            except ServerDownError:
                return None

        until(answers)
        assert len(connects.made) == 2
    thread.join(20)
    assert failures == []
    assert connects.open == [connects.made[1]], (
        "the stuck one is closed when it answers"
    )
    reader.close()
    assert connects.open == []


def test_an_error_leaves_nothing_open(connects):
    """Neither while preparing nor while reading."""

    def no_facts(connection):
        raise RuntimeError("facts")

    with pytest.raises(ServerViewError, match="RuntimeError"):
        AgentReader(connects, no_facts).read([], linger=5)
    assert connects.open == []


def test_a_transaction_left_open_by_the_creator_is_ended(postgres):
    """A creator may have run statements of its own."""
    made = []

    def creator():
        connection = postgres.connect()
        connection.autocommit = False
        connection.cursor().execute("select 1")
        made.append(connection)
        return connection

    reader = AgentReader(creator, connection_facts)
    assert reader.read([]).version
    assert made[0].closed


def test_one_reading_at_a_time_and_the_others_wait(postgres, connects):
    """Ten viewers at once share one connection."""
    reader = AgentReader(connects, connection_facts)
    failures = []

    def view():
        try:
            reader.read([], linger=5)
        except ServerViewError as error:
            failures.append(error)

    threads = [threading.Thread(target=view) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(connects.made) == 1
    reader.close()


def test_a_hung_server_does_not_queue_requests(postgres):
    begun, release = threading.Event(), threading.Event()

    def hangs():
        begun.set()
        release.wait(LONG_S)
        return postgres.connect()

    reader = AgentReader(hangs, connection_facts, patience_s=0.1)
    first = threading.Thread(target=reader.read, args=([],))
    first.start()
    assert begun.wait(LONG_S)
    with pytest.raises(ServerViewError, match="previous reading"):
        reader.read([])
    release.set()
    first.join()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "pg8000.dbapi"])
def test_a_fork_leaves_the_parents_connection_alone(postgres, driver):
    """The child opens its own; the parent's still works after the child has ended."""
    module = pytest.importorskip(driver)
    made = []

    def connect():
        if driver == "pg8000.dbapi":
            path = f"{postgres.host}/.s.PGSQL.{postgres.port}"
            made.append(module.connect("postgres", unix_sock=path))
        else:
            made.append(module.connect(postgres.dsn))
        return made[-1]

    reader = AgentReader(connect, connection_facts)
    reader.read([], linger=10)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            reader.close_idle()
            reader.read([], linger=10)
            made.clear()
            reader.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    reader.read([], linger=10)
    assert len(made) == 1
    reader.close()
