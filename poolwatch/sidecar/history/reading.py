"""Reads the history: how it was at a moment, and what happened in a stretch of time.

A reader creates nothing and writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import Connection, Engine, Select, and_, func, or_, select
from sqlalchemy.exc import SQLAlchemyError

from poolwatch.errors import NoProcessError, UnreachableError, UsageError
from poolwatch.model import (
    Frame,
    Incident,
    Process,
    Snapshot,
    Step,
    Unreachable,
)
from poolwatch.protocol.document import from_object
from poolwatch.sidecar.fleet import fleet_findings
from poolwatch.sidecar.history.pictures import unpack
from poolwatch.sidecar.history.schema import (
    call_sites,
    incidents,
    label_minutes,
    pool_minutes,
    pools,
    processes,
    site_minutes,
    snapshots,
)
from poolwatch.sidecar.history.store import check_minutes, failure
from poolwatch.sidecar.history.totals import PoolTotal, most_out, pool_totals
from poolwatch.text.format import utc_time

ALIVE_S = 60.0
"""A process is alive if it was seen within this time."""
_BEFORE_S = 600.0
"""A picture of the past also has the processes that ended shortly before."""
_ROUNDING_S = 0.001
"""The times that poolwatch prints are cut to milliseconds."""
_MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class _Minute:
    """One minute of one pool."""

    minute: int
    """Its first second."""
    host: str
    pid: int
    started_at: float
    """When the process was started."""
    service: str
    """The given name of the process, or else its program."""
    pool_id: int
    pool: str
    """Its name."""


@dataclass(frozen=True, slots=True)
class PoolMinute(_Minute):
    """What is in ``pool_minutes``, and the pool's limits."""

    pool_kind: str
    url: str | None
    size: int | None
    max_overflow: int | None
    timeout_s: float | None
    looks: int
    out_sum: int
    out_max: int
    waiting_sum: int
    waiting_max: int
    checkouts: int
    timeouts: int
    connects: int
    leaked: int
    wait_count: int
    wait_s: float
    wait_up_to: list[int] | None
    hold_count: int
    hold_s: float
    hold_up_to: list[int] | None


@dataclass(frozen=True, slots=True)
class _Usage(_Minute):
    count: int
    held_s: float
    wait_s: float
    wait_caused_s: float
    leaked: int


@dataclass(frozen=True, slots=True)
class SiteMinute(_Usage):
    """One call site's part of the minute."""

    file: str
    line: int
    function: str
    path: str | None

    @property
    def site(self) -> Frame:
        """The call site."""
        return Frame(self.file, self.line, self.function)


@dataclass(frozen=True, slots=True)
class LabelMinute(_Usage):
    """The part of one value of a label."""

    label: str
    value: str


_JOINED: dict[str, Any] = {
    "host": processes.c.host,
    "pid": processes.c.pid,
    "started_at": processes.c.started_at,
    "service": func.coalesce(processes.c.name, processes.c.program).label("service"),
    "pool": pools.c.name.label("pool"),
    "pool_kind": pools.c.kind.label("pool_kind"),
    **{name: pools.c[name] for name in ("url", "size", "max_overflow", "timeout_s")},
    **{name: call_sites.c[name] for name in ("file", "line", "function", "path")},
}
"""Columns of a minute that stand in other tables."""

_KEPT = and_(
    snapshots.c.process_id == incidents.c.process_id,
    snapshots.c.incident_id.is_not(None),
    snapshots.c.at >= incidents.c.started_at - _ROUNDING_S,
    snapshots.c.at <= incidents.c.last_seen_at + _ROUNDING_S,
)
"""The snapshot of an incident's first moment: the first one that was kept for an
incident while this one lasted. Incidents that begin in one look share it."""
_INCIDENTS = select(
    incidents,
    processes.c.host,
    processes.c.pid,
    select(1).where(_KEPT).correlate(incidents).exists().label("snapshot"),
).join(processes, processes.c.id == incidents.c.process_id)


class History:
    """Reads one store. Its methods raise PoolwatchError with one sentence."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def extent(self) -> tuple[float, float] | None:
        """Return the times of the first and the last look; None if there was none."""
        with self._reading() as connection:
            return _extent(connection)

    def snapshot(self, at: float | None = None) -> Snapshot:
        """Return the newest snapshot of each process at or before a moment.

        Without ``at``: of each process that was alive within the last minute. Raises
        NoProcessError if there is none, UsageError if ``at`` is before the history.
        """
        with self._reading() as connection:
            extent = _extent(connection)
            if extent is None:
                raise NoProcessError("the history is empty: no process was seen yet")
            first, last = extent
            if at is None:
                return _newest(connection, last)
            if at + _ROUNDING_S < first:
                raise UsageError(
                    f"{utc_time(at)} lies before the history, which begins at "
                    f"{utc_time(first)}"
                )
            return _picture(connection, at)

    def incidents(
        self,
        since: float | None = None,
        until: float | None = None,
        kinds: Collection[str] = (),
        host: str | None = None,
    ) -> list[Incident]:
        """Return the incidents that lasted within a stretch of time, oldest first."""
        query = _INCIDENTS
        if since is not None:
            lasting = incidents.c.ended_at.is_(None)
            query = query.where(
                or_(
                    incidents.c.ended_at >= since,
                    and_(lasting, incidents.c.last_seen_at >= since),
                )
            )
        if until is not None:
            query = query.where(incidents.c.started_at <= until)
        if kinds:
            query = query.where(incidents.c.kind.in_(kinds))
        if host is not None:
            query = query.where(processes.c.host == host)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        # SQLite would read a whole index for the order, instead of the stretch of time
        found = [incident_of(row) for row in rows]
        return sorted(found, key=lambda each: (each.started_at, each.id))

    def snapshot_of_incident(self, incident_id: str) -> Process | None:
        """Return the process at the first moment of an incident, if that was kept."""
        query = (
            select(snapshots.c.at, snapshots.c.document)
            .join(incidents, _KEPT)
            .where(incidents.c.id == incident_id)
            .order_by(snapshots.c.at)
            .limit(1)
        )
        with self._reading() as connection:
            for row in connection.execute(query):
                return _process(row.document, row.at)
        return None

    def kept_snapshots(
        self, since: float, until: float
    ) -> Iterator[tuple[float, Process]]:
        """Yield the readable snapshots from ``since`` to before ``until``, by time."""
        at = snapshots.c.at
        query = select(at, snapshots.c.document).where(at >= since, at < until)
        with self._reading() as connection:
            rows = connection.execute(query.order_by(at)).all()
        for row in rows:
            with suppress(UnreachableError):
                yield row.at, _process(row.document, row.at)

    def totals(self, since: float) -> tuple[list[PoolTotal], dict[str | None, int]]:
        """Return what each pool has used since then.

        And the most connections out at once in any minute, by the URL of the pools.
        """
        recent = pool_minutes.c.minute > since - _MINUTE_S
        with self._reading() as connection:
            check_minutes(connection, pool_minutes, recent)
            return pool_totals(connection, since), most_out(connection, since)

    def pool_minutes(self, since: float, until: float) -> list[PoolMinute]:
        """Return the minutes of all pools that overlap with a stretch of time."""
        return self._minutes(PoolMinute, pool_minutes, since, until)

    def site_minutes(self, since: float, until: float) -> list[SiteMinute]:
        """Return the minutes of all call sites."""
        return self._minutes(SiteMinute, site_minutes, since, until)

    def label_minutes(self, since: float, until: float) -> list[LabelMinute]:
        """Return the minutes of all values of labels."""
        return self._minutes(LabelMinute, label_minutes, since, until)

    def _minutes(self, kind: Any, table: Any, since: float, until: float) -> list[Any]:
        within = _overlapping(table, since, until)
        names = [field.name for field in fields(kind)]
        wanted = [_JOINED[n] if n in _JOINED else table.c[n] for n in names]
        query = (
            select(*wanted)
            .select_from(table)
            .join(pools, pools.c.id == table.c.pool_id)
            .join(processes, processes.c.id == pools.c.process_id)
            .where(*within)
            .order_by(table.c.minute)
        )
        if table is site_minutes:
            query = query.join(call_sites, call_sites.c.id == table.c.call_site_id)
        with self._reading() as connection:
            check_minutes(connection, table, *within)
            return [kind(*row) for row in connection.execute(query)]

    def most_a_minute(self, since: float, until: float) -> list[tuple[int, Step]]:
        """Return each recorded minute that overlaps with a stretch of time.

        The most of each pool are added up: pools do not peak at the same moment.
        """
        minute = pool_minutes.c.minute
        most = (func.sum(pool_minutes.c[f"{name}_max"]) for name in Step._fields)
        within = _overlapping(pool_minutes, since, until)
        query = select(minute, *most).where(*within).group_by(minute)
        with self._reading() as connection:
            check_minutes(connection, pool_minutes, *within)
            rows = connection.execute(query).all()
        return [(row[0], Step(int(row[1]), int(row[2]))) for row in rows]

    def moment_after(self, at: float, by: int) -> float:
        """Return when a snapshot was taken, ``by`` steps after the one at ``at``."""
        moment = snapshots.c.at
        back = select(moment).where(moment <= at + _ROUNDING_S).order_by(moment.desc())
        ahead = select(moment).where(moment > at + _ROUNDING_S).order_by(moment)
        tries = [back.limit(1 - by)] if by <= 0 else [ahead.limit(by), back.limit(1)]
        with self._reading() as connection:
            for query in (*tries, ahead.limit(1)):
                found = connection.scalars(query.distinct()).all()
                if found:
                    return float(found[-1])
        return at

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A connection; what the database or its driver raises becomes a sentence."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise failure(error) from None


# -- snapshots -----------------------------------------------------------------------


def _overlapping(table: Any, since: float, until: float) -> tuple[Any, Any]:
    """The conditions for the minutes that overlap with a stretch of time."""
    return table.c.minute > since - _MINUTE_S, table.c.minute <= until


def _extent(connection: Connection) -> tuple[float, float] | None:
    firsts = (snapshots.c.at, pool_minutes.c.minute, incidents.c.started_at)
    lowest = [select(func.min(column)).scalar_subquery() for column in firsts]
    last = select(func.max(processes.c.last_seen_at)).scalar_subquery()
    *found, end = connection.execute(select(*lowest, last)).one()
    known = [float(first) for first in found if first is not None]
    return (min(known), float(end)) if known and end is not None else None


def _newest(connection: Connection, last: float) -> Snapshot:
    """The newest snapshot of every process that is alive."""
    since = time.time() - ALIVE_S
    if last < since:
        raise NoProcessError(
            "no process was alive within the last minute: the last look of the history "
            f"was at {utc_time(last)} (poolwatch ps --at {utc_time(last)} shows it)"
        )
    return _snapshot(connection, None, since, since)


def _picture(connection: Connection, at: float) -> Snapshot:
    """The processes of a past moment, and those that had ended shortly before.

    If nothing was watched at that moment, the moment before counts.
    """
    last = connection.scalar(
        select(func.max(processes.c.last_seen_at)).where(
            processes.c.started_at <= at + _ROUNDING_S
        )
    )
    seen = at if last is None else min(at, last)
    return _snapshot(connection, at, seen - _BEFORE_S, seen - ALIVE_S)


def _snapshot(
    connection: Connection, at: float | None, since: float, alive_since: float
) -> Snapshot:
    """``since``: leave out processes that were last seen before.

    Findings over all hosts are about those that were seen since ``alive_since``.
    """
    found: list[Process] = []
    alive: list[Process] = []
    damaged: list[Unreachable] = []
    for row in connection.execute(_snapshots_at(at, since)):
        if row.at is None:
            continue
        try:
            process = _process(row.document, row.at)
        except UnreachableError as error:
            damaged.append(Unreachable(row.pid, str(error), since=utc_time(row.at)))
            continue
        found.append(process)
        # one that was restarted does not count beside its successor
        ended = row.ended_at is not None and (at is None or row.ended_at <= at)
        if row.last_seen_at >= alive_since and not ended:
            alive.append(process)
    if not found and not damaged:
        raise NoProcessError("the history has no snapshot of that time")
    taken = max((each.at for each in found if each.at), default=utc_time(since))
    return Snapshot(tuple(found), tuple(damaged), taken, tuple(fleet_findings(alive)))


def _snapshots_at(at: float | None, since: float) -> Select[Any]:
    """Two look-ups in an index for each process, whatever the number of snapshots.

    A join would leave it to the planner to read all snapshots instead.
    """

    def of_newest(column: Any) -> Any:
        newest = select(column).where(snapshots.c.process_id == processes.c.id)
        if at is not None:
            newest = newest.where(snapshots.c.at <= at + _ROUNDING_S)
        newest = newest.order_by(snapshots.c.at.desc()).limit(1)
        return newest.scalar_subquery().label(column.name)

    return (
        select(
            processes.c.pid,
            processes.c.last_seen_at,
            processes.c.ended_at,
            of_newest(snapshots.c.at),
            of_newest(snapshots.c.document),
        )
        .where(processes.c.last_seen_at >= since)
        .order_by(processes.c.host, processes.c.pid, processes.c.started_at)
    )


def _process(kept: bytes, at: float) -> Process:
    """Read a kept document; raises UnreachableError if it is damaged."""
    return replace(unpack(kept), at=utc_time(at))


# -- incidents -----------------------------------------------------------------------


def incident_of(row: Any) -> Incident:
    """The incident of a row, which has its process's host and pid, too.

    Raises UnreachableError if the row is damaged.
    """
    values = {field.name: getattr(row, field.name) for field in fields(Incident)}
    for name in ("started_at", "last_seen_at", "ended_at"):
        try:
            values[name] = values[name] and utc_time(values[name])
        except (TypeError, ValueError, OverflowError, OSError):
            raise UnreachableError("an incident of it has no valid time") from None
    return from_object(Incident, {**values, "snapshot": bool(row.snapshot)})
