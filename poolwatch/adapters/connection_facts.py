"""Which backend a driver's connection talks to, from what is known on this side.

Told by shape rather than by class, so that no driver is imported: psycopg2 and psycopg
(sync and async), asyncpg, pg8000, and SQLAlchemy's wrappers around the async ones.
Nothing is sent and nothing is waited for.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from poolwatch.ledger.checkout import ConnectionFacts

Facts = tuple[int | None, str | None, int | None]


def facts_of(
    dbapi_connection: Any, opened: float, took: float | None, *, met: bool = False
) -> ConnectionFacts:
    """What is known of one that was opened at ``opened`` (``time.monotonic()``), in so
    many seconds. ``met``: nobody knows since when it is there; that is when it was met.
    """
    pid, address, port = connection_facts(dbapi_connection)
    return ConnectionFacts(pid, opened, took, address, port, os.getpid(), met=met)


def connection_facts(dbapi_connection: Any) -> Facts:
    """Return (backend pid, address, client port), None for what is not known.

    The address is that of the peer, ``10.0.0.5:5432``, or ``/socket/dir:5432``; the
    port is our own end of a TCP connection, None for a Unix socket. Never raises.
    """
    connection = dbapi_connection
    with suppress(Exception):
        if _is_mock(connection):
            return None, None, None
    with suppress(Exception):
        connection = getattr(connection, "driver_connection", None) or connection
    pid: int | None = None
    ends: tuple[Any, Any] = (None, None)
    with suppress(Exception):
        pid = _backend_pid(connection)
    with suppress(Exception):
        ends = _ends(connection)
    return pid, _address(ends[1]), _port(ends[0])


def _is_mock(connection: Any) -> bool:
    """It would answer everything, and take each question down among its calls."""
    return any(
        kind.__module__ in ("unittest.mock", "mock.mock")
        for kind in type(connection).__mro__
    )


def _backend_pid(connection: Any) -> int | None:
    if hasattr(connection, "pgconn"):  # psycopg
        found = connection.pgconn.backend_pid
    elif hasattr(connection, "get_backend_pid"):  # psycopg2
        found = connection.get_backend_pid()
    elif hasattr(connection, "get_server_pid"):  # asyncpg
        found = connection.get_server_pid()
    elif isinstance(key := getattr(connection, "_backend_key_data", None), bytes):
        found = int.from_bytes(key[:4], "big", signed=True)  # pg8000
    else:
        found = None
    return found or None


def _ends(connection: Any) -> tuple[Any, Any]:
    """Socket names of our end and of the peer's."""
    transport = getattr(connection, "_transport", None)  # asyncpg
    if transport is not None:
        return (
            transport.get_extra_info("sockname"),
            transport.get_extra_info("peername"),
        )
    own = getattr(connection, "_usock", None)  # pg8000
    if own is not None:
        return own.getsockname(), own.getpeername()
    if hasattr(connection, "pgconn"):
        return _names(connection.pgconn.socket)
    if hasattr(connection, "get_backend_pid"):
        return _names(connection.fileno())
    return None, None


def _names(descriptor: int) -> tuple[Any, Any]:
    # A copy: the driver's own must stay open, also if this is cut short.
    with socket.socket(fileno=os.dup(descriptor)) as ours:
        return ours.getsockname(), ours.getpeername()


def _address(peer: Any) -> str | None:
    if isinstance(peer, bytes):
        peer = peer.decode("utf-8", "replace")
    if isinstance(peer, str) and peer:
        path = PurePosixPath(peer)
        # /var/run is another name of /run; a driver may use either
        folder = str(path.parent).replace("/var/run", "/run", 1)
        return f"{folder}:{path.name.rpartition('.')[2]}"
    if isinstance(peer, tuple) and len(peer) >= 2:
        host = f"[{peer[0]}]" if ":" in peer[0] else peer[0]
        return f"{host}:{peer[1]}"
    return None


def _port(own: Any) -> int | None:
    return own[1] if isinstance(own, tuple) and len(own) >= 2 else None
