"""What the looks have brought and the store does not have yet, in bounded memory.

Every row is kept once, in its newest state: while the store is away, its size grows
with the number of minutes, not with that of looks.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Table

from poolwatch.model import Incident, PoolStats, Process, Unreachable
from poolwatch.sidecar.history.minutes import (
    MINUTE_S,
    Key,
    Minute,
    Row,
    Totals,
    cleaned,
    id_of,
)
from poolwatch.sidecar.history.partitions import day_of
from poolwatch.sidecar.history.pictures import Picture, Pictures
from poolwatch.sidecar.history.schema import (
    call_sites,
    incidents,
    pool_minutes,
    pools,
    processes,
    site_minutes,
)
from poolwatch.sidecar.looks import Look
from poolwatch.text.naming import with_names

KEEP_S = 600.0
"""How long what the store cannot take is kept in memory."""
KEEP_BYTES = 16 << 20
_ROW_BYTES = 500
_SAME_S = 0.001
_GONE_AFTER = 3
"""Looks that neither show nor list a process which has ended."""
_MAX_KNOWN = 20_000
_KNOWN_S = 600.0
"""How long a row is taken to be in the store, which forgets those without minutes."""
RECORDS = (processes, pools, call_sites, incidents)
"""Tables whose rows are not of one minute."""
_NAMES = {table: [column.name for column in table.c] for table in RECORDS}

Rows = dict[Table, dict[Key, Row]]


class Seen:
    """A process as of the last look that showed it."""

    __slots__ = ("missed", "row", "totals")

    def __init__(self, row: Row, totals: Totals | None) -> None:
        self.row = row
        """Its row in the store."""
        self.totals = totals
        """None if it was seen by an earlier sidecar and its counters are unknown."""
        self.missed = 0


class Batch(NamedTuple):
    """Rows for one transaction."""

    at: float
    """The time of the last look."""
    records: Rows
    minutes: dict[int, Rows]
    pictures: list[Picture]


class Pending:
    """Takes looks, gives batches. Not thread-safe."""

    def __init__(self) -> None:
        self.dropped = 0
        """Looks that were not written and are lost, in whole minutes."""
        self.pictures = Pictures()
        self.seen: dict[int, Seen] = {}
        self.owners: dict[str, int] = {}
        """The process of each incident that lasts, by the incident's id."""
        self.looked_at: float | None = None
        self._listed: tuple[Unreachable, ...] | None = None
        """What the last look of this sidecar has listed as unreachable."""
        self._minutes: dict[int, Minute] = {}
        self._minute_now: int | None = None
        self._highest: float = float("inf")
        """The latest minute that there was; before the first one, any may have been."""
        self._records: Rows = {table: {} for table in RECORDS}
        self._known: dict[Key, tuple[object, float]] = {}
        """Rows of pools and call sites that were given out: their contents and when."""

    # -- looks ---------------------------------------------------------------------

    def take(self, look: Look) -> None:
        """Take a look that has not failed."""
        minute = self._minute(look.at)
        minute.looks += 1
        shown = {
            self._show(process, minute, look) for process in look.snapshot.processes
        }
        self._miss(shown, look)
        self._listed = look.snapshot.unreachable
        self._take_incidents(look)
        self.looked_at = look.at
        self._forget(look.at)

    def _minute(self, at: float) -> Minute:
        start = int(at // MINUTE_S) * MINUTE_S
        minute = self._minutes.get(start)
        if minute is None:
            shared = start <= self._highest  # an earlier sidecar's; the clock went back
            minute = self._minutes[start] = Minute(start, shared=shared)
            is_first = self._minute_now is None
            self._highest = start if is_first else max(start, self._highest)
        self._minute_now = start
        return minute

    def _show(self, process: Process, minute: Minute, look: Look) -> int:
        process_id = id_of(process.host, process.pid, process.started_at)
        totals = self._totals(process_id, process, look)
        for site_id, site in minute.add(process_id, process, totals).items():
            if self._is_new(call_sites, site_id, site, look.at):
                self._records[call_sites][site_id,] = site
        row = _process_row(process_id, process, look.at)
        self.seen[process_id] = Seen(row, totals)
        self._records[processes][process_id,] = row
        for pool in with_names(process).pools:
            pool_id = id_of(process_id, pool.id)
            setup = (pool.name, pool.kind, pool.url, pool.size, pool.max_overflow)
            if self._is_new(pools, pool_id, (*setup, pool.timeout_s), look.at):
                self._records[pools][pool_id,] = _pool_row(pool_id, process_id, pool)
        self.pictures.show(process_id, process, look.at)
        return process_id

    def _totals(self, process_id: int, process: Process, look: Look) -> Totals:
        """The totals from which a process is counted.

        A process that the last look should have shown and did not is new. Otherwise,
        what it did before is not known to have happened now, and the first look is the
        base line.
        """
        seen = self.seen.get(process_id)
        began = seconds(process.started_at)
        if seen is not None:
            late = look.at - seen.row["last_seen_at"] > KEEP_S
            known = None if late else seen.totals
            return known or Totals(process)
        if self.looked_at is None or look.at - self.looked_at > KEEP_S:
            return Totals(process)
        if began > self.looked_at:
            return Totals()
        # a forked worker has the start time of its parent
        is_known = self._listed is None or any(
            each.pid is None or _is_of(each, process.pid, began)
            for each in self._listed
        )
        return Totals(process if is_known else None)

    def _is_new(self, table: Table, row_id: int, content: object, at: float) -> bool:
        """Whether a row of this content has not been given out lately."""
        key = (table.name, row_id)
        known, given_at = self._known.get(key, (None, 0.0))
        if known == content and abs(at - given_at) < _KNOWN_S:
            return False
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()
        self._known[key] = content, at
        return True

    def _miss(self, shown: Iterable[int], look: Look) -> None:
        """Notice which processes have ended."""
        for process_id in self.seen.keys() - set(shown):
            seen = self.seen[process_id]
            who = seen.row["pid"], seen.row["started_at"]
            listed = [u for u in look.snapshot.unreachable if _is_of(u, *who)]
            if any(each.alive is not False for each in listed):
                continue
            seen.missed += 1
            if not listed and seen.missed < _GONE_AFTER:
                continue
            del self.seen[process_id]
            self.pictures.end(process_id)
            row = {**seen.row, "ended_at": look.at}
            self._records[processes][process_id,] = row

    def _take_incidents(self, look: Look) -> None:
        changes = look.changes
        for began in changes.began:
            process = began.process
            owner = id_of(process.host, process.pid, process.started_at)
            self.owners[began.incident.id] = owner
            at = seconds(began.incident.started_at)
            if abs(at - look.at) <= _SAME_S:  # printed times are cut to milliseconds
                at = look.at
            self.pictures.keep(owner, process, at, began.incident.id)
        every = (*(each.incident for each in changes.began), *changes.lasting)
        for incident in (*every, *changes.ended):
            owner_id = self._owner(incident)
            if owner_id is not None:
                self._records[incidents][incident.id,] = _incident_row(
                    incident, owner_id
                )
        for incident in changes.ended:
            self.owners.pop(incident.id, None)

    def _owner(self, incident: Incident) -> int | None:
        owner = self.owners.get(incident.id)
        if owner is None:  # it began under an earlier sidecar
            for process_id, seen in self.seen.items():
                if seen.row["pid"] == incident.pid:
                    owner = self.owners[incident.id] = process_id
        return owner

    # -- batches -------------------------------------------------------------------

    def batch(self, *, last: bool = False) -> Batch:
        """Give out all that is not written. ``last``: every process's picture, too."""
        records, self._records = self._records, {table: {} for table in RECORDS}
        minutes = {start: each.take() for start, each in self._minutes.items()}
        pictures = self.pictures.take(last=last)
        return Batch(self.looked_at or 0.0, records, minutes, pictures)

    def write_again(self) -> None:
        """The store may be a new one: nothing is known to be there."""
        self._known.clear()
        self.pictures.write_again()

    def days(self) -> set[int]:
        """The days that the next batch writes, today and tomorrow."""
        today = day_of(self.looked_at or 0.0)
        return {today, today + 1, *map(day_of, self._minutes)}

    def put_back(self, batch: Batch) -> None:
        """A batch could not be written: it goes into the next one."""
        for table, rows in batch.records.items():
            self._records[table] = rows | self._records[table]
        for start, taken in batch.minutes.items():
            if start in self._minutes:
                self._minutes[start].put_back(taken)
        self.pictures.put_back(batch.pictures)

    def written(self, batch: Batch) -> None:
        """A batch is in the store."""
        self.pictures.written(batch.pictures)
        for start in batch.minutes:
            minute = self._minutes.get(start)
            if minute is None or any(minute.unwritten.values()):
                continue
            minute.looks = 0
            if start != self._minute_now:
                del self._minutes[start]

    def shared_minutes(self) -> dict[Minute, list[int]]:
        """Minutes and pools whose rows in the store must be read before writing."""
        found = {each: each.pools_to_read() for each in self._minutes.values()}
        return {minute: pool_ids for minute, pool_ids in found.items() if pool_ids}

    def _forget(self, now: float) -> None:
        """Drop what is too old or too much."""
        for start in [each for each in self._minutes if each < now - KEEP_S]:
            self._drop(start)
        while self._bytes() > KEEP_BYTES and len(self._minutes) > 1:
            self._drop(min(self._minutes))
        if self._bytes() > KEEP_BYTES:  # a single minute: its rows are small
            self.pictures.drop_before(now)

    def _drop(self, start: int) -> None:
        self.dropped += self._minutes.pop(start).looks
        self.pictures.drop_before(start + MINUTE_S)
        for table, name in ((processes, "last_seen_at"), (incidents, "last_seen_at")):
            rows = self._records[table]
            for key in [k for k, row in rows.items() if row[name] < start]:
                del rows[key]
        self._drop_unused()

    def _drop_unused(self) -> None:
        """Drop the pools and call sites of which no minute is left."""
        minutes = self._minutes.values()
        used = {
            pools: {key[0] for each in minutes for key in each.rows[pool_minutes]},
            call_sites: {key[1] for each in minutes for key in each.rows[site_minutes]},
        }
        for table, ids in used.items():
            rows = self._records[table]
            for key in [key for key in rows if key[0] not in ids]:
                del rows[key]
                self._known.pop((table.name, *key), None)

    def _bytes(self) -> int:
        rows = sum(map(len, self._records.values()))
        for minute in self._minutes.values():
            rows += sum(map(len, minute.unwritten.values()))
        return rows * _ROW_BYTES + self.pictures.bytes()


def seconds(at: str) -> float:
    """A time in ISO 8601 as seconds since the epoch; 0 if it is none."""
    try:
        time = datetime.fromisoformat(at)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _is_of(unreachable: Unreachable, pid: int, started_at: float) -> bool:
    """Whether it is about this process, as far as is known."""
    started = unreachable.started_at
    same = started is None or seconds(started) == started_at
    return same and unreachable.pid == pid


def _process_row(process_id: int, process: Process, at: float) -> Row:
    return _row(
        processes,
        process,
        id=process_id,
        started_at=seconds(process.started_at),
        last_seen_at=at,
        ended_at=None,
    )


def _pool_row(pool_id: int, process_id: int, pool: PoolStats) -> Row:
    return _row(pools, pool, id=pool_id, process_id=process_id, pool=pool.id)


def _incident_row(incident: Incident, process_id: int) -> Row:
    places = [part for site in incident.sites for part in site]
    ended = incident.ended_at
    return _row(
        incidents,
        incident,
        process_id=process_id,
        started_at=seconds(incident.started_at),
        last_seen_at=seconds(incident.last_seen_at),
        ended_at=None if ended is None else seconds(ended),
        sites=[cleaned(site._asdict()) for site in incident.sites],
        identity=id_of(process_id, incident.pool, incident.kind, *places),
    )


def _row(table: Table, record: object, **others: object) -> Row:
    """The row of a record: its attributes by the names of columns, and others."""
    names = [name for name in _NAMES[table] if name not in others]
    return cleaned({**{name: getattr(record, name) for name in names}, **others})
