"""Forgets the oldest first, by age and by size, a little after each write.

SQLite: ten minutes of history at a time, and the file shrinks page by page.
PostgreSQL: whole days; one sidecar does it for all.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    and_,
    delete,
    func,
    not_,
    or_,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from poolwatch.sidecar.history import partitions
from poolwatch.sidecar.history.minutes import MINUTE_S, TABLES
from poolwatch.sidecar.history.schema import (
    call_sites,
    incidents,
    metadata,
    pool_minutes,
    pools,
    processes,
    site_minutes,
    snapshots,
)
from poolwatch.sidecar.history.store import failure

_log = logging.getLogger("poolwatch.sidecar")

_EVERY_S = 60.0
_STEP_S = 600.0
_PAGES = 500
"""Pages that SQLite gives back at a time."""
_SIZE = text(
    "SELECT coalesce(sum(pg_catalog.pg_total_relation_size(oid)), 0) "
    "FROM pg_catalog.pg_class WHERE oid = ANY(ARRAY("
    "SELECT pg_catalog.to_regclass(name)::oid FROM unnest(CAST(:names AS text[])) name"
    ")) OR oid IN (SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = ANY("
    "ARRAY(SELECT pg_catalog.to_regclass(name)::oid "
    "FROM unnest(CAST(:names AS text[])) name)))"
)
_SERVER_NOW = text("SELECT CAST(extract(epoch FROM now()) AS double precision)")
_LASTING = select(incidents.c.id).where(incidents.c.ended_at.is_(None))
_STAYING = and_(
    not_(snapshots.c.newest),
    or_(snapshots.c.incident_id.is_(None), snapshots.c.incident_id.not_in(_LASTING)),
)
"""Snapshots that go by their age; the others are needed as long as they are newest, or
their incident lasts."""


class Retention:
    """Holds one store to an age and a size."""

    def __init__(self, keep_s: float, keep_bytes: float) -> None:
        self._keep_s = keep_s
        self._keep_bytes = keep_bytes
        self._due = 0.0
        self._day: int | None = None
        """Of the rows that were forgotten last, in SQLite."""
        self._day_is_over = False
        """Whether the last rows of a day have just been forgotten."""
        self._said = False
        self._failure: str | None = None

    def step(self, engine: Engine, now: float) -> None:
        """Forget a little if it is time to; ``now``: the time of the last look.

        Unless the store is gone, a failure is logged once, and tried again: what is new
        is written all the same.
        """
        if abs(self._due - now) <= _EVERY_S and now < self._due:
            return
        self._due = now + _EVERY_S  # also if it fails
        try:
            if self._step(engine, now):
                self._due = now
            self._failure = None
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            before, self._failure = self._failure, str(failure(error))
            if self._failure != before:
                _log.warning("%s; what is too old stays meanwhile", self._failure)

    def _step(self, engine: Engine, now: float) -> bool:
        step = self._by_day if engine.dialect.name == "postgresql" else self._by_row
        with engine.begin() as connection:
            more = step(connection, now)
        if self._day_is_over:
            self._day_is_over = False
            with engine.begin() as connection:
                _forget_unused(connection)
        return more

    # -- SQLite --------------------------------------------------------------------

    def _by_row(self, connection: Connection, now: float) -> bool:
        """Forget the oldest ten minutes, if they are too old or too much."""
        run = connection.exec_driver_sql
        pages = int(run("PRAGMA page_count").scalar_one())
        free = int(run("PRAGMA freelist_count").scalar_one())
        size = int(run("PRAGMA page_size").scalar_one())
        excess = max(0, pages - int(self._keep_bytes / size))
        oldest = _oldest(connection)
        until = now - self._keep_s
        too_old = oldest is not None and oldest < until
        if excess > free:
            until = max(until, now - 2 * MINUTE_S)
        forgets = oldest is not None and oldest < until
        if oldest is not None and forgets:
            _forget(connection, min(until, oldest + _STEP_S))
            before, self._day = self._day, partitions.day_of(oldest)
            self._day_is_over = self._day != before
        spare = max(excess, free - pages // 4)
        if spare > 0:
            _give_back(connection, min(spare, _PAGES))
        return too_old or (excess > 0 and (forgets or free > 0))

    # -- PostgreSQL ----------------------------------------------------------------

    def _by_day(self, connection: Connection, now: float) -> bool:
        """Drop the days that are too old, and the oldest one if it is too much."""
        partitions.limit_waiting(connection)
        if not partitions.try_lock(connection):
            return False
        # one host whose clock is wrong must not drop the days of all
        now = min(now, float(connection.scalar(_SERVER_NOW) or now))
        until = now - self._keep_s
        today = partitions.day_of(now)
        days = partitions.days_kept(connection)
        old = {day for day in days if day < partitions.day_of(until)}
        names = [table.name for table in metadata.sorted_tables]
        size = int(connection.scalar(_SIZE, {"names": names}) or 0)
        past = sorted(day for day in days - old if day < today)
        if size > self._keep_bytes and not old:
            if past:
                old = {past.pop(0)}
            elif not self._said:
                self._said = True
                _log.warning(
                    "the history of today alone is larger than --keep-size: whole days "
                    "are dropped, not hours"
                )
        self._day_is_over = bool(old)
        if old:
            partitions.drop(connection, old)
            until = max(until, partitions.DAY_S * (max(old) + 1))
        _forget(connection, until, minutes=self._keep_s < partitions.DAY_S)
        return bool(old)


def _give_back(connection: Connection, pages: int) -> None:
    """Shorten the file. One page a step, and no row: only the driver can go on."""
    cursor: Any = connection.connection.cursor()
    cursor.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
    cursor.close()


def _oldest(connection: Connection) -> float | None:
    """The time of the oldest row that may go."""
    firsts = [
        *(select(func.min(table.c.minute)) for table in TABLES),
        select(func.min(snapshots.c.at)).where(_STAYING),
        select(func.min(incidents.c.ended_at)),
        select(func.min(processes.c.last_seen_at)),
    ]
    found = (connection.scalar(first) for first in firsts)
    return min((float(each) for each in found if each is not None), default=None)


def _forget(connection: Connection, until: float, *, minutes: bool = True) -> None:
    """Delete what happened before; ``minutes``: else whole days have been dropped."""
    gone = select(processes.c.id).where(processes.c.last_seen_at < until)
    run = connection.execute
    if minutes:
        for table in TABLES:
            run(delete(table).where(table.c.minute < until))
        run(delete(snapshots).where(snapshots.c.at < until, _STAYING))
        run(delete(snapshots).where(snapshots.c.process_id.in_(gone)))
    run(delete(incidents).where(incidents.c.ended_at < until))
    run(delete(incidents).where(incidents.c.process_id.in_(gone)))
    run(delete(pools).where(pools.c.process_id.in_(gone)))
    run(delete(processes).where(processes.c.last_seen_at < until))


def _forget_unused(connection: Connection) -> None:
    """Delete the pools and call sites of which no minute is left.

    A program may make pools without end, or have other paths each time it starts.
    """
    if connection.dialect.name == "postgresql":
        partitions.limit_waiting(connection)
    used = {
        pools: select(pool_minutes.c.pool_id),
        call_sites: select(site_minutes.c.call_site_id),
    }
    for table, ids in used.items():
        unused = select(table.c.id).except_(ids)
        connection.execute(delete(table).where(table.c.id.in_(unused)))
