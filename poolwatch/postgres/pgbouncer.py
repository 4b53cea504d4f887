"""Finds the server session of a hold behind PgBouncer, with the help of its console.

The console shows the sockets of PgBouncer's clients and servers, and which are linked.
Our client among them is found by both ends of its TCP connection and by its age; the
backend of a server by its pid, its client port and its age. See join.py for the ages;
those of the console are whole seconds. The ends of a Unix socket have no names: then
the session is unknown.

A link lasts as long as a transaction; in session mode, as long as the client's
connection. While the backend is read, it may go over to another client. So a row is
only shown if its transaction is older than the reading of the process (the link was
there after that), or if in session mode the same link was there before and after.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from poolwatch.errors import PoolwatchError, ServerViewError
from poolwatch.model import Backend, Connection, Hold, Process
from poolwatch.postgres.activity import tcp_end, values_of
from poolwatch.postgres.dsn_reader import connect
from poolwatch.postgres.errors import SILENT, as_failure
from poolwatch.postgres.join import DRIFT, MAX_DRIFT_S, SLACK_S, Window, same_age
from poolwatch.protocol.records import ServerReading
from poolwatch.text.format import duration

_SECOND = 1.0 + SLACK_S
"""Longest difference between an age and one in whole seconds."""
SILENT_CONSOLE = "PgBouncer's console: " + SILENT.replace("PostgreSQL", "PgBouncer")

Ends = tuple[str, str]
"""The client's end of a TCP connection and PgBouncer's, each ``host:port``."""


class Link(NamedTuple):
    """A server connection of PgBouncer, as long as it serves one client."""

    pid: int
    port: int
    """PgBouncer's end of the TCP connection; -1 for a Unix socket."""
    opened: datetime
    age_s: float
    session: bool
    """Whether it serves the client for the whole of the client's connection."""

    def is_same(self, other: Link | None) -> bool:
        """Whether two readings of the console show the same link, for one client."""
        return other is not None and self._replace(age_s=other.age_s) == other


class Client(NamedTuple):
    """A client of PgBouncer."""

    age_s: float
    link: Link | None
    """None while no server connection serves it."""
    waiting_s: float | None = None
    """How long its statement has waited for a server connection; None if none does."""


Clients = Mapping[Ends, Client]


class Console:
    """Reads PgBouncer's console over one persistent connection. Not thread-safe."""

    def __init__(self, dsn: str) -> None:
        """``dsn`` leads to PgBouncer; its database does not matter."""
        self._dsn = dsn
        self._connection: Any = None

    def read(self) -> Clients:
        """Return the clients that are connected by TCP; raises ServerViewError."""
        try:
            if self._connection is None:
                self._connection = connect(self._dsn, dbname="pgbouncer")
                self._connection.autocommit = True  # the console has no BEGIN
            return clients(self._show("POOLS"), self._show("SOCKETS"))
        except Exception as error:
            self.close()
            if isinstance(error, PoolwatchError):
                raise
            raise ServerViewError(f"PgBouncer's console: {_words(error)}") from None

    def _show(self, what: str) -> list[dict[str, Any]]:
        cursor = self._connection.cursor()
        cursor.execute(f"SHOW {what}")
        names = [column[0] for column in cursor.description]
        return [
            dict(zip(names, values_of(row), strict=True)) for row in cursor.fetchall()
        ]

    def close(self) -> None:
        """Close the connection, if any; the next read opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()


def clients(pools: list[dict[str, Any]], sockets: list[dict[str, Any]]) -> Clients:
    """The clients in the answers to SHOW POOLS and SHOW SOCKETS."""
    in_session_mode = {
        (pool["database"], pool["user"])
        for pool in pools
        if pool["pool_mode"] == "session"
    }
    # our own SHOW is the latest request of all
    now = max(_time(each["request_time"]) for each in sockets)

    def age(socket: dict[str, Any]) -> float:
        return (now - _time(socket["connect_time"])).total_seconds()

    links = {
        socket["ptr"]: Link(
            int(socket["remote_pid"]),
            -1 if socket["addr"] == "unix" else int(socket["local_port"]),
            _time(socket["connect_time"]),
            age(socket),
            (socket["database"], socket["user"]) in in_session_mode,
        )
        for socket in sockets
        if socket["type"] == "S"
    }
    return {
        (
            tcp_end(socket["addr"], socket["port"]),
            tcp_end(socket["local_addr"], socket["local_port"]),
        ): Client(age(socket), links.get(socket["link"]), _waiting_s(socket))
        for socket in sockets
        if socket["type"] == "C" and socket["addr"] != "unix"
    }


def links_of(process: Process, clients: Clients, window: Window) -> dict[str, Link]:
    """By the id of a hold: the server connection that serves its connection.

    ``window``: when the console was read, relative to the process's snapshot.
    """
    return {
        hold_id: client.link
        for hold_id, client in _clients_of(process, clients, window).items()
        if client.link is not None
    }


def with_queue(process: Process, clients: Clients, window: Window) -> Process:
    """Add to the evidence of holds that they wait in PgBouncer's own queue.

    ``window``: as for links_of(). Only waits that are older than the reading of the
    process count: others may be of the next holder of the connection.
    """
    waits = {
        hold_id: client.waiting_s
        for hold_id, client in _clients_of(process, clients, window).items()
        if client.waiting_s is not None and client.waiting_s > window[1]
    }

    def told(hold: Hold) -> Hold:
        if hold.id not in waits:
            return hold
        waited = duration(waits[hold.id])
        why = f"its statement waits {waited} for a server connection of PgBouncer"
        return replace(hold, evidence=(*hold.evidence, why))

    return replace(process, holds=tuple(map(told, process.holds)))


def _clients_of(
    process: Process, clients: Clients, window: Window
) -> dict[str, Client]:
    """By the id of a hold: what PgBouncer says of its connection."""
    pools = {pool.id for pool in process.pools if pool.behind_pooler}
    return {
        hold.id: client
        for hold in process.holds
        if hold.pool in pools
        and hold.connection is not None
        and (client := clients.get(_ends(hold.connection)))
        and same_age(hold.connection, client.age_s, window, _SECOND)
    }


def sessions_of(
    links: Mapping[str, Link], reading: ServerReading, since_console_s: float
) -> dict[str, Backend]:
    """By the id of a hold: the backend of its link, if ``reading`` is of its server.

    ``since_console_s``: from the reading of the console to that of the server, at most.
    """
    backends = {backend.pid: backend for backend in reading.backends}
    return {
        hold_id: backend
        for hold_id, link in links.items()
        if (backend := backends.get(link.pid))
        and backend.client_port == link.port
        and _is_as_old(link, backend, since_console_s)
    }


def _is_as_old(link: Link, backend: Backend, since_console_s: float) -> bool:
    if backend.age_s is None:
        return False
    apart = backend.age_s - link.age_s
    tolerance = _SECOND + min(MAX_DRIFT_S, DRIFT * link.age_s)
    return -tolerance <= apart <= since_console_s + tolerance


def with_sessions(
    process: Process,
    links: Mapping[str, Link],
    backends: Mapping[str, Backend],
    window: Window,
) -> Process:
    """Fill in the backends of holds, by id, where the row is certainly of the hold.

    ``window``: when the server was read, relative to the process's snapshot. Links in
    session mode must have been there after that, too.
    """

    def joined(hold: Hold) -> Hold:
        backend = backends.get(hold.id)
        if backend is None:
            return hold
        row, session = backend.row, links[hold.id].session
        ages = [age for age in (row.state_age_s, row.xact_age_s) if age is not None]
        if not session and (row.xact_age_s or 0.0) <= window[1]:
            return hold
        return replace(
            hold,
            backend_pid=backend.pid,
            server=row,
            may_have_ended=bool(ages) and max(ages) < window[1],
            # a lock of an earlier transaction is on any of the server connections
            earlier_lock=hold.earlier_lock if session else None,
        )

    return replace(process, holds=tuple([joined(hold) for hold in process.holds]))


def _ends(connection: Connection) -> Ends:
    own = tcp_end(connection.client_host or "", connection.client_port or 0)
    return own, connection.address or ""


def _waiting_s(socket: dict[str, Any]) -> float | None:
    if socket.get("state") not in ("cl_waiting", "waiting"):
        return None
    return float(socket["wait"]) + float(socket["wait_us"]) / 1e6


def _time(text: str) -> datetime:
    # the time zone is that of PgBouncer, in all of them
    return datetime.fromisoformat(text[:19])


def _words(error: Exception) -> str:
    if "not allowed" in str(error):
        return "the role may not use it (see stats_users of PgBouncer)"
    if "does not exist" in str(error) or getattr(error, "pgcode", None) is not None:
        return "the server at this address has no such console: it is not PgBouncer"
    return str(as_failure(error)).replace("PostgreSQL", "PgBouncer")
