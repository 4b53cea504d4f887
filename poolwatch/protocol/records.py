"""Records of the agent's ``/servers`` and ``/trace`` documents."""

from __future__ import annotations

from dataclasses import dataclass

from poolwatch.model import Backend, Frame, PoolStats

# -- /servers ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerReading:
    """The result of one query on one PostgreSQL server, not yet joined with holds."""

    identity: str
    """System identifier and start time: unique among running servers."""
    version: str
    sessions: int
    max_connections: int
    backends: tuple[Backend, ...]
    address: str | None = None
    read_s: float | None = None
    reserved: int | None = None
    """How many of max_connections are reserved for privileged roles."""
    up_s: float | None = None
    """Since the start of the server, on its own clock."""
    left_out: int | None = None
    """If all sessions were wanted: how many of them did not fit; else None."""
    relayed: bool = False
    """Something in between relays connections to that address, perhaps to several
    servers: that a session is missing on this one proves nothing."""


@dataclass(frozen=True, slots=True)
class AgentReading:
    """An agent's reading of one server, for the pools connected to it."""

    pools: tuple[str, ...]
    """Ids of the pools with the same URL, which share this reading."""
    reading: ServerReading | None
    error: str | None
    """One sentence when there is no reading, else None."""
    enabled: bool = True
    """False if the application switched it off (``server_view=False``)."""
    down: str | None = None
    """If the server does not answer: the message of the server or the driver."""
    address: str | None = None
    """Address of the server according to the pools' connections, if known."""
    behind_pooler: bool = False
    """A pooler such as PgBouncer is in between: the pools' pids are made up."""


# -- /trace --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """One request for a connection that was served during the recording."""

    asked_s: float
    """Since the recording began."""
    held_s: float
    """Until the connection was returned, or until the end of the recording."""
    waited_s: float
    site: int
    """Index into the trace's sites; -1 if unknown."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The recording of one pool."""

    pool: PoolStats
    """At the end of the recording."""
    seconds: float
    requests: tuple[Request, ...]
    """In the order in which they were made."""
    sites: tuple[Frame, ...]
    timeouts: int
    connects: int
    """Connections opened during the recording."""
    depth: int
    """Most connections requested by one thread or task at once; 1 if never nested."""
    nesting: int
    """Most holders at one time that requested another connection."""
