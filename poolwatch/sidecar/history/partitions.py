"""One partition a day in PostgreSQL: made ahead, dropped whole."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from sqlalchemy import Connection, func, select, text

from poolwatch.sidecar.history.schema import APPLICATION_ID, BY_DAY

DAY_S = 86400
_FILLED = 50
"""Percent. A row changes every few seconds until its minute is over: with room for its
next version on the same page, no index grows."""
_NAME = re.compile(r"_(\d{8})$")
_CHILDREN = text(
    "SELECT relname FROM pg_catalog.pg_inherits "
    "JOIN pg_catalog.pg_class ON pg_class.oid = inhrelid "
    "WHERE inhparent = pg_catalog.to_regclass(:parent)"
)

_LIMITS = text(
    "SELECT set_config('statement_timeout', '20s', true), "
    "set_config('lock_timeout', '5s', true)"
)


def lock(connection: Connection) -> None:
    """Wait until no other sidecar changes tables; until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(APPLICATION_ID)))


def try_lock(connection: Connection) -> bool:
    """The same, unless another one has it now."""
    locked = select(func.pg_try_advisory_xact_lock(APPLICATION_ID))
    return bool(connection.scalar(locked))


def limit_waiting(connection: Connection) -> None:
    """Wait for no other session, and for no slow server, for ever."""
    connection.execute(_LIMITS)


def day_of(at: float) -> int:
    """The number of the day since the epoch, UTC."""
    return int(at // DAY_S)


def make(connection: Connection, days: Iterable[int]) -> None:
    """Make the partitions of these days, if they are missing.

    In a transaction that has touched no other table: it waits for other sidecars. They
    go on writing, because a table that is attached blocks nobody, unlike one that is
    made as a partition.
    """
    wanted = set(days)
    if wanted <= days_kept(connection):
        return
    lock(connection)
    for table in BY_DAY:
        made = _children(connection, table.name)
        for day in sorted(wanted):
            name = f"{table.name}_{_date(day)}"
            if name in made:
                continue
            connection.exec_driver_sql(
                f"CREATE TABLE {name} (LIKE {table.name} INCLUDING DEFAULTS "
                f"INCLUDING CONSTRAINTS) WITH (fillfactor = {_FILLED})"
            )
            connection.exec_driver_sql(
                f"ALTER TABLE {table.name} ATTACH PARTITION {name} "
                f"FOR VALUES FROM ({day * DAY_S}) TO ({(day + 1) * DAY_S})"
            )


def days_kept(connection: Connection) -> set[int]:
    """The days of which every table has its partition."""
    return set.intersection(
        *(
            {day_of(_begin(name)) for name in _children(connection, table.name)}
            for table in BY_DAY
        )
    )


def drop(connection: Connection, days: Collection[int]) -> None:
    """Drop the partitions of these days.

    Whoever waits for a reader's lock keeps all writers waiting: only for a second.
    """
    connection.exec_driver_sql("SET LOCAL lock_timeout = '1s'")
    for table in BY_DAY:
        for name in _children(connection, table.name):
            if day_of(_begin(name)) in days:
                connection.exec_driver_sql(f'DROP TABLE "{name}"')


def _children(connection: Connection, parent: str) -> list[str]:
    names = connection.scalars(_CHILDREN, {"parent": parent})
    return [name for name in names if _NAME.search(name)]


def _date(day: int) -> str:
    return f"{datetime.fromtimestamp(day * DAY_S, UTC):%Y%m%d}"


def _begin(name: str) -> float:
    """When the day of a partition began."""
    date = name[-8:]
    return datetime.strptime(date, "%Y%m%d").replace(tzinfo=UTC).timestamp()
