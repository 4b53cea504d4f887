"""Opens the store of the history, and makes it; refuses what is not ours.

What a driver says is never shown as it is: it may quote the URL with its password.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sqlite3
import stat
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    JSON,
    URL,
    ColumnElement,
    Connection,
    Double,
    Engine,
    Integer,
    MetaData,
    Table,
    and_,
    create_engine,
    event,
    func,
    insert,
    inspect,
    make_url,
    or_,
    select,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool, QueuePool

from poolwatch.errors import (
    ForbiddenError,
    MissingExtraError,
    PoolwatchError,
    ServerDownError,
    UsageError,
)
from poolwatch.postgres.dsn_reader import DEFAULTS
from poolwatch.postgres.errors import as_failure
from poolwatch.runtime.installation import state_directory
from poolwatch.sidecar.history import partitions
from poolwatch.sidecar.history.schema import (
    APPLICATION_ID,
    BY_DAY,
    VERSION,
    call_sites,
    incidents,
    metadata,
    pools,
    processes,
    store,
)
from poolwatch.text.format import one_line
from poolwatch.version import VERSION as PROGRAM

_BUSY_S = 5.0
"""How long SQLite waits for another writer."""
_WAL_BYTES = 16 << 20
_LAST_S = 253402300799
"""Since the epoch: the end of the year 9999."""
_NONE = "there is no history in {}: poolwatch sidecar writes one"
_FORBIDDEN = "42501"
_REFUSED = {
    "42P01": "its tables are missing",
    "42703": "its tables are not those of poolwatch",
}
"""By SQLSTATE."""
_AWAY = {
    "25006": "the server is read-only (a standby?)",
    "53100": "the server's disk is full",
    "55P03": "another session has locked its tables",
    "57014": "the server was too slow",
}
"""By SQLSTATE: failures that may pass by themselves."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_AWAY_SQLITE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)
_AWAY_WORDS = re.compile(
    "too many clients|connection slots are|too many connections"
    "|temporary failure in name resolution",
    re.IGNORECASE,
)
"""Words of a failed connect, which has no SQLSTATE."""
_compact = json.JSONEncoder(separators=(",", ":")).encode


class AwayError(PoolwatchError):
    """The store cannot be used now: down, full, locked. A writer waits for it."""


def open_store(url: str | None, *, write: bool) -> Engine:
    """Open the history; with ``write`` it is made if there is none.

    ``url``: any SQLAlchemy URL of SQLite or PostgreSQL; None for the user's own file.
    Raises PoolwatchError with one sentence, AwayError if it may be there later.
    """
    target = _target(url)
    if target.get_backend_name() == "sqlite":
        return _open_sqlite(_path(target), write)
    return _open_postgres(target, write)


def place(url: str | None) -> str:
    """Where the history is, without secrets; raises UsageError like open_store()."""
    target = _target(url)
    if target.get_backend_name() == "sqlite":
        return one_line(str(_path(target)))
    hosts = target.query.get("host", target.host or "localhost")
    host = hosts if isinstance(hosts, str) else ",".join(hosts)
    port = f":{target.port}" if target.port else ""
    return one_line(f"PostgreSQL {host}{port}, database {target.database or '-'}")


def failure(error: BaseException) -> PoolwatchError:
    """Return the error to raise for one of the store; it quotes nothing of the URL."""
    if isinstance(error, PoolwatchError):
        return error
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        kind = AwayError if code in _AWAY_SQLITE else UsageError
        return kind(f"the history: SQLite says: {one_line(str(cause), 200)}")
    state = getattr(cause, "pgcode", None)
    if state == _FORBIDDEN:
        return ForbiddenError(
            "the history: the role may not read, write or make the tables there"
        )
    if state in _AWAY:
        return AwayError(f"the history: {_AWAY[state]}")
    if state in _REFUSED:
        return UsageError(f"the history: {_REFUSED[state]}")
    known = as_failure(cause, alone=True)
    is_away = isinstance(known, ServerDownError) or _AWAY_WORDS.search(str(cause))
    return (AwayError if is_away else UsageError)(f"the history: {known}")


def _target(url: str | None) -> URL:
    if url is None:
        try:
            file = state_directory() / "history.db"
        except RuntimeError:
            raise UsageError(
                "this user has no home directory: set XDG_STATE_HOME, or give --history"
            ) from None
        return URL.create("sqlite", database=str(file))
    try:
        target = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise UsageError(
            "the URL of the history cannot be read: give sqlite:////PATH/history.db or "
            "postgresql://USER@HOST/DATABASE"
        ) from None
    kind = target.get_backend_name()
    if kind not in ("sqlite", "postgresql", "postgres"):
        raise UsageError(
            f"the history is kept in SQLite or PostgreSQL, not in {one_line(kind, 30)}"
        )
    return target if kind == "sqlite" else target.set(drivername="postgresql+psycopg2")


# -- SQLite --------------------------------------------------------------------------


def _path(target: URL) -> Path:
    if target.database in (None, "", ":memory:") or target.query.get("mode") == (
        "memory"
    ):
        raise UsageError("a history in memory is of no use: give the path of a file")
    return Path(str(target.database)).absolute()


def _open_sqlite(path: Path, write: bool) -> Engine:
    name = one_line(str(path))
    try:
        _check_path(path, name, write)
        empty = not path.stat().st_size
    except PermissionError:
        raise ForbiddenError(
            f"the history {name} cannot be opened: permission denied"
        ) from None
    except OSError as error:
        why = error.strerror or type(error).__name__
        refused = AwayError if error.errno in _NO_SPACE else UsageError
        raise refused(f"the history {name} cannot be opened: {why}") from None
    if not empty:
        _check_owner(path, name, write)
    elif not write:
        raise UsageError(_NONE.format(name))
    engine = create_engine(
        URL.create("sqlite+pysqlite", database=str(path)),
        connect_args={"timeout": _BUSY_S, "check_same_thread": False},
        json_serializer=_compact,
        # a reader leaves nothing open, whatever becomes of it
        poolclass=QueuePool if write else NullPool,
    )
    event.listen(engine, "connect", partial(_prepare_sqlite, write))
    begin = "BEGIN IMMEDIATE" if write else "BEGIN"
    event.listen(engine, "begin", lambda c: c.exec_driver_sql(begin))
    _check_store(engine, write, name)
    if write:
        _use_wal(path)
    return engine


def _check_path(path: Path, name: str, write: bool) -> None:
    """Make the file, with nothing in it, if there is none and we are to write."""
    try:  # Path.exists() would hide that the way to it is closed
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not write:
            raise UsageError(_NONE.format(name)) from None
        for directory in reversed(path.parents):
            with suppress(FileExistsError):
                directory.mkdir(mode=0o700)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UsageError(f"the history {name} is a directory: give the path of a file")
    if not stat.S_ISREG(mode):
        raise UsageError(f"the history {name} is not a regular file")
    wanted = os.R_OK | (os.W_OK if write else 0)
    if not os.access(path, wanted) or (write and not os.access(path.parent, os.W_OK)):
        raise PermissionError


def _check_owner(path: Path, name: str, write: bool) -> None:
    """Refuse a file that is no database of ours. SQLite itself reads it: who opens and
    closes the file by other means takes away the locks that this process has on it.
    """
    uri = f"file:{quote(str(path))}?mode={'rw' if write else 'ro'}"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S)) as connection:
            (mark,) = connection.execute("PRAGMA application_id").fetchone()
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise UsageError(f"{name} is not a SQLite database") from None
        raise failure(error) from None
    # no page: its writer was killed while it made the store, and nothing is there
    if mark != APPLICATION_ID and pages:
        raise UsageError(f"{name} is the database of another program")


def _prepare_sqlite(write: bool, connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say
    run = connection.execute
    if write:
        run("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file
        run("PRAGMA synchronous = NORMAL")
        run(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    else:
        run("PRAGMA query_only = ON")


def _use_wal(path: Path) -> None:
    """Readers and the writer do not wait for each other from now on.

    Only when the tables are there: the file of a killed writer is empty, or has our
    mark. Somebody else has the file open: he has done it, or the next one will.
    """
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(path)) as own:
        own.execute("PRAGMA journal_mode = WAL")


# -- PostgreSQL ----------------------------------------------------------------------


def _open_postgres(target: URL, write: bool) -> Engine:
    target = target.difference_update_query(["plugin"])  # we do not watch ourselves
    defaults = {**DEFAULTS, "application_name": "poolwatch", "client_encoding": "utf8"}
    given = {key: value for key, value in defaults.items() if key not in target.query}
    try:
        engine = create_engine(
            target,
            connect_args=given,
            pool_size=1,
            max_overflow=1,
            pool_pre_ping=not write,
            json_serializer=_compact,
        )
    except ImportError:
        raise MissingExtraError(
            "a history in PostgreSQL needs psycopg2", "sidecar"
        ) from None
    except (SQLAlchemyError, TypeError, ValueError):
        raise UsageError("the URL of the history has an unknown option") from None
    _check_store(engine, write, "this database")
    return engine


# -- both ----------------------------------------------------------------------------


def _check_store(engine: Engine, write: bool, name: str) -> None:
    try:
        with engine.begin() as connection:
            is_made = inspect(connection).has_table(store.name)
            if write and not is_made and engine.dialect.name == "postgresql":
                partitions.limit_waiting(connection)
                partitions.lock(connection)
                is_made = inspect(connection).has_table(store.name)
            if is_made:
                if engine.dialect.name == "sqlite":
                    _check_values(connection, name)
                _check_version(connection, name)
            elif not write:
                raise UsageError(_NONE.format(name))
            else:
                _make(connection, name)
    except (SQLAlchemyError, PoolwatchError) as error:
        engine.dispose()
        raise failure(error) from None


def _check_values(connection: Connection, name: str) -> None:
    """Minutes are too many to look at: see check_minutes()."""
    for table in (store, processes, pools, call_sites, incidents):
        _check_table(connection, table, f"the history {name}")


def check_minutes(connection: Connection, table: Table, *within: Any) -> None:
    """Raise UsageError if a minute that fulfils the conditions is damaged."""
    if connection.dialect.name == "sqlite":
        _check_table(connection, table, "the history", *within)


def _check_table(connection: Connection, table: Table, name: str, *within: Any) -> None:
    """SQLite takes any value in any column."""
    wrong = or_(*map(_is_wrong, table.c))
    damaged = select(1).select_from(table).where(wrong, *within).limit(1)
    if connection.scalar(damaged):
        raise UsageError(f"{name} is damaged: {table.name} has values of wrong types")


def _is_wrong(column: ColumnElement[Any]) -> ColumnElement[bool]:
    kind = func.typeof(column)
    if isinstance(column.type, JSON):
        wrong = func.json_valid(column) == 0
    elif isinstance(column.type, Double):
        wrong = or_(kind.not_in(("integer", "real")), func.abs(column) > _LAST_S)
    else:
        wrong = kind != ("integer" if isinstance(column.type, Integer) else "text")
    return and_(column.is_not(None), wrong)


def _check_version(connection: Connection, name: str) -> None:
    row = connection.execute(select(store.c.version, store.c.made_by)).first()
    if row is None or row.version is None or row.version < 1:
        raise UsageError(f"{name} is the database of another program")
    if row.version > VERSION:
        raise UsageError(
            f"the history in {name} has version {row.version}, this poolwatch reads "
            f"version {VERSION}: use poolwatch {one_line(str(row.made_by), 20)} or "
            "newer, or another history"
        )


def _make(connection: Connection, name: str) -> None:
    """Make all tables in one transaction."""
    taken = {*inspect(connection).get_table_names()} & {*metadata.tables}
    if taken:
        raise UsageError(
            f"{name} has a table {min(taken)} of another program: give the history a "
            "database of its own"
        )
    sqlite = connection.dialect.name == "sqlite"
    tables = MetaData()
    for table in metadata.sorted_tables:
        copy = table.to_metadata(tables)
        key = next(iter(table.primary_key), None)
        if sqlite and len(table.primary_key) > 1 and "document" not in table.c:
            copy.dialect_options["sqlite"]["with_rowid"] = False  # a third smaller
        elif not sqlite and table in BY_DAY and key is not None:
            how = f"RANGE ({key.name})"
            copy.dialect_options["postgresql"]["partition_by"] = how
    tables.create_all(connection)
    now = time.time()
    connection.execute(
        insert(store).values(version=VERSION, made_by=PROGRAM, made_at=now)
    )
    if sqlite:
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
    else:
        today = partitions.day_of(now)
        partitions.make(connection, (today, today + 1))
