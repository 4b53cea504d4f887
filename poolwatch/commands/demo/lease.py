"""A schema of its own in the user's database, dropped at the end of the demo."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2.extensions
from sqlalchemy import URL, Connection, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from poolwatch.errors import PoolwatchError, UsageError

SCHEMA = "poolwatch_demo"
MADE_BY_US = "made by poolwatch demo"
APPLICATION = "poolwatch-demo-shop"
"""What the app's sessions call themselves."""
_SESSIONS_END_IN = 10.0
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
        raise UsageError("the demo needs a PostgreSQL database")
    return url.set(drivername=_DRIVER)


@contextmanager
def leased(dsn: str) -> Iterator[str]:
    """Lend the demo a schema of a database; gives the database's SQLAlchemy URL."""
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
        said = str(getattr(error, "orig", None) or error).strip() or "no reason given"
        raise PoolwatchError(
            f"the database cannot be used: {said.splitlines()[0]}"
        ) from None
    finally:
        engine.dispose()


def _claim(connection: Connection) -> None:
    """Make sure that the schema is nobody else's, and ours as long as we run."""
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
    if comment is not None and comment[0] != MADE_BY_US:
        raise UsageError(
            f"the database has a schema {SCHEMA} that poolwatch demo did not make: "
            "rename it, or choose another database"
        )


def _drop(connection: Connection) -> None:
    _end_sessions(connection)
    connection.execute(text("SET lock_timeout = '10s'"))
    connection.execute(text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))


def _end_sessions(connection: Connection) -> None:
    """End what the app has left: a server goes on with the statement it is at.

    They are ours beyond doubt: same user, same database, a name nobody else uses, and
    the lock says that no other demo is here.
    """
    end = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = :application AND datname = current_database() "
        "AND usename = current_user AND pid <> pg_backend_pid()"
    )
    deadline = time.monotonic() + _SESSIONS_END_IN
    while connection.execute(end, {"application": APPLICATION}).all():
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
