"""The records everything else is written in terms of: frozen, and plain data.

The names, and the words in the docstrings, are the words of the whole project:
*pool*, *hold*, *holder*, *wait*, *call site*, *backend*, *verdict*, *finding*,
*source*. Durations are seconds. What is not known is ``None``, never 0 or "-".

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
Use = Literal[0, 1, 2]
"""Of a pool: unused, has opened a connection, has lent one."""
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
"""Stands for the call sites beyond those that are counted one by one."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """What people ask of a histogram. All but ``count`` in seconds."""

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
    """Holds that nobody returned: the garbage collector ended them."""
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
    """From when on a hold counts as long."""
    gave_up: int = field(default=0, metadata=VIEWERS_ONLY)
    """Waits that the application itself ended: a cancelled task, an interrupt."""
    waiting_s_per_s: float = field(default=0.0, metadata=VIEWERS_ONLY)
    """Seconds waited per second, of all requests together, over the last minute."""
    most_wanted: int = field(default=0, metadata=VIEWERS_ONLY)
    """The most connections that were out or asked for at once, whenever that was more
    than the pool has; else 0."""
    switched_off: bool = field(default=False, metadata=VIEWERS_ONLY)
    """A hook of ours has failed here: since then nothing of this pool is recorded."""
    lost_slots: int = field(default=0, metadata=VIEWERS_ONLY)
    """Connections that were dropped and that the pool will never replace: it can lend
    so many fewer."""

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
    """What ``pg_stat_activity`` says of the backend behind a hold."""

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
    """How a held connection was made: the facts that prove which backend is its own."""

    age_s: float
    """Since the driver's connect call returned, on the process's monotonic clock."""
    connect_s: float | None
    """How long that call took; None when the connection is older than the
    instrumentation (then ``age_s`` is SQLAlchemy's own start time of the connection,
    taken just before its connect call)."""
    address: str | None
    """``host:port`` or socket directory the driver says it is connected to."""
    client_port: int | None
    """Our end of the TCP connection; None for a Unix socket or if unknown."""
    met: bool = False
    """It was there when the pool was instrumented, and the pool does not know its age
    either: ``age_s`` is since then, and it is older."""


@dataclass(frozen=True, slots=True)
class Departed:
    """A connection that the application has closed or given up a moment ago."""

    pool: str
    backend_pid: int
    closed_s: float
    """How long ago."""
    connection: Connection


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
    """Where it was taken, innermost frame first."""
    now: tuple[Frame, ...]
    """Where the holder is at this moment, innermost frame first; empty if it has
    ended or cannot be read."""
    statement: str | None
    """The last statement sent through it, literals masked."""
    in_sql_s: float | None
    in_transaction_idle_s: float | None
    verdict: Verdict
    evidence: tuple[str, ...]
    server: ServerRow | None
    connection: Connection | None = field(default=None, metadata=VIEWERS_ONLY)
    used: tuple[Frame, ...] = field(default=(), metadata=VIEWERS_ONLY)
    """Where the last statement was sent from, innermost frame first; empty if none was
    seen."""
    unused_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """Since the last statement ended; 0 while one is running, None if none was seen."""
    caller: Frame | None = field(default=None, metadata=VIEWERS_ONLY)
    """Where the call site is shared: the nearest caller that tells this hold apart."""


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
    """Like that of a hold."""


@dataclass(frozen=True, slots=True)
class Collected:
    """A call site whose connections the garbage collector has returned."""

    site: Frame
    count: int
    callers: tuple[Frame, ...] = ()
    """The callers that dropped them, if several share the call site."""


@dataclass(frozen=True, slots=True)
class Outside:
    """A call site whose held time is mostly not in SQL."""

    site: Frame
    count: int
    """Holds that have ended."""
    held_s: float
    in_sql_s: float
    in_transaction_idle_s: float
    pool_wait_s: float = 0.0
    """Seconds of the held time in which its holder waited for another connection."""
    callers: tuple[Frame, ...] = ()
    """The callers of which that is true, if several share the call site."""


class NestedRequests(NamedTuple):
    """Requests of one pair of call sites, made by holders that had a connection."""

    outer: Frame | None
    """Call site of the connection that the holder had."""
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
    """A call site that took a connection which the parent process had opened."""

    site: Frame | None
    backend_pid: int | None
    """Backend of the first such connection."""
    ago_s: float
    """Since the last such checkout."""


LATEST = 8
"""Calls whose times are kept in ``PoolOrigin.latest_s``."""


class PoolOrigin(NamedTuple):
    """What one line has made for one database, at the moment somebody looks."""

    site: Frame
    url: str
    """The password hidden."""
    made: int
    pools: tuple[str, ...]
    """Ids of those that are alive, the newest last."""
    most_alive: int
    """The most that were alive at once."""
    latest_s: tuple[float, ...]
    """How long ago the latest calls were, the newest last."""
    together: int = 0
    """Pools that were made in the same call as one before: a fixed set."""


@dataclass(frozen=True, slots=True)
class SiteStats:
    """What one call site did to one pool since it was instrumented."""

    pool: str
    site: Frame
    count: int
    connections: float
    """Average number held at once: held time per elapsed time (Little's law)."""
    hold_s: Distribution
    wait_s: Distribution
    leaked: int
    in_sql_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """Of the time its ended holds lasted, the seconds in statements, and ..."""
    in_transaction_idle_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """... the seconds in an open transaction without one. None if none was seen."""
    wait_caused_s: float = field(default=0.0, metadata=VIEWERS_ONLY)
    """Seconds that others have waited for a connection while this call site held some;
    each wait is shared out among all that held one when it began."""
    caller: Frame | None = field(default=None, metadata=VIEWERS_ONLY)
    """Only what it did for this caller; None for all of it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, with its proof and its remedy."""

    kind: str
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
    """How the server view of one process (or of some of its pools) went."""

    pools: tuple[str, ...]
    """Ids of the pools it speaks for."""
    source: Literal["agent", "dsn", "environment"]
    """Who read it: the process itself, ``--dsn``/``POOLWATCH_DSN``, or
    ``DATABASE_URL`` and the libpq environment."""
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
    """Of those, how many only privileged roles may use."""
    identity: str | None = None
    """Tells one running server from every other, whatever address it goes by."""
    down: str | None = None
    """If the server does not answer: what it or its driver said last."""
    up_s: float | None = None
    """How long the server has been up, when it was read."""
    since: str | None = None
    """ISO 8601, UTC: when it last answered; None if this viewer has seen no answer."""
    silent_s: float | None = None
    """How long ago that was."""
    enabled: bool = True
    """False if the application has switched its server view off."""


FrozenKind = Literal["exhausted", "timeout", "pool_deadlock"]


@dataclass(frozen=True, slots=True)
class FrozenMark:
    """That a picture was kept: of which pool, why and when."""

    pool: str
    kind: FrozenKind
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
    departed: tuple[Departed, ...] = field(default=(), metadata=VIEWERS_ONLY)
    frozen: tuple[FrozenMark, ...] = field(default=(), metadata=VIEWERS_ONLY)
    """Pictures that were kept of earlier trouble."""
    left_out: tuple[str, ...] = field(default=(), metadata=VIEWERS_ONLY)
    """What was not looked at, because it would have taken too long."""
    parent: int | None = field(default=None, metadata=VIEWERS_ONLY)
    """The pid of the process that was started, if this one is a worker of it."""
    worker: int | None = field(default=None, metadata=VIEWERS_ONLY)
    """Its number among the workers of one parent; None if it is the only one."""
    callers: tuple[SiteStats, ...] = field(default=(), metadata=VIEWERS_ONLY)
    """Of call sites that are shared by several callers: the same, caller by caller."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """The whole picture of a process, kept from when a pool first got into trouble."""

    pool: str
    kind: FrozenKind
    at: str
    """ISO 8601, UTC."""
    process: Process


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A process that is watched and gave no answer."""

    pid: int | None
    why: str
    since: str | None = None
    """ISO 8601, UTC: when it last answered, or was found ended; None if this viewer has
    never had an answer."""
    alive: bool | None = None
    """None if it cannot be seen from here, as from another container."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A picture of one moment. It locks nothing and reserves nothing."""

    processes: tuple[Process, ...] = ()
    unreachable: tuple[Unreachable, ...] = field(default=())


class Source(Protocol):
    """Anything that can be looked at: the ledger, a client, a recording, a fake."""

    def snapshot(self) -> Snapshot:
        """Return the newest picture; raises PoolwatchError if there can be none."""
        ...
