"""What a sidecar takes over from the one before it: nothing is counted twice or lost.

The newest snapshot of a process has its counters as they were written last. If it was
taken at the last look, the next look goes on from there, and what has happened between
the two sidecars is counted. Otherwise the first look is the base line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import Connection, Row, func, select, true, update

from poolwatch.errors import UnreachableError
from poolwatch.model import Incident, Process
from poolwatch.sidecar.history.minutes import Totals
from poolwatch.sidecar.history.pending import KEEP_S, Pending, Seen
from poolwatch.sidecar.history.pictures import unpack
from poolwatch.sidecar.history.reading import incident_of
from poolwatch.sidecar.history.schema import incidents, processes, snapshots

_SAME_S = 1e-5
"""Times differ by less if they are the same."""


def resume(
    connection: Connection, pending: Pending, hosts: Collection[str]
) -> list[Incident]:
    """Load the state of these hosts; returns the incidents that have not ended."""
    ours = processes.c.host.in_(hosts)
    last = connection.scalar(select(func.max(processes.c.last_seen_at)).where(ours))
    if last is None:
        return []
    pending.looked_at = last
    alive = select(processes).where(
        ours, processes.c.ended_at.is_(None), processes.c.last_seen_at >= last - KEEP_S
    )
    for row in connection.execute(alive):
        base = _base(connection, row)
        totals = None if base is None else Totals(base)
        pending.seen[row.id] = Seen(row._asdict(), totals)
    lasting = (
        select(
            incidents,
            processes.c.host,
            processes.c.pid,
            true().label("snapshot"),
        )
        .join(processes, processes.c.id == incidents.c.process_id)
        .where(ours, incidents.c.ended_at.is_(None))
        .order_by(incidents.c.started_at)
    )
    found = []
    for row in connection.execute(lasting):
        pending.owners[row.id] = row.process_id
        found.append(incident_of(row))
    return found


def end_others(
    connection: Connection, known: Iterable[str], hosts: Collection[str]
) -> None:
    """End what an earlier sidecar of these hosts has left open.

    For a store that was away at the start: its incidents go on under new ids.
    """
    of_hosts = select(processes.c.id).where(processes.c.host.in_(hosts))
    connection.execute(
        update(incidents)
        .where(
            incidents.c.ended_at.is_(None),
            incidents.c.process_id.in_(of_hosts),
            incidents.c.id.not_in(list(known)),
        )
        .values(ended_at=incidents.c.last_seen_at)
    )


def _base(connection: Connection, row: Row[Any]) -> Process | None:
    newest = connection.execute(
        select(snapshots.c.at, snapshots.c.document)
        .where(snapshots.c.process_id == row.id)
        .order_by(snapshots.c.at.desc())
        .limit(1)
    ).first()
    if newest is None or not isinstance(newest.at, int | float):
        return None
    if abs(newest.at - row.last_seen_at) > _SAME_S:
        return None
    try:
        return unpack(newest.document)
    except UnreachableError:
        return None
