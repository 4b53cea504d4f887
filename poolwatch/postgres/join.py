"""Prove which row of ``pg_stat_activity`` belongs to which hold, or leave it out.

A pid alone proves nothing: the same pid exists on two servers, again later on the same
one, and a pooler in between makes one up. What is compared, besides the pid:

*The port.* Our end of a TCP connection, as the process and as the server see it. While
the connection is open nobody else on this machine has that port towards that server:
equal ports are proof. Different ports are no proof of the contrary, since a proxy, a
container network or an SSH tunnel may stand in between.

*The age.* PostgreSQL stamps ``backend_start`` when it forks the backend, that is
between the start and the end of the driver's connect call. So, each on its own clock
and therefore untouched by an offset between the two,

    age of the connection <= age of the backend <= age of the connection + connect time

give or take the time that passed between the two looks (an interval the caller has
measured), SLACK_S for the scheduler, and DRIFT for clocks that run at different speeds.
A backend that took over the pid is younger than the connection: it can only pass if
the first backend lived for less than that tolerance. A clock that was set, or a laptop
that slept, makes a true row fail: then the server's side is unknown, which is the
lesser evil.

*The address*, of a connection that the pool had before it was instrumented and of which
nobody knows the age. If the connection is to the very address that the reading is from,
the server itself has told its pid; and the backend must be older than our first look at
the connection. Only one that took over both the pid and that age could pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from poolwatch.model import Connection, Departed, Hold, Process, ServerRow
from poolwatch.protocol.readings import Backend, ServerReading

SLACK_S = 0.05
"""Between the connect call's return and the moment it is noted, at most."""

DRIFT = 5e-5
"""Seconds per second two clocks drift apart; undisciplined crystals reach this."""

MOST_DRIFT_S = 2.0
"""Disciplined clocks do not drift without end."""

UNMEASURED_CONNECT_S = 1.0
"""Allowed from asking for a connection to the fork of its backend, if not measured."""

Window = tuple[float, float]
"""Earliest and latest moment of the reading, in seconds after that of the process."""

SAME_MOMENT: Window = (-0.05, 0.05)


@dataclass(frozen=True, slots=True)
class AgentReading:
    """What an agent says of one server that pools of its process are on."""

    pools: tuple[str, ...]
    """Ids of the pools that share one URL, and with it this reading."""
    reading: ServerReading | None
    error: str | None
    """One sentence when there is no reading, else None."""
    enabled: bool = True
    """False if the application switched it off (``server_view=False``)."""
    down: str | None = None
    """If the server does not answer: what it or its driver said."""
    address: str | None = None
    """Where the pools are connected to, as far as their connections tell."""


def join(
    process: Process,
    readings: Mapping[str, ServerReading],
    *,
    windows: Mapping[str, Window] | None = None,
) -> Process:
    """Return ``process`` with ``server`` filled in where the row is proven.

    ``readings`` has, by pool id, a reading of the server that pool is on; ``windows``
    how much later than the process that reading was taken (same moment if absent).
    A reading's ``address``, if given, must be in the words of the process's own driver:
    it tells the servers of a pool with several hosts apart.
    """
    if not readings:
        return process
    rows = {pool: {b.pid: b for b in r.backends} for pool, r in readings.items()}
    windows = windows or {}

    def joined(hold: Hold) -> Hold:
        backend = rows.get(hold.pool, {}).get(hold.backend_pid or 0)
        if backend is None or hold.connection is None:
            return hold
        window = windows.get(hold.pool, SAME_MOMENT)
        address = readings[hold.pool].address
        return replace(hold, server=_row(hold.connection, backend, address, window))

    return replace(process, holds=tuple(joined(hold) for hold in process.holds))


def claimed(
    process: Process, pool: str, reading: ServerReading, address: str | None = None
) -> ServerReading:
    """Only those rows that a hold of ``pool`` can claim as its server's.

    For a pool of which nobody could tell the server: its TCP port is proof, or else
    that it is connected to ``address``, where the reading comes from, in the same
    words on the same machine.
    """
    claims = {
        hold.backend_pid: hold.connection
        for hold in process.holds
        if hold.pool == pool and hold.connection is not None
    }
    backends = tuple(
        backend
        for backend in reading.backends
        if (connection := claims.get(backend.pid))
        and (same_port(connection, backend) or connection.address == (address or "-"))
    )
    return replace(reading, backends=backends)


def missing(process: Process, readings: Mapping[str, ServerReading]) -> frozenset[str]:
    """Ids of holds that have no backend on their server, in whole readings of it.

    Only a hold that was open before and after the reading is proven to be missing.
    """
    found = set()
    for hold in process.holds:
        reading = readings.get(hold.pool)
        facts = hold.connection
        if reading is None or facts is None or hold.backend_pid is None:
            continue
        if facts.address is None or facts.address != reading.address:
            continue
        if all(backend.pid != hold.backend_pid for backend in reading.backends):
            found.add(hold.id)
    return frozenset(found)


def strays(
    process: Process,
    readings: Mapping[str, ServerReading],
    windows: Mapping[str, Window],
) -> tuple[tuple[Departed, Backend], ...]:
    """Connections that the application gave up and the server still serves."""
    return tuple(
        (gone, backend)
        for gone in process.departed
        for backend in getattr(readings.get(gone.pool), "backends", ())
        if backend.pid == gone.backend_pid
        if _row(
            gone.connection,
            backend,
            readings[gone.pool].address,
            windows.get(gone.pool, SAME_MOMENT),
        )
    )


def same_port(connection: Connection, backend: Backend) -> bool:
    """Whether both ends name the same TCP port of ours."""
    return connection.client_port is not None and (
        connection.client_port == backend.client_port
    )


def same_age(connection: Connection, backend: Backend, window: Window) -> bool:
    """Whether the backend was forked by this connection's own connect call."""
    if backend.age_s is None:
        return False
    earliest, latest = window
    tolerance = SLACK_S + min(MOST_DRIFT_S, DRIFT * connection.age_s)
    if connection.met:
        return backend.age_s >= connection.age_s + earliest - tolerance
    if connection.connect_s is None:  # then age_s begins before the connect call
        low, high = connection.age_s - UNMEASURED_CONNECT_S, connection.age_s
    else:
        low, high = connection.age_s, connection.age_s + connection.connect_s
    return low + earliest - tolerance <= backend.age_s <= high + latest + tolerance


def _row(
    connection: Connection, backend: Backend, address: str | None, window: Window
) -> ServerRow | None:
    if same_port(connection, backend):
        return backend.row
    if _elsewhere(connection, address):
        return None
    if connection.connect_s is None and _other_port(connection, backend):
        return None  # one doubt too many for a loose age
    if connection.met and (address is None or connection.address != address):
        return None
    return backend.row if same_age(connection, backend, window) else None


def _elsewhere(connection: Connection, address: str | None) -> bool:
    known = connection.address is not None and address is not None
    return known and connection.address != address


def _other_port(connection: Connection, backend: Backend) -> bool:
    return (
        connection.client_port is not None
        and backend.client_port is not None
        and connection.client_port != backend.client_port
    )
