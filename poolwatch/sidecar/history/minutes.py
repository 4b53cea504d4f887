"""Rows of minutes: what the counters of a process have grown by between two looks.

The row of a minute is kept until the minute is over, and is written as a whole whenever
it has changed. So it may be written twice. What another sidecar has written of the
same minute before, as before a restart, is read and added once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, select

from poolwatch.model import (
    NO_SAMPLES,
    Distribution,
    Frame,
    LabelStats,
    PoolStats,
    Process,
    SiteStats,
)
from poolwatch.sidecar.history.schema import (
    identifier,
    label_minutes,
    pool_minutes,
    site_minutes,
)

MINUTE_S = 60
TABLES = (pool_minutes, site_minutes, label_minutes)
_MAX_TEXT = 200
"""Characters of a label: it is part of a key, which PostgreSQL limits."""
_KEYS = {table: [column.name for column in table.primary_key] for table in TABLES}
Row = dict[str, Any]
Key = tuple[Any, ...]
Usage = TypeVar("Usage", SiteStats, LabelStats)
id_of = lru_cache(maxsize=20_000)(identifier)


class Minute:
    """The rows of one minute."""

    def __init__(self, start: int, *, shared: bool) -> None:
        """``shared``: the store may have rows of it that this sidecar does not know."""
        self.start = start
        self.looks = 0
        """Looks that are not in the store."""
        self.rows: dict[Table, dict[Key, Row]] = {table: {} for table in TABLES}
        self.unwritten: dict[Table, set[Key]] = {table: set() for table in TABLES}
        self._shared = shared
        self._read: set[int] = set()
        """Pools whose earlier rows have been added."""

    def add(
        self, process_id: int, process: Process, before: Process | None
    ) -> dict[int, Row]:
        """Add what has happened since ``before``; None: since the process began.

        Returns the rows of the call sites that were met.
        """
        pools = {pool.id: pool for pool in before.pools} if before else {}
        for pool in process.pools:
            figures = _pool_figures(pool, pools.get(pool.id))
            self._add(pool_minutes, (id_of(process_id, pool.id),), figures)
        met: dict[int, Row] = {}
        sites = {(s.pool, s.site): s for s in before.sites} if before else {}
        for each in process.sites:
            figures = _usage(each, sites.get((each.pool, each.site)))
            if any(figures.values()):
                site_id, row = _call_site(each.site, each.path)
                met[site_id] = row
                key = (id_of(process_id, each.pool), site_id)
                self._add(site_minutes, key, figures)
        labels = (
            {(s.pool, s.label, s.value): s for s in before.labels} if before else {}
        )
        for value in process.labels:
            known = labels.get((value.pool, value.label, value.value))
            figures = _usage(value, known)
            if any(figures.values()):
                pool_id = id_of(process_id, value.pool)
                texts = (clean(text)[:_MAX_TEXT] for text in (value.label, value.value))
                self._add(label_minutes, (pool_id, *texts), figures)
        return met

    def take(self) -> dict[Table, dict[Key, Row]]:
        """Return what has not been written, and count it as written."""
        taken = {
            table: {key: {**self.rows[table][key]} for key in keys}
            for table, keys in self.unwritten.items()
        }
        for keys in self.unwritten.values():
            keys.clear()
        return taken

    def put_back(self, taken: Mapping[Table, Mapping[Key, Row]]) -> None:
        """What was taken has not been written after all."""
        for table, rows in taken.items():
            self.unwritten[table] |= rows.keys()

    def pools_to_read(self) -> list[int]:
        """Pools that have changed, and whose earlier rows have not been added."""
        if not self._shared:
            return []
        return [
            key[0] for key in self.unwritten[pool_minutes] if key[0] not in self._read
        ]

    def add_earlier(
        self, pools: Iterable[int], rows: Mapping[Table, Iterable[Mapping[str, Any]]]
    ) -> None:
        """Add the rows that the store had of these pools."""
        self._read.update(pools)
        for table, found in rows.items():
            names = _KEYS[table]
            for each in found:
                key = tuple(each[name] for name in names[1:])
                known = self.rows[table].get(key)
                if known is None:
                    self.rows[table][key] = {**each}
                else:
                    _sum(known, {k: v for k, v in each.items() if k not in names})

    def _add(self, table: Table, key: Key, figures: Row) -> None:
        row = self.rows[table].get(key)
        if row is None:
            names = _KEYS[table]
            keys = zip(names, (self.start, *key), strict=True)
            self.rows[table][key] = {**dict(keys), **figures}
        else:
            _sum(row, figures)
        self.unwritten[table].add(key)


def earlier_rows(
    connection: Connection, minute: int, pools: Sequence[int]
) -> dict[Table, list[Mapping[str, Any]]]:
    """Read what the store has of a minute and these pools."""
    return {
        table: [
            row._asdict()
            for row in connection.execute(
                select(table).where(
                    table.c.minute == minute, table.c.pool_id.in_(pools)
                )
            )
        ]
        for table in TABLES
    }


def clean(text: str) -> str:
    """A text that both databases take: no NUL, no half of a surrogate pair."""
    return text.encode(errors="replace").decode().replace("\0", "?")


@lru_cache(maxsize=20_000)
def _call_site(site: Frame, path: str | None) -> tuple[int, Row]:
    site_id = id_of(*site)
    return site_id, {
        "id": site_id,
        "file": clean(site.file),
        "line": site.line,
        "function": clean(site.function),
        "path": None if path is None else clean(path),
    }


def _pool_figures(pool: PoolStats, before: PoolStats | None) -> Row:
    now = pool.counters
    if before is not None and now.checkouts < before.counters.checkouts:
        before = None  # it was instrumented anew
    then = before.counters if before else None
    row: Row = {
        "looks": 1,
        "out_sum": pool.checked_out,
        "out_max": pool.checked_out,
        "waiting_sum": pool.waiting,
        "waiting_max": pool.waiting,
    }
    for name in ("checkouts", "timeouts", "connects", "leaked"):
        earlier = getattr(then, name) if then else 0
        row[name] = max(0, getattr(now, name) - earlier)
    waits = _since(_served(pool), _served(before) if before else None)
    holds = _since(pool.hold_s, before.hold_s if before else None)
    for kind, (count, seconds, up_to) in (("wait", waits), ("hold", holds)):
        row |= {f"{kind}_count": count, f"{kind}_s": seconds, f"{kind}_up_to": up_to}
    return row


def _served(pool: PoolStats) -> Distribution:
    """Waits by the time they were served; older agents have those of ended holds."""
    return pool.served_s or pool.wait_s


def _since(
    now: Distribution, before: Distribution | None
) -> tuple[int, float, list[int] | None]:
    if before is None or before.count > now.count:
        before = NO_SAMPLES
    count = now.count - before.count
    if not count:
        return 0, 0.0, None
    seconds = round(max(0.0, now.sum - before.sum), 6)
    earlier = before.up_to or (0,) * len(now.up_to)
    up_to = [new - old for new, old in zip(now.up_to, earlier, strict=False)]
    return count, seconds, up_to or None


def _usage(now: Usage, before: Usage | None) -> Row:
    if before is now:
        return {}
    if before is None or before.count > now.count:
        before = None
    waited = before.wait_s.sum if before else 0.0
    caused = before.wait_caused_s if before else 0.0
    held = before.held_s if before else 0.0
    return {
        "count": now.count - (before.count if before else 0),
        "held_s": round(max(0.0, now.held_s - held), 6),
        "wait_s": round(max(0.0, now.wait_s.sum - waited), 6),
        "wait_caused_s": round(max(0.0, now.wait_caused_s - caused), 6),
        "leaked": max(0, now.leaked - (before.leaked if before else 0)),
    }


def _sum(row: Row, more: Mapping[str, Any]) -> None:
    """Add figures: the highest of ``_max``, bucket by bucket of ``_up_to``."""
    for name, value in more.items():
        if not value:
            continue
        known = row[name]
        if known is None:
            row[name] = value
        elif name.endswith("_max"):
            row[name] = max(known, value)
        elif name.endswith("_up_to"):
            row[name] = [a + b for a, b in zip(known, value, strict=False)]
        else:
            row[name] = known + value
