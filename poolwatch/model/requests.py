"""Records of holds, waits and connections, with the rows of the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from poolwatch.model.terms import VIEWERS_ONLY, Frame, Verdict


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
    xmin_age: int | None = field(default=None, metadata=VIEWERS_ONLY)
    """Transactions by which its snapshot holds back vacuum; None without a snapshot."""
    waited_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """How long it has waited for the lock it waits for (``pg_locks.waitstart``)."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One row of ``pg_stat_activity``, with the facts that identify its connection."""

    pid: int
    age_s: float | None
    """Since ``backend_start``, on the server's clock; None if the role may not see it.
    """
    client_port: int | None
    """-1 for a Unix socket."""
    application: str | None
    row: ServerRow
    client: str | None = None
    """The client's IP address; None for a Unix socket."""
    advisory_locks: int = 0
    """Advisory locks that it holds; only counted for idle connections."""
    database: str | None = None
    user: str | None = None

    @property
    def xmin_age(self) -> int | None:
        """See :attr:`ServerRow.xmin_age`."""
        return self.row.xmin_age


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
    client_host: str | None = None
    """The IP address of our end of the TCP connection; else None."""


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
class LockRequest:
    """The statement that last requested a session-level lock on a connection."""

    site: Frame | None
    """The call site that had checked the connection out."""
    sent: Frame | None
    """Where the statement was sent."""
    ago_s: float


@dataclass(frozen=True, slots=True)
class IdleConnection:
    """A connection that was returned and lies in its pool, with its last user."""

    pool: str
    backend_pid: int
    connection: Connection
    site: Frame | None
    """The call site of its last hold."""
    used: Frame | None
    """Where its last statement was sent; None if none was seen."""
    held_s: float
    """How long the last hold lasted."""
    returned_s: float
    """How long ago it ended."""
    listening: bool = False
    """The last statement was a LISTEN."""
    declared: bool = False
    """The last user, or the one that requested the lock, declared a long hold."""
    lock: LockRequest | None = None
    server: ServerRow | None = None
    unchanged_s: float = 0.0
    """How long the backend had been in that state when the snapshot was taken;
    negative if it may have been used since."""
    advisory_locks: int = 0
    """Advisory locks that its backend holds."""


@dataclass(frozen=True, slots=True)
class Hold:
    """One checkout that has not come back."""

    id: str
    pool: str
    backend_pid: int | None
    held_s: float | None
    """None if it was out already when poolwatch attached: see ``adopted_s``."""
    waited_s: float | None
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
    user: str | None = field(default=None, metadata=VIEWERS_ONLY)
    """If it was out before poolwatch attached: what has it now, in words."""
    used_at: Frame | None = field(default=None, metadata=VIEWERS_ONLY)
    """Where the code of that user is now that has it in a variable."""
    used: tuple[Frame, ...] = field(default=(), metadata=VIEWERS_ONLY)
    """The stack that sent the last statement, innermost frame first; empty if no
    statement was seen."""
    unused_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """Seconds since the last statement ended; 0 while one runs, None if unknown."""
    caller: Frame | None = field(default=None, metadata=VIEWERS_ONLY)
    """If the call site is shared: the nearest caller that differs between its holds."""
    earlier_lock: LockRequest | None = field(default=None, metadata=VIEWERS_ONLY)
    """The session-level lock that an earlier user of the connection requested, if this
    one has requested none."""
    may_have_ended: bool = field(default=False, metadata=VIEWERS_ONLY)
    """``server`` may show the next user of the connection: neither the transaction nor
    the state of the backend is older than the reading of the process."""
    adopted_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """How long ago poolwatch found it out, if it was out before; else None. Then the
    call site, the holder and the age are unknown."""

    @property
    def known_s(self) -> float:
        """How long it is known to be held: the least that it can be."""
        return self.held_s if self.held_s is not None else self.adopted_s or 0.0


@dataclass(frozen=True, slots=True)
class Wait:
    """One request for a connection that has not been served yet."""

    id: str
    pool: str
    waited_s: float | None
    """None if it was waiting already when poolwatch attached: see ``adopted_s``."""
    thread: str | None
    task: str | None
    labels: Mapping[str, str]
    site: Frame | None
    stack: tuple[Frame, ...]
    caller: Frame | None = field(default=None, metadata=VIEWERS_ONLY)
    """If the call site is shared: see :attr:`Hold.caller`."""
    adopted_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """How long ago poolwatch found it waiting, if it waited before; else None."""

    @property
    def known_s(self) -> float:
        """How long it is known to wait: the least that it can be."""
        return self.waited_s if self.waited_s is not None else self.adopted_s or 0.0
