"""What one look at a PostgreSQL server reads, before its rows are joined with holds."""

from __future__ import annotations

from dataclasses import dataclass

from poolwatch.model import ServerRow


@dataclass(frozen=True, slots=True)
class Backend:
    """One row of ``pg_stat_activity``, with what is needed to know whose it is."""

    pid: int
    age_s: float | None
    """Since ``backend_start``, on the server's clock, when the row was read; None if
    this role may not see it."""
    client_port: int | None
    """-1 for a Unix socket."""
    application: str | None
    row: ServerRow


@dataclass(frozen=True, slots=True)
class ServerReading:
    """One look at one PostgreSQL server."""

    identity: str
    """Tells one running server from every other (its system identifier and the
    start time of its postmaster)."""
    version: str
    sessions: int
    max_connections: int
    backends: tuple[Backend, ...]
    address: str | None = None
    read_s: float | None = None
    reserved: int | None = None
    """Of max_connections, how many only privileged roles may use."""
    up_s: float | None = None
    """Since the server was started, on its own clock."""
