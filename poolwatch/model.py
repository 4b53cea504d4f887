"""The records of the whole project: frozen, plain data.

Durations are seconds. An unknown value is ``None``, never 0 or "-".

:mod:`poolwatch.protocol.document` turns a :class:`Snapshot` into JSON and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, get_args

SCHEMA = 1
"""Version of the snapshot document."""

VIEWERS_ONLY = {"viewers_only": True}
"""Field metadata: passed between poolwatch's own programs, not in the document."""

Verdict = Literal["ok", "long", "leaked"]
FindingKind = Literal[
    "leaked.collected", "leaked.orphaned", "leaked.abandoned", "long_hold",
    "held_across_io", "idle_in_transaction", "lock_wait", "slow_query", "exhausted",
    "nested", "pool_deadlock", "undersized", "ghost", "dirty_return", "lost_slot",
    "concurrent_use", "stray_session", "server_down", "fork_shared", "pool_churn",
    "unpooled", "over_capacity", "duplicate_pool",
]  # fmt: skip
"""All kinds of findings; documents of newer versions may have further ones."""
Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""The mildest first."""


def severity_rank(severity: Severity) -> int:
    """Sorts by severity: 0 for the most severe, 1 for the next."""
    return len(SEVERITIES) - 1 - SEVERITIES.index(severity)


class Frame(NamedTuple):
    """One line of a stack: where a function was, not the interpreter's frame object."""

    file: str
    """Path as the interpreter knows it (``co_filename``)."""
    line: int
    function: str


OTHER_SITES = Frame("(other call sites)", 0, "")
"""Stands for all call sites beyond the limit of a pool."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The summary of a histogram. All but ``count`` in seconds."""

    count: int
    sum: float
    max: float | None
    p50: float | None
    p95: float | None
    p99: float | None


NO_SAMPLES = Distribution(0, 0.0, None, None, None, None)


@dataclass(frozen=True, slots=True)
class Counters:
    """What happened on a pool since it was instrumented.

    ``checkouts`` is always ``checkins`` plus the holds of the same snapshot.
    """

    checkouts: int
    checkins: int
    timeouts: int
    """Waits that ended with the pool's own timeout error."""
    connects: int
    closes: int
    invalidated: int
    collected: int
    """Holds that the garbage collector ended."""
    leaked: int
    """Holds ever found leaked, the collected ones among them."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """One instrumented pool. ``None`` where this kind of pool has no such number."""

    id: str
    name: str
    kind: str
    """Class name of the pool, e.g. ``QueuePool``."""
    url: str | None
    """Database URL, the password hidden."""
    size: int | None
    max_overflow: int | None
    """Connections allowed beyond ``size``; -1 is no limit."""
    timeout_s: float | None
    checked_out: int
    idle: int | None
    overflow: int | None
    waiting: int
    counters: Counters
    wait_s: Distribution
    hold_s: Distribution
    create_s: Distribution
    long_after_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """Seconds after which a hold counts as long."""
    gave_up: int = field(default=0, metadata=VIEWERS_ONLY)
    """Waits that the application ended: by a cancelled task or an interrupt."""
    waiting_s_per_s: float = field(default=0.0, metadata=VIEWERS_ONLY)
    """Seconds waited per second, of all requests together, over the last minute."""
    most_wanted: int = field(default=0, metadata=VIEWERS_ONLY)
    """The most connections out or wanted at once, if more than the pool has; else 0."""
    switched_off: bool = field(default=False, metadata=VIEWERS_ONLY)
    """A hook has failed: since then nothing of this pool is recorded."""
    lost_slots: int = field(default=0, metadata=VIEWERS_ONLY)
    """Slots that the pool will never lend again: nobody has their connection."""
    unrecorded: int = field(default=0, metadata=VIEWERS_ONLY)
    """Checkouts from before the pool was instrumented, or that were not seen."""
    over: tuple[str, ...] = field(default=(), metadata=VIEWERS_ONLY)
    """Ids of the pools from which this one takes its connections."""
    slotless: int = field(default=0, metadata=VIEWERS_ONLY)
    """Holds without a slot: detached, or of the pool before ``dispose()``."""

    @property
    def out(self) -> int:
        """Slots that are out by the pool's own count, without the lost ones."""
        return self.checked_out - self.slotless + self.unrecorded

    @property
    def slots(self) -> int | None:
        """The most connections the pool was made for; None if unlimited or unknown."""
        if self.size is None or self.max_overflow is None or self.max_overflow < 0:
            return None
        return self.size + self.max_overflow or None

    @property
    def capacity(self) -> int | None:
        """The most connections the pool can lend: its slots without the lost ones."""
        slots = self.slots
        return None if slots is None else max(0, slots - self.lost_slots)


@dataclass(frozen=True, slots=True)
class ServerRow:
    """The row of ``pg_stat_activity`` for the backend of a hold."""

    state: str | None
    state_age_s: float | None
    xact_age_s: float | None
    wait_event: str | None
    """``type:event``, e.g. ``Lock:transactionid``."""
    query: str | None
    """The statement, literals masked."""
    blocked_by: tuple[int, ...]
    """Pids of the backends it waits for (``pg_blocking_pids``)."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How a connection was opened: the facts that prove which backend it has."""

    age_s: float
    """Since the driver's connect call returned, on the process's monotonic clock."""
    connect_s: float | None
    """How long that call took; None if the connection is older than the
    instrumentation (``age_s`` is then by SQLAlchemy's own start time)."""
    address: str | None
    """``host:port`` or socket directory the driver says it is connected to."""
    client_port: int | None
    """Our end of the TCP connection; None for a Unix socket or if unknown."""
    met: bool = False
    """Its age is unknown: ``age_s`` is since poolwatch first saw it."""


@dataclass(frozen=True, slots=True)
class ClosedConnection:
    """A connection that the application has closed, or failed to put into the pool."""

    pool: str
    backend_pid: int
    closed_s: float
    """How long ago."""
    connection: Connection
    error: str | None = None
    """Class of the exception that ended the request which opened it; else None."""
    site: Frame | None = None
    """The call site of that request."""


@dataclass(frozen=True, slots=True)
class Hold:
    """One checkout that has not come back."""

    id: str
    pool: str
    backend_pid: int | None
    held_s: float
    waited_s: float
    thread: str | None
    task: str | None
    labels: Mapping[str, str]
    site: Frame | None
    stack: tuple[Frame, ...]
    """The stack at its checkout, innermost frame first."""
    now: tuple[Frame, ...]
    """The holder's stack now, innermost frame first; empty if ended or unreadable."""
    statement: str | None
    """The last statement sent through it, literals masked."""
    in_sql_s: float | None
    in_transaction_idle_s: float | None
    verdict: Verdict
    evidence: tuple[str, ...]
    server: ServerRow | None
    connection: Connection | None = field(default=None, metadata=VIEWERS_ONLY)
    used: tuple[Frame, ...] = field(default=(), metadata=VIEWERS_ONLY)
    """The stack that sent the last statement, innermost frame first; empty if no
    statement was seen."""
    unused_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """Seconds since the last statement ended; 0 while one runs, None if unknown."""
    caller: Frame | None = field(default=None, metadata=VIEWERS_ONLY)
    """If the call site is shared: the nearest caller that differs between its holds."""


@dataclass(frozen=True, slots=True)
class Wait:
    """One request for a connection that has not been served yet."""

    id: str
    pool: str
    waited_s: float
    thread: str | None
    task: str | None
    labels: Mapping[str, str]
    site: Frame | None
    stack: tuple[Frame, ...]
    caller: Frame | None = field(default=None, metadata=VIEWERS_ONLY)
    """If the call site is shared: see :attr:`Hold.caller`."""


@dataclass(frozen=True, slots=True)
class Collected:
    """A call site whose connections the garbage collector has returned."""

    site: Frame
    count: int
    callers: tuple[Frame, ...] = ()
    """The callers that dropped them, if several share the call site."""


@dataclass(frozen=True, slots=True)
class MostlyOutsideSql:
    """A call site whose held time is mostly spent outside SQL."""

    site: Frame
    count: int
    """Holds that have ended."""
    held_s: float
    in_sql_s: float
    in_transaction_idle_s: float
    pool_wait_s: float = 0.0
    """Seconds of the held time in which the holder waited for another connection."""
    callers: tuple[Frame, ...] = ()
    """The callers that do so, if several share the call site."""


class NestedRequests(NamedTuple):
    """Nested requests at one pair of call sites, as the ledger has noted them."""

    outer: Frame | None
    """Call site of the connection that the holder already had."""
    inner: Frame | None
    callers: tuple[Frame | None, Frame | None]
    """Callers of both, where they share a call site."""
    who: str
    """The first such holder, e.g. ``thread MainThread``."""
    ago_s: float
    """Since the last of these requests."""
    times: int
    depth: int
    """The most connections that one such holder wanted at once."""


class InheritedUse(NamedTuple):
    """A call site that checked out a connection which the parent process had opened."""

    site: Frame | None
    backend_pid: int | None
    """Backend of the first such connection."""
    ago_s: float
    """Since the last such checkout."""


LATEST = 8
"""Calls whose times are in ``PoolOrigin.latest_s``."""


class PoolOrigin(NamedTuple):
    """The pools that one line has made for one database."""

    site: Frame
    url: str
    """The password hidden."""
    made: int
    pools: tuple[str, ...]
    """Ids of the pools that are alive, the newest last."""
    most_alive: int
    """The most pools that were alive at once."""
    latest_s: tuple[float, ...]
    """Seconds since each of the latest calls, the newest last."""
    together: int = 0
    """Pools that were made in the same call as an earlier one: a fixed set."""


@dataclass(frozen=True, slots=True)
class SiteStats:
    """Statistics of one call site on one pool since the pool was instrumented."""

    pool: str
    site: Frame
    count: int
    connections: float
    """Average number held at once: held time per elapsed time (Little's law)."""
    hold_s: Distribution
    wait_s: Distribution
    leaked: int
    in_sql_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """Seconds that its ended holds spent in statements; None if none was seen."""
    in_transaction_idle_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """Seconds that they spent in a transaction without a statement; None likewise."""
    wait_caused_s: float = field(default=0.0, metadata=VIEWERS_ONLY)
    """Seconds of others' waits while this call site had connections; each wait is
    divided among all call sites that had one when it began."""
    caller: Frame | None = field(default=None, metadata=VIEWERS_ONLY)
    """If set, the statistics are of this caller alone."""


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
    """ISO 8601, UTC: its last answer, or its end; None if this viewer has had none."""
    alive: bool | None = None
    """None if it cannot be seen from here, as from another container."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All processes at one moment."""

    processes: tuple[Process, ...] = ()
    unreachable: tuple[Unreachable, ...] = ()


class Source(Protocol):
    """Anything with snapshots: the ledger, a client, a recording, a fake."""

    def snapshot(self) -> Snapshot:
        """Return the newest snapshot; raises PoolwatchError if there is none."""
