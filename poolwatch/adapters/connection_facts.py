"""Which backend a connection talks to, from what is known on this side of it.

How to read a connection is in the record of its driver (see runtime.libraries).
SQLAlchemy's wrappers around the connections of async drivers are opened. Nothing is
sent, and nothing is waited for.
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
    dbapi_connection: Any, opened: float, took: float | None, *, met: bool = False
) -> ConnectionFacts:
    """What is known of a connection.

    ``opened`` is a ``time.monotonic()``, ``took`` is in seconds. ``met``: it is not
    known when the connection was opened; ``opened`` is when it was met.
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
    own, peer = None, None
    with suppress(Exception):
        driver = next(each for each in drivers() if hasattr(connection, each.mark))
        pid, ends = driver.backend(connection)
        own, peer = _names(ends) if isinstance(ends, int) else ends
    return pid or None, _address(peer), _port(own)


def _is_mock(connection: Any) -> bool:
    """It would answer everything, and take each question down among its calls."""
    return any(
        kind.__module__ in ("unittest.mock", "mock.mock")
        for kind in type(connection).__mro__
    )


def _names(descriptor: int) -> tuple[Any, Any]:
    # A copy: the driver's own must stay open, also if this is interrupted.
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
