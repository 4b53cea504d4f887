"""HistoryWriter: the sink that writes the history, in a thread of its own.

A look only changes what is pending. The thread writes all that is pending in one
transaction: after every look into SQLite, every five seconds into PostgreSQL. What
could not be written stays pending.
"""

from __future__ import annotations

import json
import logging
import socket
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Integer,
    Table,
    bindparam,
    delete,
    literal_column,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from poolwatch.errors import PoolwatchError
from poolwatch.model import Incident
from poolwatch.sidecar.history import partitions, resuming
from poolwatch.sidecar.history.minutes import TABLES, earlier_rows
from poolwatch.sidecar.history.pending import RECORDS, Batch, Pending
from poolwatch.sidecar.history.pictures import UNKNOWN, Picture
from poolwatch.sidecar.history.retention import Retention
from poolwatch.sidecar.history.schema import call_sites, incidents, snapshots
from poolwatch.sidecar.history.store import AwayError, failure, open_store
from poolwatch.sidecar.looks import Look

_log = logging.getLogger("poolwatch.sidecar")

EVERY_S = {"sqlite": 0.0, "postgresql": 5.0}
"""At least this long from one transaction to the next."""
_BACK_OFF_S = (1.0, 2.0, 5.0, 10.0)
_CLOSING_S = 0.5
_LARGEST = 2**31 - 1
_FIXED = {call_sites: None, incidents: ("process_id", "started_at", "identity")}
"""Columns that no later look changes; None: the whole row."""


class HistoryWriter:
    """A sink. Raises PoolwatchError if the store is refused, not if it is away."""

    def __init__(
        self,
        url: str | None,
        *,
        keep_s: float,
        keep_bytes: float,
        hosts: Collection[str] = (),
        threaded: bool = True,
    ) -> None:
        """``hosts``: whose incidents go on; not ``threaded``: the caller writes."""
        self._url = url
        self._hosts = frozenset(hosts or {socket.gethostname()})
        self._pending = Pending()
        self._retention = Retention(keep_s, keep_bytes)
        self._lasting: list[Incident] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._failures = 0
        self._said: str | None = None
        self._said_dropped = False
        self._due = 0.0
        """When to write next."""
        self._fresh = False
        """Whether there is a look that has not been written."""
        self._taken = False
        """Whether there was a look at all."""
        self._resumed = False
        self._days: set[int] = set()
        """Days that are known to have their partitions."""
        self._engine: Engine | None = None
        self._file: tuple[int, int] | None = None
        """The file of SQLite that was opened, see _file_of()."""
        try:
            engine = self._opened()
            with engine.begin() as connection:
                self._lasting = resuming.resume(connection, self._pending, self._hosts)
            self._resumed = True
        except (PoolwatchError, SQLAlchemyError) as error:
            if not isinstance(failure(error), AwayError):
                raise failure(error) from None
            self._failed(error)
        self._thread = threading.Thread(
            target=self._run, name="poolwatch-history", daemon=True
        )
        if threaded:
            self._thread.start()

    def lasting(self) -> list[Incident]:
        """The incidents of its hosts that had not ended when the writer was made."""
        return list(self._lasting)

    @property
    def dropped(self) -> int:
        """How many looks could not be written and are lost."""
        return self._pending.dropped

    def take(self, look: Look) -> None:
        """Take a look; one that failed says nothing."""
        if look.error is not None:
            return
        self._taken = True
        with self._lock:
            self._pending.take(look)
            dropped = self._pending.dropped
        if dropped and not self._said_dropped:
            self._said_dropped = True
            _log.error(
                "the history has been away for too long: looks are lost, the oldest "
                "first (poolwatch keeps 10 minutes or 16 MiB of them in memory)"
            )
        self._fresh = True
        self._wake.set()

    def close(self) -> None:
        """Write what is left; within a second."""
        self._closing = True
        self._wake.set()
        if self._thread.ident is None:
            self._attempt()
            self._disconnect()
        else:
            self._thread.join(_CLOSING_S)
        if self._thread.is_alive() or self._failures:
            _log.error("the history could not be written at the end: see above")

    # -- the thread ----------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(1.0)
            self._wake.clear()
            self._pack()
            if self._fresh and time.monotonic() >= self._due and not self._closing:
                self._attempt()
        self._attempt()
        self._disconnect()

    def _pack(self) -> None:
        with self._lock:
            unpacked = self._pending.pictures.unpacked()
        for picture in unpacked:
            picture.pack()

    def _attempt(self) -> None:
        if not self._taken:
            return
        try:
            self.write()
        except Exception as error:  # noqa: BLE001 - tried again; looks go on
            self._failed(error)
        else:
            if self._failures:
                lost = f"; {self.dropped} looks are lost" if self.dropped else ""
                _log.warning("the history is written again%s", lost)
            self._failures, self._said, self._said_dropped = 0, None, False

    def _failed(self, error: Exception) -> None:
        expected = isinstance(error, PoolwatchError | SQLAlchemyError)
        sentence = str(failure(error)) if expected else type(error).__name__
        if sentence != self._said:
            _log.warning(
                "%s; what happens is kept in memory for up to 10 minutes",
                sentence,
                exc_info=None if expected else error,
            )
        self._said = sentence
        rest = _BACK_OFF_S[min(self._failures, len(_BACK_OFF_S) - 1)]
        self._due = time.monotonic() + rest
        self._failures += 1
        self._disconnect()

    def _disconnect(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    # -- transactions --------------------------------------------------------------

    def write(self) -> None:
        """Write all that is pending; raises what the database or its driver raises."""
        engine = self._open()
        self._due = time.monotonic() + EVERY_S[engine.dialect.name]
        self._fresh = False
        is_postgres = engine.dialect.name == "postgresql"
        batch = None
        try:
            if is_postgres:
                self._make_partitions(engine)
            with engine.begin() as connection:
                if is_postgres:
                    partitions.limit_waiting(connection)
                batch = self._batch(connection)
                _write(connection, batch)
        except BaseException:
            self._fresh = True
            if batch is not None:
                with self._lock:
                    self._pending.put_back(batch)
            raise
        with self._lock:
            self._pending.written(batch)
        self._retention.step(engine, batch.at)

    def _open(self) -> Engine:
        engine = self._engine
        if engine is not None and self._file == _file_of(engine):
            return engine
        if engine is not None:
            _leave(engine)
        engine = self._opened()
        self._days = set()
        with self._lock:
            self._pending.write_again()
            hosts = self._hosts | {
                seen.row["host"] for seen in self._pending.seen.values()
            }
        if not self._resumed:
            with engine.begin() as connection:
                resuming.end_others(connection, self._pending.owners, hosts)
            self._resumed = True
        return engine

    def _opened(self) -> Engine:
        engine = self._engine = open_store(self._url, write=True)
        self._file = _file_of(engine)
        return engine

    def _make_partitions(self, engine: Engine) -> None:
        with self._lock:
            days = self._pending.days()
        if not days <= self._days:
            with engine.begin() as connection:
                partitions.limit_waiting(connection)
                partitions.make(connection, days)
            self._days = days

    def _batch(self, connection: Connection) -> Batch:
        """Take what is pending, once the rows that it adds to have been read."""
        while True:
            with self._lock:
                shared = self._pending.shared_minutes()
                if not shared:
                    batch = self._pending.batch(last=self._closing)
                    break
            for minute, pools in shared.items():
                rows = earlier_rows(connection, minute.start, pools)
                with self._lock:
                    minute.add_earlier(pools, rows)
        for picture in batch.pictures:
            picture.pack()
        return batch


def _file_of(engine: Engine) -> tuple[int, int] | None:
    """What tells a file of SQLite from another one that takes its place.

    None if it is gone. A server has none: (0, 0).
    """
    if engine.dialect.name != "sqlite":
        return 0, 0
    with suppress(OSError):
        found = Path(engine.url.database or "").stat()
        return found.st_dev, found.st_ino
    return None


def _leave(engine: Engine) -> None:
    """Leave a file of SQLite that was moved away or removed, but leave it complete.

    Its log would be taken for that of the file which is there now.
    """
    failed = suppress(sqlite3.Error, SQLAlchemyError)
    with failed, closing(engine.raw_connection()) as connection:
        connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


def _write(connection: Connection, batch: Batch) -> None:
    for table in RECORDS:
        _upsert(connection, table, batch.records[table].values())
    for rows in batch.minutes.values():
        for table in TABLES:
            _upsert(connection, table, rows[table].values())
    _write_pictures(connection, batch.pictures)


def _upsert(connection: Connection, table: Table, rows: Iterable[Any]) -> None:
    """Insert or replace many rows. In one order: hosts share call sites, and whoever
    locks them in another one waits for ever.
    """
    keys = [column.name for column in table.primary_key]
    ordered: Any = sorted(
        (_in_range(table, row) for row in rows),
        key=lambda row: [row[key] for key in keys],
    )
    if not ordered:
        return
    dialect = connection.dialect.name
    if dialect == "postgresql":
        ordered = {"rows": json.dumps(ordered, default=_hex)}
    connection.execute(_upsert_of(dialect, table), ordered)


def _in_range(table: Table, row: Any) -> Any:
    """The row with numbers that PostgreSQL takes: what one damaged process says must
    not keep the others from being written.
    """
    large = {
        column.name: max(-_LARGEST, min(_LARGEST, row[column.name]))
        for column in table.c
        if type(column.type) is Integer and row[column.name] is not None
    }
    return {**row, **large}


def _hex(document: bytes) -> str:
    return "\\x" + document.hex()


@cache
def _upsert_of(dialect: str, table: Table) -> Any:
    """The statement; PostgreSQL gets all rows as one value.

    SQLAlchemy sends rows one by one if there is a conflict to solve, and a list of
    values is compiled anew each time: ten times the work.
    """
    names = [column.name for column in table.c]
    if dialect == "sqlite":
        statement: Any = sqlite.insert(table)
    else:
        source = text(
            f"json_populate_recordset(CAST(NULL AS {table.name}), CAST(:rows AS json))"
        )
        query: Any = select(*(literal_column(f'"{name}"') for name in names))
        statement = postgresql.insert(table).from_select(
            names, query.select_from(source)
        )
    fixed = _FIXED.get(table, ())
    if fixed is None:
        return statement.on_conflict_do_nothing()
    keys = [column.name for column in table.primary_key]
    return statement.on_conflict_do_update(
        index_elements=keys,
        set_={
            name: statement.excluded[name]
            for name in names
            if name not in (*keys, *fixed)
        },
    )


_ALL_REPLACED = delete(snapshots).where(
    snapshots.c.process_id == bindparam("of_process"),
    snapshots.c.at < bindparam("before"),
    snapshots.c.newest,
)


def _write_pictures(connection: Connection, pictures: list[Picture]) -> None:
    known: list[tuple[float, int]] = []
    unknown: list[dict[str, Any]] = []
    for each in pictures:
        if each.replaces == UNKNOWN:
            unknown.append({"of_process": each.process_id, "before": each.at})
        elif each.replaces is not None:
            known.append((each.replaces, each.process_id))
    if known:
        key = tuple_(snapshots.c.at, snapshots.c.process_id)
        connection.execute(delete(snapshots).where(key.in_(known), snapshots.c.newest))
    if unknown:
        connection.execute(_ALL_REPLACED, unknown)
    names = [column.name for column in snapshots.c]
    rows = [{name: getattr(each, name) for name in names} for each in pictures]
    _upsert(connection, snapshots, rows)
