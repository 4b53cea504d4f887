"""Opens the dedicated connections over which poolwatch reads pg_stat_activity."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from poolwatch.errors import PoolerError
from poolwatch.model import OWN_NAME
from poolwatch.postgres.activity import read, values_of
from poolwatch.protocol.records import ServerReading
from poolwatch.runtime.libraries import is_made_up

_SETTINGS = {
    "search_path": "pg_catalog",  # no look-alike tables or operators of other users
    "application_name": OWN_NAME,
    "statement_timeout": "2s",
    "lock_timeout": "1s",
    "idle_session_timeout": "60s",  # the server closes an abandoned connection
    "default_transaction_read_only": "on",
}

Facts = Callable[[Any], tuple[int | None, str | None, int | None]]
"""Backend pid, address and client port of a driver's connection, without I/O."""


class Wanted(NamedTuple):
    """The sessions whose rows are wanted: the arguments of :func:`activity.read`."""

    pids: Collection[int]
    idle: Collection[int] = ()
    everyone: bool = False


@dataclass(frozen=True, slots=True)
class MonitoringConnection:
    """A dedicated connection, prepared for reading pg_stat_activity."""

    dbapi_connection: Any
    identify: bool
    """Whether the role may read the system identifier; some managed servers refuse."""
    address: str | None

    def read(
        self,
        pids: Collection[int],
        idle: Collection[int] = (),
        everyone: bool = False,
    ) -> ServerReading:
        """Read with one statement; raises what the driver raises."""
        cursor = self.dbapi_connection.cursor()
        try:
            reading = read(cursor, pids, idle, everyone, identify=self.identify)
        finally:
            with suppress(Exception):
                cursor.close()
        # the server's own end differs if something in between relays the connection
        relayed = reading.address not in (None, self.address)
        return replace(reading, address=self.address, relayed=relayed)

    def close(self) -> None:
        """Close the connection, ignoring errors."""
        with suppress(Exception):
            self.dbapi_connection.close()


def open_connection(
    connect: Callable[[], Any], facts: Facts, *, behind_pooler: bool = False
) -> MonitoringConnection:
    """Connect and prepare; on an error, close the connection and re-raise.

    ``behind_pooler``: a pooler is known to be in between.
    """
    connection = connect()
    try:
        _autocommit(connection)
        backend_pid, address, _ = facts(connection)
        cursor = connection.cursor()
        identify = prepare(cursor, None if behind_pooler else backend_pid)
        cursor.close()
    except BaseException:
        with suppress(Exception):
            connection.close()
        raise
    return MonitoringConnection(connection, identify, address)


def prepare(cursor: Any, backend_pid: int | None) -> bool:
    """Limit the cost of a new connection for the server, in one query.

    Returns whether the role may read the system identifier. ``backend_pid`` is the pid
    that the driver reports. If it is missing or differs from the server's, there is a
    pooler in between. Its server connections are shared with the application, so no
    settings are changed, and PoolerError is raised: sessions cannot be identified. A
    number that is no pid is enough for that: the query would take a server connection
    from the application, and wait for it.
    """
    if is_made_up(backend_pid or 0):
        raise PoolerError
    pid = "pg_catalog.pg_backend_pid()"
    settings = ", ".join(
        f"CASE WHEN {pid} = {int(backend_pid or 0)}"
        f" THEN pg_catalog.set_config('{name}', '{value}', false) END"
        for name, value in _SETTINGS.items()
    )
    cursor.execute(
        f"SELECT {pid}, pg_catalog.has_function_privilege("
        f"'pg_catalog.pg_control_system()', 'EXECUTE'), {settings}"
    )
    server_pid, identify, *_ = values_of(cursor.fetchone())
    if server_pid != backend_pid:
        raise PoolerError
    return bool(identify)


def _autocommit(connection: Any) -> None:
    try:
        connection.autocommit = True
    except Exception:  # noqa: BLE001 - driver-specific; the retry raises it again
        connection.rollback()  # the engine's creator may have left a transaction open
        connection.autocommit = True
