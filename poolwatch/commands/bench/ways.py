"""How an operation gets its connection: a new one each time, or one of a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2
import psycopg2.pool
from sqlalchemy import URL, create_engine
from sqlalchemy.pool import NullPool

import poolwatch

Lend = Callable[[], AbstractContextManager[Any]]
"""Lends a DBAPI connection for one operation."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way, by name; ``open`` makes what it needs and gives the lender."""

    name: str
    open: Callable[[URL], AbstractContextManager[Lend]]


def libpq(url: URL) -> str:
    """The same database for psycopg."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def _psycopg2_new(url: URL) -> Iterator[Lend]:
    @contextmanager
    def lend() -> Iterator[Any]:
        connection = psycopg2.connect(libpq(url))
        try:
            yield connection
        finally:
            connection.close()

    yield lend


@contextmanager
def _psycopg2_pool(url: URL) -> Iterator[Lend]:
    pool = psycopg2.pool.ThreadedConnectionPool(1, 5, libpq(url))

    @contextmanager
    def lend() -> Iterator[Any]:
        connection = pool.getconn()
        try:
            yield connection
        finally:
            pool.putconn(connection)

    try:
        yield lend
    finally:
        pool.closeall()


@contextmanager
def _psycopg_pool(url: URL) -> Iterator[Lend]:
    from psycopg_pool import ConnectionPool

    with ConnectionPool(libpq(url), min_size=1, max_size=5, open=True) as pool:
        pool.wait()
        yield pool.connection


def _sqlalchemy(*, watched: bool = False, **settings: Any) -> Any:
    @contextmanager
    def opened(url: URL) -> Iterator[Lend]:
        engine = create_engine(url, **settings)
        if watched:
            poolwatch.instrument(engine, name="bench")

        @contextmanager
        def lend() -> Iterator[Any]:
            connection = engine.raw_connection()
            try:
                yield connection
            finally:
                connection.close()

        try:
            yield lend
        finally:
            if watched:
                poolwatch.uninstrument(engine)
            engine.dispose()

    return opened


NEW = Way("a new connection each time (psycopg2)", _psycopg2_new)
POOLED = Way("SQLAlchemy's pool", _sqlalchemy(pool_size=5))
"""The way the others are compared with."""
WAYS = (
    NEW,
    Way("SQLAlchemy without a pool (NullPool)", _sqlalchemy(poolclass=NullPool)),
    Way("psycopg2.pool.ThreadedConnectionPool", _psycopg2_pool),
    POOLED,
    Way("SQLAlchemy's pool, pre-ping", _sqlalchemy(pool_size=5, pool_pre_ping=True)),
    Way("SQLAlchemy's pool, with poolwatch", _sqlalchemy(pool_size=5, watched=True)),
)


def ways() -> tuple[Way, ...]:
    """Those whose libraries are installed."""
    try:
        import psycopg_pool  # noqa: F401 - only whether it is there
    except ImportError:
        return WAYS
    return (*WAYS[:3], Way("psycopg_pool.ConnectionPool", _psycopg_pool), *WAYS[3:])
