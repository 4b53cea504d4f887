"""What each pool of the history has used, summed up by the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Double, case, cast, func, select

from poolwatch.sidecar.history.schema import pool_minutes, pools, processes

_MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class PoolTotal:
    """One pool of one process, from its first minute in the stretch to its last."""

    host: str
    pid: int
    service: str
    """The given name of the process, or else its program."""
    pool_id: str
    """Its id in snapshots."""
    pool: str
    """Its name."""
    kind: str
    url: str | None
    size: int | None
    max_overflow: int | None
    first: int
    """The first second of its first minute."""
    last: int
    """The first second of its last minute."""
    out_max: int
    wanted_max: int
    """The most connections out and requests waiting in one minute."""
    out_mean: float
    timeouts: int
    leaked: int

    @property
    def limit(self) -> int | None:
        """The most connections it could open; None if unlimited or unknown."""
        if self.size is None or self.max_overflow is None or self.max_overflow < 0:
            return None
        return self.size + self.max_overflow or None


def pool_totals(connection: Connection, since: float) -> list[PoolTotal]:
    """Return the totals of all pools since then."""
    minute = pool_minutes.c
    # a pool with free connections has no waits: both are of its worst moment
    wanted = case(
        (minute.waiting_max > 0, minute.out_max + minute.waiting_max),
        else_=minute.out_max,
    )
    of_pool = (
        select(
            minute.pool_id.label("number"),
            func.min(minute.minute).label("first"),
            func.max(minute.minute).label("last"),
            func.max(minute.out_max).label("out_max"),
            func.max(wanted).label("wanted_max"),
            (cast(func.sum(minute.out_sum), Double) / func.sum(minute.looks)).label(
                "out_mean"
            ),
            func.sum(minute.timeouts).label("timeouts"),
            func.sum(minute.leaked).label("leaked"),
        )
        .where(minute.minute > since - _MINUTE_S)
        .group_by(minute.pool_id)
        .subquery()
    )
    columns: list[Any] = [
        processes.c.host,
        processes.c.pid,
        func.coalesce(processes.c.name, processes.c.program),
        pools.c.pool,
        *(pools.c[name] for name in ("name", "kind", "url", "size", "max_overflow")),
        *(column for column in of_pool.c if column.name != "number"),
    ]
    query = (
        select(*columns)
        .join(pools, pools.c.id == of_pool.c.number)
        .join(processes, processes.c.id == pools.c.process_id)
        .order_by(processes.c.host, processes.c.pid, pools.c.pool)
    )
    return [PoolTotal(*row) for row in connection.execute(query)]


def most_out(connection: Connection, since: float) -> dict[str | None, int]:
    """The most connections out at once in any minute, by the URL of the pools.

    It is an upper bound: the pools of one minute may have had their peaks at different
    seconds of it.
    """
    of_minute = (
        select(pools.c.url, func.sum(pool_minutes.c.out_max).label("out"))
        .join(pools, pools.c.id == pool_minutes.c.pool_id)
        .where(pool_minutes.c.minute > since - _MINUTE_S)
        .group_by(pool_minutes.c.minute, pools.c.url)
        .subquery()
    )
    query = select(of_minute.c.url, func.max(of_minute.c.out)).group_by(of_minute.c.url)
    return {url: int(out) for url, out in connection.execute(query)}
