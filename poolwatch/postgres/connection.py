"""Make one connection ready for reading, and never leave one open by mistake."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from poolwatch.postgres.activity import Access, prepare, read
from poolwatch.protocol.readings import ServerReading

Facts = Callable[[Any], tuple[int | None, str | None, int | None]]
"""Backend pid, address and client port of a driver's connection, without I/O."""


@dataclass(frozen=True, slots=True)
class Line:
    """A connection of our own that is prepared for reading."""

    connection: Any
    access: Access
    address: str | None

    def read(self, pids: Collection[int]) -> ServerReading:
        """One statement; raises what the driver raises."""
        cursor = self.connection.cursor()
        try:
            reading = read(cursor, pids, self.access)
        finally:
            with suppress(Exception):
                cursor.close()
        return replace(reading, address=self.address)

    def close(self) -> None:
        """Close the connection; an error is of no interest any more."""
        close(self.connection)


def open_line(connect: Callable[[], Any], facts: Facts) -> Line:
    """Connect and prepare, or close again and raise what went wrong."""
    connection = connect()
    try:
        _autocommit(connection)
        backend_pid, address, _ = facts(connection)
        cursor = connection.cursor()
        access = prepare(cursor, backend_pid)
        cursor.close()
    except BaseException:
        close(connection)
        raise
    return Line(connection, access, address)


def close(connection: Any) -> None:
    """Close a DBAPI connection, whatever state it is in."""
    with suppress(Exception):
        connection.close()


def _autocommit(connection: Any) -> None:
    try:
        connection.autocommit = True
    except Exception:  # noqa: BLE001 - each driver has its own; the second try tells
        connection.rollback()  # whoever made it has left a transaction open
        connection.autocommit = True
