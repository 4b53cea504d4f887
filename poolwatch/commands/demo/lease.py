"""The demo's schema in the user's database, dropped at the end of the demo."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2.extensions
from sqlalchemy import URL, Connection, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from poolwatch.errors import PoolwatchError, UsageError

SCHEMA = "poolwatch_demo"
COMMENT = "made by poolwatch demo"
APPLICATION = "poolwatch-demo-shop"
"""application_name of the app's sessions."""
_SESSIONS_END_S = 10.0
_DRIVER = "postgresql+psycopg2"
_LOCK = 0x706F6F6C  # "pool": one demo at a time in one database


def sqlalchemy_url(dsn: str) -> URL:
    """Read a SQLAlchemy URL or a libpq string; raises UsageError if it is neither."""
    try:
        if "://" not in dsn:
            return URL.create(_DRIVER, query=psycopg2.extensions.parse_dsn(dsn))
        url = make_url(dsn)
    except (ArgumentError, ValueError, psycopg2.ProgrammingError):
        raise UsageError(
            "--dsn is neither a SQLAlchemy URL nor a libpq connection string"
        ) from None
    if url.drivername.partition("+")[0] not in ("postgresql", "postgres"):
        raise UsageError("--dsn must name a PostgreSQL database")
    return url.set(drivername=_DRIVER)


def unusable(error: Exception) -> PoolwatchError:
    """Return a PoolwatchError with the first line of a database error."""
    text = str(getattr(error, "orig", None) or error).strip() or "no reason given"
    return PoolwatchError(f"the database cannot be used: {text.splitlines()[0]}")


@contextmanager
def leased(dsn: str) -> Iterator[str]:
    """Reserve the demo's schema in a database; yields the database's SQLAlchemy URL."""
    url = sqlalchemy_url(dsn)
    engine = create_engine(url, isolation_level="AUTOCOMMIT", pool_size=1)
    try:
        with engine.connect() as connection:
            _claim(connection)
            try:
                yield url.render_as_string(hide_password=False)
            finally:
                _drop(connection)
    except SQLAlchemyError as error:
        raise unusable(error) from None
    finally:
        engine.dispose()


def _claim(connection: Connection) -> None:
    """Reserve the schema for this demo; raises UsageError if it is taken."""
    lock = text("SELECT pg_try_advisory_lock(:key)")
    if not connection.scalar(lock, {"key": _LOCK}):
        raise UsageError("another poolwatch demo is running in this database")
    comment = connection.execute(
        text(
            "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace "
            "WHERE nspname = :schema"
        ),
        {"schema": SCHEMA},
    ).one_or_none()
    if comment is not None and comment[0] != COMMENT:
        raise UsageError(
            f"the database has a schema {SCHEMA} that poolwatch demo did not make: "
            "rename it, or choose another database"
        )


def _drop(connection: Connection) -> None:
    _end_sessions(connection)
    connection.execute(text("SET lock_timeout = '10s'"))
    connection.execute(text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))


def _end_sessions(connection: Connection) -> None:
    """End the app's sessions, which would otherwise finish their current statements.

    No other session is affected: user, database and application name must match, and
    the lock excludes other demos.
    """
    end = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = :application AND datname = current_database() "
        "AND usename = current_user AND pid <> pg_backend_pid()"
    )
    deadline = time.monotonic() + _SESSIONS_END_S
    while connection.execute(end, {"application": APPLICATION}).all():
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
