"""Rows of minutes: what the counters of a process have grown by between two looks.

The row of a minute is kept until the minute is over, and is written as a whole whenever
it has changed. So it may be written twice. What another sidecar has written of the
same minute before, as before a restart, is read and added once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Table, select

from poolwatch.model import (
    BUCKETS,
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

    def add(self, process_id: int, process: Process, totals: Totals) -> dict[int, Row]:
        """Add what the process has counted since ``totals``, which it updates.

        Returns the rows of the call sites that were met.
        """
        for pool in process.pools:
            figures = totals.growth_of_pool(pool)
            self._add(pool_minutes, (id_of(process_id, pool.id),), figures)
        met: dict[int, Row] = {}
        for each in process.sites:
            figures = totals.growth_of_usage((each.pool, each.site), each)
            if any(figures.values()):
                site_id, row = _call_site(each.site, each.path)
                met[site_id] = row
                key = (id_of(process_id, each.pool), site_id)
                self._add(site_minutes, key, figures)
        for value in process.labels:
            name = (value.pool, value.label, value.value)
            figures = totals.growth_of_usage(name, value)
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


def cleaned(row: Row) -> Row:
    """A row whose texts both databases take."""
    return {k: clean(v) if isinstance(v, str) else v for k, v in row.items()}


@lru_cache(maxsize=20_000)
def _call_site(site: Frame, path: str | None) -> tuple[int, Row]:
    site_id = id_of(*site)
    return site_id, cleaned({"id": site_id, **site._asdict(), "path": path})


class Totals:
    """What a process has counted so far, by pool, call site and label."""

    def __init__(self, base: Process | None = None) -> None:
        """``base``: the state from which it is counted; None: from its beginning."""
        self._known: dict[Key, tuple[float, ...]] = {}
        if base is not None:
            Minute(0, shared=False).add(0, base, self)

    def growth_of_pool(self, pool: PoolStats) -> Row:
        """Return the figures of one look at a pool, and what its counters grew by."""
        row: Row = {
            "looks": 1,
            "out_sum": pool.checked_out,
            "out_max": pool.checked_out,
            "waiting_sum": pool.waiting,
            "waiting_max": pool.waiting,
        }
        now = pool.counters
        counters = {
            "checkouts": now.checkouts,
            "timeouts": now.timeouts,
            "connects": now.connects,
            "leaked": now.leaked,
        }
        row |= self._growth((pool.id, "counters"), counters)
        # waits by the time they were served; older agents have those of ended holds
        times = {"wait": pool.served_s or pool.wait_s, "hold": pool.hold_s}
        for name, each in times.items():
            up_to = each.up_to or (0,) * len(BUCKETS)
            buckets = dict(zip(BUCKETS, up_to, strict=True))
            grown = self._growth(
                (pool.id, name), {"count": each.count, "s": each.sum, **buckets}
            )
            count = row[f"{name}_count"] = grown.pop("count")
            row[f"{name}_s"] = grown.pop("s")
            row[f"{name}_up_to"] = list(grown.values()) if count else None
        return row

    def growth_of_usage(self, key: Key, now: SiteStats | LabelStats) -> Row:
        """Return what the counters of a call site or label grew by."""
        figures = {
            "count": now.count,
            "held_s": now.held_s,
            "wait_s": now.wait_s.sum,
            "wait_caused_s": now.wait_caused_s,
            "leaked": now.leaked,
        }
        return self._growth(key, figures)

    def _growth(self, key: Key, figures: Mapping[Any, float]) -> dict[Any, Any]:
        """Update the totals of a key; return by how much each has grown.

        A snapshot reads without a lock, and may count a hold twice that ends meanwhile.
        So a figure that falls is no new beginning: its highest value stays the base.
        """
        before = self._known.get(key) or (0,) * len(figures)
        known = self._known[key] = tuple(map(max, before, figures.values()))
        grown = (round(new - old, 6) for old, new in zip(before, known, strict=True))
        return dict(zip(figures, grown, strict=True))


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
