"""One checkout: the request, and the hold it becomes.

The application's threads write it during their own calls, without a lock: two threads
never write more than a single attribute at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from poolwatch.ledger.labels import Context

if TYPE_CHECKING:
    from poolwatch.model import Connection
    from poolwatch.stacks.capture import Path
    from poolwatch.stacks.holder import Holder, TaskRef

LIMIT = 8192
"""Characters of a statement that are kept: no more are ever shown."""
_LOOKS = 2


def _no_proxy() -> None:
    """Stand for the proxy of a request that has no connection yet."""


class Checkout:
    """One request for a connection, and the hold it becomes."""

    __slots__ = (
        "asked",
        "context",
        "dropped",
        "facts",
        "holder",
        "keyed",
        "leaked",
        "number",
        "path",
        "proxy",
        "taken",
        "task",
        "usage",
        "within",
    )

    def __init__(
        self,
        path: Path,
        holder: Holder,
        context: Context,
        task: TaskRef | None,
        asked: float,
    ) -> None:
        self.path = path
        """The stack of the request."""
        self.holder = holder
        self.context = context
        self.task = task
        self.asked = asked
        """``time.monotonic()`` of the request."""
        self.taken = asked
        """``time.monotonic()`` of the answer; that of the request until then."""
        self.proxy: Callable[[], Any] = _no_proxy
        """Weak reference to the connection proxy that the application holds."""
        self.facts: ConnectionFacts | None = None
        """The facts of the connection; None if they are not known."""
        self.usage: Usage | None = None
        """The statements of the hold; None before the first one."""
        self.number = 0
        """Identifies the hold or wait in snapshots; 0 before the first one."""
        self.within: tuple[Checkout, ...] = ()
        """Holds of the same pool that the holder was using when it asked."""
        self.dropped = 0
        """Consecutive looks at which only the pool referred to the connection."""
        self.leaked = False
        """The hold is already counted as leaked."""
        self.keyed = False
        """Taken under a key of psycopg2's pool: the same key lends it again."""

    def owner(self) -> object:
        """The task or thread: equal for two requests of the same one."""
        return self.holder if self.task is None else self.task

    def statement(self) -> str | None:
        """The last statement that was sent, literals included."""
        return None if self.usage is None else self.usage.statement

    def is_dropped(self) -> bool:
        """Whether enough looks in a row found no reference but the pool's."""
        return self.dropped >= _LOOKS

    def taker(self) -> tuple[int | None, Callable[[], Any] | None]:
        """The key of the holder's stack (``Holder.stack_key``), None if the holder has
        ended; and a weak reference to the task.
        """
        ident = None if self.holder.has_ended() else self.holder.stack_key()
        return ident, self.task.reference if self.task is not None else None

    def ended_owner(self) -> str | None:
        """The thread or task that took the hold, in words, if it has ended.

        None if another thread or task has used the connection: it was handed over.
        """
        if self.task is not None:
            ended, who = self.task.has_ended(), f"task {self.task.name}"
        else:
            ended, who = self.holder.has_ended(), f"thread {self.holder.name}"
        if not ended or (self.usage is not None and self.usage.by_others):
            return None
        return who


class Usage:
    """What was done with a held connection."""

    # One is made for nearly every hold: nothing is stored that is as it is here.
    transactional = True
    """A statement begins a transaction, as it does but for AUTOCOMMIT."""
    by_others = False
    """A thread or task that did not take the connection has used it."""
    streamed = False
    """Rows come from a cursor on the server: then fetching is SQL, unseen by us."""
    statement: str | None = None
    path: Path | None = None
    """Where the last statement was sent from."""
    began: float | None = None
    """When what the server does for us now was asked of it, else None."""
    used = 0.0
    """When the last such thing ended."""
    in_sql = 0.0
    idle = 0.0
    """Seconds in an open transaction without a statement."""
    idle_since: float | None = None
    """Since when that is so; None if a statement is running or none is open."""

    def begin(self) -> None:
        """A statement, a commit or a rollback is sent."""
        now = self.began = monotonic()
        since = self.idle_since
        if since is not None:
            self.idle += now - since
            self.idle_since = None

    def ended(self, in_transaction: bool) -> None:
        """It has been answered, and a transaction may have been left open."""
        now = self.used = monotonic()
        began = self.began
        if began is not None:  # two threads on one connection: not our mistake
            self.in_sql += now - began
            self.began = None
        self.idle_since = now if in_transaction else None

    def running_s(self, now: float) -> float | None:
        """How long the statement has been running that runs now; None if none does."""
        began = self.began
        return None if began is None else max(0.0, now - began)

    def in_sql_until(self, now: float) -> float:
        """Seconds spent in statements, the running one included."""
        began = self.began
        return self.in_sql + (0.0 if began is None else now - began)

    def idle_until(self, now: float) -> float:
        """Seconds idle in a transaction."""
        since = self.idle_since
        return self.idle + (0.0 if since is None else now - since)

    def unused_s(self, now: float) -> float:
        """How long ago the last statement ended; 0 while one is running."""
        return 0.0 if self.began is not None else max(0.0, now - self.used)


class ConnectionFacts:
    """What was learned of a DBAPI connection when it was opened or first met."""

    __slots__ = (
        "address",
        "backend_pid",
        "client_port",
        "connect_s",
        "met",
        "opened",
        "process",
    )

    def __init__(  # noqa: PLR0917 - as they are learned
        self,
        backend_pid: int | None,
        opened: float,
        connect_s: float | None,
        address: str | None,
        client_port: int | None,
        process: int,
        *,
        met: bool = False,
    ) -> None:
        self.backend_pid = backend_pid
        self.opened = opened
        """``time.monotonic()`` at the end of the connect call."""
        self.connect_s = connect_s
        self.address = address
        self.client_port = client_port
        self.process = process
        """Pid of the process that opened it."""
        self.met = met
        """Nobody knows when it was opened: ``opened`` is when it was met."""

    def record(self, now: float) -> Connection:
        """The form that viewers get."""
        from poolwatch.model import Connection

        return Connection(
            age_s=now - self.opened,
            connect_s=self.connect_s,
            address=self.address,
            client_port=self.client_port,
            met=self.met,
        )


class Gauges:
    """What the pool itself says of its present state."""

    def __init__(
        self,
        size: int | None = None,
        max_overflow: int | None = None,
        timeout_s: float | None = None,
        idle: int | None = None,
        overflow: int | None = None,
    ) -> None:
        self.size = size
        self.max_overflow = max_overflow
        self.timeout_s = timeout_s
        self.idle = idle
        self.overflow = overflow
