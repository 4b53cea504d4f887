"""Records of processes: findings, servers, incidents, and the whole snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from poolwatch.model.incidents import Incident
from poolwatch.model.pools import LabelStats, PoolStats, SiteStats
from poolwatch.model.requests import (
    Backend,
    ClosedConnection,
    Hold,
    IdleConnection,
    Wait,
)
from poolwatch.model.steps import Step
from poolwatch.model.terms import IN_HISTORY, VIEWERS_ONLY, FindingKind, Frame, Severity


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, with its proof and its remedy."""

    kind: FindingKind
    severity: Severity
    pool: str | None
    text: str
    proof: str
    remedy: str
    holds: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()
    sites: tuple[Frame, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The outcome of the server view for some pools of one process."""

    pools: tuple[str, ...]
    """Ids of the pools it speaks for."""
    source: Literal["agent", "dsn", "environment"]
    """The reader: the process itself, ``--dsn``/``POOLWATCH_DSN``, or ``DATABASE_URL``
    and the libpq environment."""
    error: str | None
    """One sentence when the server could not be read, else None."""
    address: str | None = None
    version: str | None = None
    sessions: int | None = None
    """Client backends on the server now."""
    max_connections: int | None = None
    read_s: float | None = None
    """How long the reading took."""
    late_s: float | None = None
    """How long after the process it was read, at most; None if unknown."""
    reserved: int | None = None
    """Connections of ``max_connections`` that only privileged roles may use."""
    identity: str | None = None
    """Identifies one running server, whatever its address."""
    down: str | None = None
    """If the server does not answer: its last words, or the driver's."""
    up_s: float | None = None
    """Seconds since the server was started."""
    since: str | None = None
    """ISO 8601, UTC: the server's last answer; None if this viewer has seen none."""
    silent_s: float | None = None
    """Seconds since ``since``."""
    enabled: bool = True
    """False if the application has switched its server view off."""
    others: tuple[Backend, ...] = ()
    """Sessions that are no hold of this process: those that block it, or all that the
    viewer has asked for. A server's are told by one process only."""
    left_out: int = 0
    """Sessions that did not fit into ``others``."""


IncidentKind = Literal["exhausted", "timeout", "pool_deadlock"]


@dataclass(frozen=True, slots=True)
class IncidentMark:
    """Marks an incident snapshot: of which pool, why and when."""

    pool: str
    kind: IncidentKind
    at: str
    """ISO 8601, UTC."""


@dataclass(frozen=True, slots=True)
class Process:
    """One instrumented process at one moment."""

    pid: int
    host: str
    program: str
    name: str | None
    python: str
    poolwatch: str
    started_at: str
    """ISO 8601, UTC."""
    pools: tuple[PoolStats, ...]
    holds: tuple[Hold, ...]
    waits: tuple[Wait, ...]
    sites: tuple[SiteStats, ...]
    findings: tuple[Finding, ...]
    servers: tuple[ServerStatus, ...] = field(default=(), metadata=VIEWERS_ONLY)
    departed: tuple[ClosedConnection, ...] = field(default=(), metadata=VIEWERS_ONLY)
    idle: tuple[IdleConnection, ...] = field(default=(), metadata=VIEWERS_ONLY)
    frozen: tuple[IncidentMark, ...] = field(default=(), metadata=VIEWERS_ONLY)
    """The incident snapshots that the process has."""
    left_out: tuple[str, ...] = field(default=(), metadata=VIEWERS_ONLY)
    """Roots that the search for reference paths has left out, in words."""
    parent: int | None = field(default=None, metadata=VIEWERS_ONLY)
    """The pid of the parent process, if this process is a worker of it."""
    worker: int | None = field(default=None, metadata=VIEWERS_ONLY)
    """Its number among the workers of one parent; None if it is the only one."""
    callers: tuple[SiteStats, ...] = field(default=(), metadata=VIEWERS_ONLY)
    """Statistics caller by caller, of call sites that several callers share."""
    labels: tuple[LabelStats, ...] = field(default=(), metadata=VIEWERS_ONLY)
    """Statistics value by value, of the labels that holds carry."""
    test: str | None = field(default=None, metadata=VIEWERS_ONLY)
    """The running test, if the process is a run of tests."""
    at: str | None = field(default=None, metadata=IN_HISTORY)
    """ISO 8601, UTC: when it was like this; None if now."""


@dataclass(frozen=True, slots=True)
class IncidentSnapshot(IncidentMark):
    """An incident snapshot: a process as it was when a pool first got into trouble."""

    process: Process


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A watched process that gave no answer."""

    pid: int | None
    why: str
    since: str | None = None
    """ISO 8601, UTC: its last answer or its end; for a viewer that has had no answer,
    the last sign of life of its agent. None if unknown."""
    alive: bool | None = None
    """None if it cannot be seen from here, as from another container."""
    host: str | None = field(default=None, metadata=VIEWERS_ONLY)
    """From its last answer: in containers, most processes have the pid 1."""
    started_at: str | None = field(default=None, metadata=VIEWERS_ONLY)
    """From its last answer."""
    name: str | None = field(default=None, metadata=VIEWERS_ONLY)
    """From its last answer."""
    silent_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """Seconds since ``since``, unless it has ended."""

    def may_be(self, process: Process) -> bool:
        """Whether it may be this process, as far as is known."""
        same = self.started_at in {None, process.started_at}
        return same and self.pid == process.pid


@dataclass(frozen=True, slots=True)
class RequestOfHost:
    """A hold or a wait of a process of one host."""

    host: str
    pid: int
    id: str


@dataclass(frozen=True, slots=True)
class FleetFinding:
    """A finding that concerns one server and processes of several hosts."""

    kind: FindingKind
    severity: Severity
    pool: str | None
    text: str
    proof: str
    remedy: str
    holds: tuple[RequestOfHost, ...] = ()
    waits: tuple[RequestOfHost, ...] = ()
    sites: tuple[Frame, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All processes at one moment."""

    processes: tuple[Process, ...] = ()
    unreachable: tuple[Unreachable, ...] = ()
    at: str | None = field(default=None, metadata=IN_HISTORY)
    """ISO 8601, UTC: the moment, in a history; None if now."""
    findings: tuple[FleetFinding, ...] = field(default=(), metadata=IN_HISTORY)
    """Findings over all hosts of a history."""
    dsn_error: str | None = field(default=None, metadata=VIEWERS_ONLY)
    """Why the viewer could not read the server of its DSN, one sentence."""


class Source(Protocol):
    """Anything with snapshots: the ledger, a client, a recording, a fake."""

    def snapshot(self) -> Snapshot:
        """Return the newest snapshot; raises PoolwatchError if there is none."""


class Past(Protocol):
    """A source with a clock: how it was at a moment, and what happened since.

    Times are seconds since the epoch. Every method may raise PoolwatchError, and may
    read a store: call them on a thread that nobody waits for.
    """

    def extent(self) -> tuple[float, float] | None:
        """Return the first and the last recorded moment; None if there is none."""

    def snapshot_at(self, at: float) -> Snapshot:
        """Return the newest snapshot at or before a moment, its own time in ``at``.

        Raises PoolwatchError if there is none.
        """

    def steps(self, since: float, until: float, cells: int) -> list[Step | None]:
        """Divide a stretch of time into cells; None where nobody recorded."""

    def moment_after(self, at: float, by: int) -> float:
        """Return the recorded moment ``by`` steps after the one shown at ``at``.

        A negative number of steps leads back. Stops at the ends of the extent.
        """

    def incidents(self, since: float, until: float) -> list[Incident]:
        """Return the incidents that lasted within a stretch of time, oldest first."""
