"""Innocents with an engine and nothing else.

Where a threshold is given, the program runs longer than it, but no single hold does.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    NullPool,
    SingletonThreadPool,
    StaticPool,
    text,
)
from sqlalchemy.exc import DBAPIError
from zoo.app import PING, QUERY, ROWS
from zoo.registry import innocent

import poolwatch


def use(connection: Any) -> None:
    while True:
        connection.execute(QUERY)


@innocent()
def report_running(zoo: Any) -> None:
    """A report is running, statement after statement."""
    with zoo.engine.connect() as connection:
        use(connection)


@innocent()
def one_long_statement(zoo: Any) -> None:
    """A single statement that takes long."""
    with zoo.engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(20)"))


def get_connection(engine: Engine) -> Connection:
    return engine.connect()


@innocent()
def helper_returns_it(zoo: Any) -> None:
    """A helper has returned the connection to a caller that uses it."""
    with get_connection(zoo.engine) as connection:
        use(connection)


@innocent(long_after=0.3, says="declared long: leader lock")
def declared_long(zoo: Any) -> None:
    """Over the threshold, and declared so."""
    with poolwatch.long_hold("leader lock"), zoo.engine.connect() as connection:
        use(connection)


@innocent(long_after=0.3, says="declared long: reads a feed")
def declared_long_and_sleeping(zoo: Any) -> None:
    """Declared holds may also sleep."""
    with poolwatch.long_hold("reads a feed"):
        connection = zoo.engine.connect()
    while True:
        connection.execute(PING)
        time.sleep(0.3)


@innocent(long_after=0.3, says="declared long: session of the console")
def declared_long_in_a_global(zoo: Any) -> None:
    """Declared, and kept in a global that nobody uses now."""

    def console() -> None:
        with poolwatch.long_hold("session of the console"):
            _results.append(zoo.engine.connect())

    console()
    zoo.go_on()


@innocent(seen=2, poolclass=StaticPool)
def static_pool_twice(zoo: Any) -> None:
    """StaticPool lends its one connection twice: nothing waits, nothing is nested."""
    with zoo.engine.connect() as one:
        one.execute(PING)
        other = zoo.engine.connect()
        use(other)


@innocent(poolclass=SingletonThreadPool)
def singleton_thread_pool(zoo: Any) -> None:
    """One connection per thread, by the pool itself: asked for twice."""
    with zoo.engine.connect() as one, zoo.engine.connect() as other:
        one.execute(PING)
        use(other)


@innocent(long_after=0.5, seen=0, poolclass=NullPool)
def null_pool_burst(zoo: Any) -> None:
    """NullPool: connections come and go."""
    while True:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)


@innocent()
def savepoints(zoo: Any) -> None:
    """Savepoints inside a transaction are no second connection."""
    with zoo.engine.begin() as connection:
        while True:
            with suppress(ZeroDivisionError), connection.begin_nested():
                connection.execute(QUERY)
                raise ZeroDivisionError


@innocent(seen=2, pool_size=1, max_overflow=0)
def two_pools(zoo: Any) -> None:
    """One thread, two connections, of two different pools."""
    archive = zoo.new_engine("archive")
    with zoo.engine.connect() as source, archive.connect() as target:
        while True:
            source.execute(QUERY)
            target.execute(QUERY)


@innocent(long_after=0.5, seen=0)
def retries(zoo: Any) -> None:
    """A retry loop that gives its connection back before it sleeps."""

    def attempt() -> None:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)
            raise ConnectionError

    while True:
        with suppress(ConnectionError):
            attempt()
        time.sleep(0.02)


_results: list[Any] = []


@innocent(long_after=0.5, seen=0)
def errors_kept_but_closed(zoo: Any) -> None:
    """The errors are kept, tracebacks and all; the connections were closed."""

    def charge() -> None:
        connection = zoo.engine.connect()
        try:
            connection.execute(QUERY)
            raise ValueError
        finally:
            connection.close()

    for _ in range(5):
        try:
            charge()
        except ValueError as error:
            _results.append(error)
    zoo.go_on()


def rows_of(engine: Engine) -> Iterator[Any]:
    with engine.connect() as connection:
        yield from connection.execute(text("SELECT pg_sleep(0.05) UNION SELECT 1"))


@innocent(long_after=0.5, seen=0)
def generators_consumed(zoo: Any) -> None:
    """Generators, read to the end or dropped after one row: both end the with block."""
    while True:
        _results[:] = list(rows_of(zoo.engine))
        _results[:] = next(rows_of(zoo.engine))
        for _ in rows_of(zoo.engine):
            break


@innocent()
def stream_in_use(zoo: Any) -> None:
    """A streaming result is being read: fetching rows is the database, too."""
    with zoo.engine.connect().execution_options(yield_per=5) as connection:
        for _ in connection.execute(ROWS):
            pass


@innocent()
def briefly_idle(zoo: Any) -> None:
    """A little work between two statements."""
    with zoo.engine.connect() as connection:
        while True:
            connection.execute(QUERY)
            sum(range(10_000))


@innocent(long_after=0.5, seen=0, pool_pre_ping=True, pool_recycle=0.1)
def pinged_and_recycled(zoo: Any) -> None:
    """pool_pre_ping and pool_recycle make connections come and go."""
    while True:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)
        time.sleep(0.05)


@innocent(long_after=0.5, seen=0)
def invalidated(zoo: Any) -> None:
    """A broken connection is invalidated, and replaced."""
    while True:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)
            connection.invalidate()
            connection.rollback()
            connection.execute(QUERY)


@innocent(long_after=0.5, seen=0)
def disposed_when_idle(zoo: Any) -> None:
    """dispose() with nothing out, again and again."""
    while True:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)
        zoo.engine.dispose()


@innocent(long_after=0.5, seen=0)
def detached_and_closed(zoo: Any) -> None:
    """Detached, used and closed."""
    while True:
        with zoo.engine.connect() as connection:
            connection.detach()
            connection.execute(QUERY)


@innocent(long_after=0.5, seen=0)
def raw_and_closed(zoo: Any) -> None:
    """raw_connection() with contextlib.closing()."""
    while True:
        with closing(zoo.engine.raw_connection()) as raw:
            raw.cursor().execute(str(QUERY))


@innocent(long_after=0.5, seen=0)
def bad_statements(zoo: Any) -> None:
    """Statements fail, the with block gives the connection back."""
    while True:
        with suppress(DBAPIError), zoo.engine.connect() as connection:
            connection.execute(QUERY)
            connection.execute(text("SELECT * FROM nowhere"))


@innocent(long_after=0.5, seen=0)
def closed_but_kept(zoo: Any) -> None:
    """Connection and result objects are kept in a global; they are closed."""
    for _ in range(8):
        with zoo.engine.connect() as connection:
            _results.append((connection, connection.execute(QUERY)))
    zoo.go_on()


def transactional(function: Callable[..., Any]) -> Callable[[Engine], Any]:
    @functools.wraps(function)
    def wrapped(engine: Engine) -> Any:
        with engine.begin() as connection:
            return function(connection)

    return wrapped


@transactional
def monthly(connection: Connection) -> None:
    use(connection)


@innocent()
def decorated(zoo: Any) -> None:
    """A decorator takes the connection, the function below uses it."""
    monthly(zoo.engine)


@contextmanager
def scope(engine: Engine) -> Iterator[Connection]:
    with ExitStack() as stack:
        yield stack.enter_context(engine.connect())


@innocent()
def scope_in_a_stack(zoo: Any) -> None:
    """A contextmanager around an ExitStack around the connection."""
    with scope(zoo.engine) as connection:
        use(connection)


@innocent()
def recursion_in_use(zoo: Any) -> None:
    """Taken at the bottom of a deep recursion, used at its top."""

    def walk(connection: Connection, depth: int) -> None:
        if depth:
            walk(connection, depth - 1)
        use(connection)

    with zoo.engine.connect() as connection:
        walk(connection, 300)


@innocent(long_after=0.5, seen=0, pool_size=1, max_overflow=0)
def one_after_the_other(zoo: Any) -> None:
    """A helper takes the only connection after the caller gave it back."""

    def helper() -> None:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)

    while True:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)
        helper()
