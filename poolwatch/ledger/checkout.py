"""One checkout: the request, and the hold it becomes.

The application's threads write a checkout during their own calls, without a lock. Each
concurrent write changes a single attribute.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from poolwatch.ledger.labels import Context
from poolwatch.model import Connection, LockRequest
from poolwatch.runtime.libraries import is_made_up

if TYPE_CHECKING:
    from poolwatch.stacks.capture import CapturedStack
    from poolwatch.stacks.holder import Holder, TaskRef

MAX_STATEMENT_LENGTH = 8192
"""Maximum length of a stored statement, in characters."""
MAX_LOCK_STATEMENT = 200
"""Length up to which a statement is searched for ADVISORY, in characters."""
ADVISORY = "advisory_"
"""In the names of all functions for advisory locks."""
_SESSION_LOCK = "advisory_lock"
"""In the names of those that request a session-level one."""
_CHECKS_TO_CONFIRM = 2
"""Consecutive checks without an outside reference that prove a dropped connection."""


def _no_proxy() -> None:
    """Placeholder for the proxy of a request that has no connection yet."""


class Checkout:
    """One request for a connection, and the hold it becomes."""

    adopted = False
    """Whether it was out before it was seen: see :mod:`poolwatch.ledger.adopted`."""

    __slots__ = (
        "checked_out_at",
        "context",
        "dropped",
        "facts",
        "holder",
        "keyed",
        "leaked",
        "leaked_at",
        "number",
        "proxy",
        "requested_at",
        "stack",
        "task",
        "usage",
        "within",
        "work",
    )

    def __init__(
        self,
        stack: CapturedStack,
        holder: Holder,
        context: Context,
        task: TaskRef | None,
        requested_at: float,
    ) -> None:
        self.stack = stack
        """The stack of the request."""
        self.holder = holder
        self.context = context
        self.task = task
        self.requested_at = requested_at
        """``time.monotonic()`` of the request."""
        self.checked_out_at = requested_at
        """``time.monotonic()`` of the checkout; until then, of the request."""
        self.proxy: Callable[[], Any] = _no_proxy
        """Weak reference to the connection proxy that the application holds."""
        self.facts: ConnectionFacts | None = None
        """None if nothing is known about the connection."""
        self.usage: Usage | None = None
        """Statistics of the statements; None before the first one."""
        self.number = 0
        """Identifies the hold or wait in snapshots; 0 until a snapshot has shown it."""
        self.within: tuple[Checkout, ...] = ()
        """Holds of the same pool that the holder was using at the request."""
        self.dropped = 0
        """Consecutive checks that found no reference but the pool's."""
        self.leaked = False
        """Whether the hold is already counted as leaked."""
        self.keyed = False
        """Checked out with a key of psycopg2's pool: the same key returns it again."""
        self.work: FrameworkWork | None = None
        """Set if a framework has checked it out for its thread."""

    def requester(self) -> object:
        """The task or thread; equal for two requests of the same task or thread."""
        return self.holder if self.task is None else self.task

    def statement(self) -> str | None:
        """The last statement sent, literals included."""
        return None if self.usage is None else self.usage.statement

    def masked_statement(self, server_connect: object) -> str | None:
        """The last statement, without literals.

        ``server_connect``: that of the pool, None for other databases than PostgreSQL.
        """
        statement, facts = self.statement(), self.facts
        if statement is None:
            return None
        from poolwatch.text.masking import mask_literals

        has_backend = facts is not None and facts.backend_pid is not None
        postgres = has_backend or server_connect is not None
        return mask_literals(statement, postgres=postgres)

    def sent_advisory(self, statement: str) -> None:
        """Record a statement with a function for advisory locks.

        After an unlock or a transaction-level lock it is not known which lock is left.
        """
        facts, usage = self.facts, self.usage
        if facts is not None and usage is not None:
            facts.lock_statement = (
                LockStatement(self.stack, usage.stack, self.context, monotonic())
                if _SESSION_LOCK in statement
                else None
            )

    def call_leaked(self, now: float) -> None:
        """Note when it was first called leaked: most holds never are."""
        if not hasattr(self, "leaked_at"):
            self.leaked_at = now

    def was_used_since(self) -> bool:
        """Whether it was used after it had been called leaked: so it was not."""
        usage = self.usage
        return usage is not None and usage.used > getattr(self, "leaked_at", inf)

    def is_dropped(self) -> bool:
        """Whether enough consecutive checks found no reference but the pool's."""
        return self.dropped >= _CHECKS_TO_CONFIRM

    def stack_key_and_task(self) -> tuple[int | None, Callable[[], Any] | None]:
        """Return the key of the holder's stack and a weak reference to its task.

        The key (``Holder.stack_key``) is None if the holder has ended.
        """
        ident = None if self.holder.has_ended() else self.holder.stack_key()
        return ident, self.task.reference if self.task is not None else None

    def is_kept_by_framework(self) -> bool:
        """Whether a framework keeps the connection for a thread that still lives."""
        return self.work is not None and not self.holder.has_ended()

    def ended_owner(self) -> str | None:
        """Describe the thread or task that checked it out, if it has ended.

        None if it is running, or if another thread or task has used the connection: it
        was handed over.
        """
        if self.task is not None:
            ended, who = self.task.has_ended(), f"task {self.task.name}"
        else:
            ended, who = self.holder.has_ended(), f"thread {self.holder.name}"
        if not ended or (self.usage is not None and self.usage.by_others):
            return None
        return who


class FrameworkWork:
    """The work for which a framework keeps a connection: a request, or a thread's.

    Django checks a connection out when code of a thread needs one, keeps it for all
    code of that thread, and returns it at the end of the request. So no variable of the
    application has it, and a thread that ends without a request does not return it.
    """

    __slots__ = ("is_over", "is_request", "is_shared", "task")

    def __init__(
        self,
        *,
        is_request: bool = False,
        is_shared: bool = False,
        is_over: bool = False,
    ) -> None:
        self.is_request = is_request
        """A request is being served: at its end, the connection is returned."""
        self.is_shared = is_shared
        """The thread works for the whole process, such as asgiref's single thread."""
        self.is_over = is_over
        """The work was over, and the connection was kept open for the next one."""
        self.task: TaskRef | None = None
        """The task that waited for the thread at the checkout."""


class Usage:
    """Statistics of the statements on a held connection."""

    # Nearly every hold has one: class attributes save storing the defaults.
    transactional = True
    """Whether a statement begins a transaction; False with AUTOCOMMIT."""
    by_others = False
    """Whether a thread or task other than the holder has used the connection."""
    streamed = False
    """Whether rows come from a server-side cursor: fetching is not measured."""
    statement: str | None = None
    stack: CapturedStack | None = None
    """The stack that sent the last statement."""
    runner = 0
    """Identifies the thread or task that sent the last statement."""
    began: float | None = None
    """Start of the running statement, commit or rollback; None if none is running."""
    used = 0.0
    """End of the last statement, commit or rollback."""
    in_sql = 0.0
    """Seconds in ended statements, commits and rollbacks."""
    idle = 0.0
    """Seconds in an open transaction without a statement."""
    idle_since: float | None = None
    """Start of the current idle time; None if the transaction is not idle."""

    def begin(self) -> None:
        """Record that a statement, a commit or a rollback is sent."""
        now = self.began = monotonic()
        since = self.idle_since
        if since is not None:
            self.idle += now - since
            self.idle_since = None

    def ended(self, in_transaction: bool) -> None:
        """Record that the server has answered."""
        now = self.used = monotonic()
        began = self.began
        if began is not None:  # None if two threads share the connection
            self.in_sql += now - began
            self.began = None
        self.idle_since = now if in_transaction else None

    def running_s(self, now: float) -> float | None:
        """Seconds since the running statement began; None if none is running."""
        began = self.began
        return None if began is None else max(0.0, now - began)

    def in_sql_until(self, now: float) -> float:
        """Seconds in statements, the running one included."""
        began = self.began
        return self.in_sql + (0.0 if began is None else now - began)

    def idle_until(self, now: float) -> float:
        """Seconds idle in a transaction."""
        since = self.idle_since
        return self.idle + (0.0 if since is None else now - since)

    def unused_s(self, now: float) -> float:
        """Seconds since the last statement ended; 0 while one is running."""
        return 0.0 if self.began is not None else max(0.0, now - self.used)


Session = tuple[int | None, str | None, int | None]
"""Reported pid, server's address and client port of a connection."""


class LastUse(NamedTuple):
    """The last hold of a connection that was returned."""

    stack: CapturedStack
    """The stack of its request."""
    usage: Usage | None
    context: Context
    checked_out_at: float
    returned_at: float
    """``time.monotonic()``, like all times here."""


class LockStatement(NamedTuple):
    """The last statement on a connection that requested a session-level lock."""

    stack: CapturedStack
    """The stack that checked the connection out."""
    sent_by: CapturedStack | None
    """The stack that sent the statement."""
    context: Context
    sent_at: float

    def record(self, now: float) -> LockRequest:
        """Return the record for a snapshot."""
        return LockRequest(
            site=self.stack.site(),
            sent=None if self.sent_by is None else self.sent_by.site(),
            ago_s=max(0.0, now - self.sent_at),
        )


class ConnectionFacts:
    """What is known about a DBAPI connection since it was opened or first seen."""

    __slots__ = (
        "address",
        "age_unknown",
        "behind_pooler",
        "client_host",
        "client_port",
        "closed",
        "connect_s",
        "last_use",
        "lock_statement",
        "opened",
        "process",
        "reported_pid",
    )

    def __init__(  # noqa: PLR0917 - one per attribute
        self,
        reported_pid: int | None,
        opened: float,
        connect_s: float | None,
        address: str | None,
        client_port: int | None,
        process: int,
        *,
        age_unknown: bool = False,
        client_host: str | None = None,
    ) -> None:
        self.reported_pid = reported_pid
        """Pid of the backend according to the driver; a pooler makes one up."""
        self.behind_pooler = reported_pid is not None and is_made_up(reported_pid)
        self.opened = opened
        """``time.monotonic()`` at the end of the connect call."""
        self.connect_s = connect_s
        self.address = address
        self.client_host = client_host
        self.client_port = client_port
        self.process = process
        """Pid of the process that opened the connection."""
        self.age_unknown = age_unknown
        """Whether it was opened unseen: ``opened`` is when it was first seen."""
        self.last_use: tuple[Any, ...] | None = None
        """The fields of LastUse, which takes longer to make; None before the first
        return."""
        self.lock_statement: LockStatement | None = None
        self.closed = False

    @property
    def backend_pid(self) -> int | None:
        """Pid of the backend; None if unknown, as behind a pooler."""
        return None if self.behind_pooler else self.reported_pid

    @property
    def session(self) -> Session:
        """Equal for two open connections only if they are the same session."""
        return self.reported_pid, self.address, self.client_port

    def record(self, now: float) -> Connection:
        """Return the record for a snapshot."""
        return Connection(
            age_s=now - self.opened,
            connect_s=self.connect_s,
            address=self.address,
            client_port=self.client_port,
            met=self.age_unknown,
            client_host=self.client_host,
        )


class Gauges:
    """The current state, as the pool itself reports it."""

    def __init__(
        self,
        *,
        size: int | None = None,
        max_overflow: int | None = None,
        timeout_s: float | None = None,
        idle: int | None = None,
        overflow: int | None = None,
        unheld: tuple[int, int] | None = None,
        before: int | None = None,
        unseen: int = 0,
        former: int = 0,
    ) -> None:
        self.size = size
        self.max_overflow = max_overflow
        self.timeout_s = timeout_s
        self.idle = idle
        self.overflow = overflow
        self.unheld = unheld
        """Slots that the pool counts as checked out, less the holds: the fewest (less
        all that may be on its way to or from a holder), and the most.
        """
        self.before = before
        """Slots that are out since before the pool was instrumented, and that
        ``unheld`` leaves out; None if the pool only has a number.
        """
        self.unseen = unseen
        """Slots in use by a checkout that was not seen: a call of a bound method from
        before the pool was instrumented.
        """
        self.former = former
        """Holds of a pool that this one has replaced, and that counts for itself."""
