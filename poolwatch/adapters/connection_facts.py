"""Reads the backend pid and the addresses of a connection on the client side.

Each driver's record says how to read its connections (see runtime.libraries).
SQLAlchemy's wrappers around connections of async drivers are unwrapped first. No I/O,
no waiting.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from poolwatch.ledger.checkout import ConnectionFacts
from poolwatch.runtime.libraries import drivers

Facts = tuple[int | None, str | None, int | None]


def facts_of(
    dbapi_connection: Any,
    opened: float,
    connect_s: float | None,
    *,
    age_unknown: bool = False,
) -> ConnectionFacts:
    """Return the facts of a connection.

    ``opened`` is a ``time.monotonic()``, ``connect_s`` the seconds to connect. With
    ``age_unknown``, ``opened`` is the time when poolwatch first saw the connection.
    """
    pid, own, peer = _pid_and_ends(dbapi_connection)
    host, port = _host_and_port(own)
    return ConnectionFacts(
        pid,
        opened,
        connect_s,
        _address(peer),
        port,
        os.getpid(),
        age_unknown=age_unknown,
        client_host=host,
    )


def connection_facts(dbapi_connection: Any) -> Facts:
    """Return (backend pid, address, client port); None for each unknown one.

    The address is the server's: ``10.0.0.5:5432``, or ``/socket/dir:5432``. The port is
    the client's end of a TCP connection, None for a Unix socket. Never raises.
    """
    pid, own, peer = _pid_and_ends(dbapi_connection)
    _, port = _host_and_port(own)
    return pid, _address(peer), port


def has_listeners(proxy: Any) -> bool:
    """Whether asyncpg calls a function of the application for each notification.

    Its pool ends that when the connection is returned. Never raises.
    """
    with suppress(Exception):
        connection = getattr(proxy, "dbapi_connection", None)
        if connection is not None:  # SQLAlchemy's, around the driver's
            listeners = connection.driver_connection._listeners
        else:
            listeners = proxy._con._listeners
        return type(listeners) is dict and bool(listeners)
    return False


def _pid_and_ends(dbapi_connection: Any) -> tuple[int | None, Any, Any]:
    """The backend pid that the driver reports, and the names of the socket's ends."""
    connection = dbapi_connection
    with suppress(Exception):
        if _is_mock(connection):
            return None, None, None
    with suppress(Exception):
        connection = getattr(connection, "driver_connection", None) or connection
    pid: int | None = None
    own, peer = None, None
    with suppress(Exception):
        driver = next(
            each for each in drivers() if hasattr(connection, each.own_attribute)
        )
        pid, ends = driver.backend(connection)
        own, peer = _names(ends) if isinstance(ends, int) else ends
    return pid or None, own, peer


def _is_mock(connection: Any) -> bool:
    """Skip mocks: they have every attribute, and record each access as a call."""
    return any(
        kind.__module__ in ("unittest.mock", "mock.mock")
        for kind in type(connection).__mro__
    )


def _names(descriptor: int) -> tuple[Any, Any]:
    # a duplicate: closing it, even on an interrupt, leaves the driver's socket open
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


def _host_and_port(own: Any) -> tuple[str | None, int | None]:
    return own[:2] if isinstance(own, tuple) and len(own) >= 2 else (None, None)
