"""Prove which row of ``pg_stat_activity`` belongs to which hold, or leave it out.

A pid alone proves nothing: two servers may use the same pid, one server reuses pids,
and a pooler in between invents them. So more than the pid is compared:

*The port.* The client port of a TCP connection, as the process and as the server see
it. While the connection is open, no other connection of this machine has that port
towards that server: equal ports are proof. Different ports disprove nothing: a proxy, a
container network or an SSH tunnel may be in between.

*The age.* PostgreSQL stamps ``backend_start`` when it forks the backend, which is
between the start and the end of the driver's connect call. Each age is measured on its
own clock, so an offset between the clocks does not matter:

    age of the connection <= age of the backend <= age of the connection + connect time

within the time between the two readings (an interval that the caller has measured),
SLACK_S for the scheduler, and DRIFT for clocks of different speed. A backend that
reused the pid is younger than the connection: it can only pass if the first backend
lived for less than that tolerance. If a clock was set or a laptop slept, a true row
fails the test: then the server's side of the hold is unknown, never wrong.

*The address.* For connections that are older than the instrumentation: their age is
unknown. If the connection goes to the very address that the reading is from, the server
itself has reported its pid; and the backend must be older than the time since the
connection was first seen. Only a backend that reused the pid and has that age passes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from poolwatch.model import (
    Backend,
    ClosedConnection,
    Connection,
    Hold,
    IdleConnection,
    Process,
    ServerRow,
)
from poolwatch.protocol.records import ServerReading

SLACK_S = 0.05
"""Longest time from the return of the connect call to its recording."""

DRIFT = 5e-5
"""Drift of two clocks, in seconds per second: undisciplined crystals reach this."""

MAX_DRIFT_S = 2.0
"""Upper bound of the drift: clocks are disciplined now and then."""

UNMEASURED_CONNECT_S = 1.0
"""Assumed longest time from the request to the fork of the backend, if not measured."""

Window = tuple[float, float]
"""Earliest and latest time of a reading, in seconds after the process's snapshot."""

SAME_MOMENT: Window = (-0.05, 0.05)


def join(
    process: Process,
    readings: Mapping[str, ServerReading],
    *,
    windows: Mapping[str, Window] | None = None,
) -> Process:
    """Return ``process`` with ``server`` filled in where the row is proven.

    Both mappings are by pool id. ``readings``: the reading of the pool's server.
    ``windows``: its time relative to the process snapshot; the same moment if absent. A
    reading's ``address`` must be in the notation of the process's own driver: it
    distinguishes the servers of a pool with several hosts.
    """
    if not readings:
        return process
    rows = {pool: {b.pid: b for b in r.backends} for pool, r in readings.items()}
    windows = windows or {}

    def proven(each: Hold | IdleConnection) -> Backend | None:
        backend = rows.get(each.pool, {}).get(each.backend_pid or 0)
        if backend is None or each.connection is None:
            return None
        window = windows.get(each.pool, SAME_MOMENT)
        address = readings[each.pool].address
        row = _proven_row(each.connection, backend, address, window)
        return None if row is None else backend

    def joined(hold: Hold) -> Hold:
        backend = proven(hold)
        if backend is None:
            return hold
        row = backend.row
        _, latest = windows.get(hold.pool, SAME_MOMENT)
        # both are None if the role may not see them
        ages = [age for age in (row.state_age_s, row.xact_age_s) if age is not None]
        return replace(
            hold, server=row, may_have_ended=bool(ages) and max(ages) < latest
        )

    def joined_idle(idle: IdleConnection) -> IdleConnection:
        backend = proven(idle)
        if backend is None:
            return idle
        _, latest = windows.get(idle.pool, SAME_MOMENT)
        return replace(
            idle,
            server=backend.row,
            unchanged_s=(backend.row.state_age_s or 0.0) - latest,
            advisory_locks=backend.advisory_locks,
        )

    return replace(
        process,
        holds=tuple(joined(hold) for hold in process.holds),
        idle=tuple(joined_idle(idle) for idle in process.idle),
    )


def claimed(
    process: Process, pool: str, reading: ServerReading, address: str | None = None
) -> ServerReading:
    """Return ``reading`` with only those rows that ``pool`` can claim.

    For a pool whose server is unknown. The proof is a connection's TCP port, or a
    connection to ``address``, the source of the reading, in the same notation on the
    same machine.
    """
    claims: dict[int | None, Connection | None]
    claims = {e.backend_pid: e.connection for e in process.idle if e.pool == pool}
    claims |= {e.backend_pid: e.connection for e in process.holds if e.pool == pool}
    backends = tuple(
        backend
        for backend in reading.backends
        if (connection := claims.get(backend.pid))
        and (same_port(connection, backend) or connection.address == (address or "-"))
    )
    return replace(reading, backends=backends)


def missing(
    process: Process,
    readings: Mapping[str, ServerReading],
    seen: Collection[tuple[str, str]] = (),
) -> frozenset[str]:
    """Ids of holds without a backend on their server; ``readings`` must be complete.

    ``seen``: holds that had one, and the identity of its server. Where something relays
    connections, perhaps to several servers, only those can be missed. A hold that ended
    during the reading may be among them: the caller must check.
    """
    found = set()
    for hold in process.holds:
        reading = readings.get(hold.pool)
        facts = hold.connection
        if reading is None or facts is None or hold.backend_pid is None:
            continue
        if facts.address is None or facts.address != reading.address:
            continue
        if reading.relayed and (hold.id, reading.identity) not in seen:
            continue
        if all(backend.pid != hold.backend_pid for backend in reading.backends):
            found.add(hold.id)
    return frozenset(found)


def others(held: Collection[int], reading: ServerReading) -> tuple[Backend, ...]:
    """The sessions that are not ``held``: all if all were wanted, else what blocks us.

    ``held`` are the pids of the holds of one process that are on that server.
    """
    rows = {backend.pid: backend for backend in reading.backends}
    if reading.left_out is None:
        chain = [pid for pid in held if pid in rows]
        met = set(chain)
        for pid in chain:
            fresh = [each for each in rows[pid].row.blocked_by if each not in met]
            met.update(fresh)
            chain += [each for each in fresh if each in rows]
        rows = {pid: rows[pid] for pid in chain}
    return tuple(backend for pid, backend in rows.items() if pid not in held)


def stray_sessions(
    process: Process,
    readings: Mapping[str, ServerReading],
    windows: Mapping[str, Window],
) -> tuple[tuple[ClosedConnection, Backend], ...]:
    """Connections that the application has given up, but the server still serves."""
    found: dict[tuple[str, int], tuple[ClosedConnection, Backend]] = {}
    for gone in process.departed:
        for pool in _pools_on_server_of(gone, readings):
            window = windows.get(pool, SAME_MOMENT)
            backend = _stray_session(gone, readings[pool], window)
            if backend is not None:  # a session is listed once
                found.setdefault(
                    (readings[pool].identity, backend.pid), (gone, backend)
                )
                break
    return tuple(found.values())


def _pools_on_server_of(
    gone: ClosedConnection, readings: Mapping[str, ServerReading]
) -> list[str]:
    """The pool of a connection, or pools whose server has the address of its server."""
    if gone.pool in readings:
        return [gone.pool]
    address = gone.connection.address or "-"
    return [pool for pool, reading in readings.items() if reading.address == address]


def _stray_session(
    gone: ClosedConnection, reading: ServerReading, window: Window
) -> Backend | None:
    """The session of a connection, if it is proven.

    One that a failed request has left behind must have been opened during the request:
    the request may have had an older connection, of others.
    """
    for backend in reading.backends:
        if backend.pid != gone.backend_pid:
            continue
        if gone.error is None or same_age(gone.connection, backend.age_s, window):
            proven = _proven_row(gone.connection, backend, reading.address, window)
            return backend if proven else None
    return None


def same_port(connection: Connection, backend: Backend) -> bool:
    """Whether both sides report the same client port."""
    return connection.client_port is not None and (
        connection.client_port == backend.client_port
    )


def same_age(
    connection: Connection,
    age_s: float | None,
    window: Window,
    slack_s: float = SLACK_S,
) -> bool:
    """Whether that age, of a backend, began during this connection's connect call."""
    if age_s is None:
        return False
    earliest, latest = window
    tolerance = slack_s + min(MAX_DRIFT_S, DRIFT * connection.age_s)
    if connection.met:
        return age_s >= connection.age_s + earliest - tolerance
    if connection.connect_s is None:  # age_s counts from the start of connecting
        low, high = connection.age_s - UNMEASURED_CONNECT_S, connection.age_s
    else:
        low, high = connection.age_s, connection.age_s + connection.connect_s
    return low + earliest - tolerance <= age_s <= high + latest + tolerance


def is_backend_of(connection: Connection, backend: Backend, window: Window) -> bool:
    """Whether a backend of the connection's own server is certainly the connection's.

    Stricter than what shows a row: an equal port alone does not prove that the
    connection is still open.
    """
    proven = _proven_row(connection, backend, connection.address, window) is not None
    return proven and same_age(connection, backend.age_s, window)


def _proven_row(
    connection: Connection, backend: Backend, address: str | None, window: Window
) -> ServerRow | None:
    if same_port(connection, backend):
        return backend.row
    if _is_other_address(connection, address):
        return None
    if connection.connect_s is None and _is_other_port(connection, backend):
        return None  # a loose age is too weak a proof if the ports differ
    if connection.met and (address is None or connection.address != address):
        return None
    return backend.row if same_age(connection, backend.age_s, window) else None


def _is_other_address(connection: Connection, address: str | None) -> bool:
    known = connection.address is not None and address is not None
    return known and connection.address != address


def _is_other_port(connection: Connection, backend: Backend) -> bool:
    return (
        connection.client_port is not None
        and backend.client_port is not None
        and connection.client_port != backend.client_port
    )
