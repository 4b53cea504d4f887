"""One checkout, and what is known of it: written in the application's own calls.

No lock is taken here: what two threads may write at once is a single attribute.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from poolwatch.labels import Ambience

if TYPE_CHECKING:
    from typing import Protocol

    from poolwatch.book import PoolBook
    from poolwatch.callsites import Chain, Path
    from poolwatch.holders import Holder, TaskRef
    from poolwatch.model import Connection

    class Account(Protocol):
        """Whoever answers for holds."""

        out: dict[Checkout, Lender]
        """Those that are open: each is taken off when it ends."""
        peak: int
        """The most that it has had at once."""
        keeps_peak: bool
        """It must see the holds it has at its peak."""
        over: bool
        """It takes one more after it was thought to have ended."""

    class Lender(Protocol):
        """What a connection was taken from."""

        @property
        def book(self) -> PoolBook:
            """Its books."""

    class QuietLender(Lender, Protocol):
        """One that nobody could look at."""

        def facts(self, hold: Checkout) -> ConnectionFacts | None:
            """What can be learned of the connection; None if it is gone."""


LIMIT = 8192
"""Characters of a statement that are kept: no more than are ever shown."""
_LOOKS = 2


class Checkout:
    """One request for a connection, and the hold it turns into.

    One is made at every checkout: nothing is stored before it is needed.
    """

    __slots__ = (
        "account",
        "ambience",
        "asked",
        "chain",
        "dropped",
        "facts",
        "holder",
        "keyed",
        "leaked",
        "lender",
        "number",
        "proxy",
        "said",
        "taken",
        "task",
        "usage",
        "walked",
        "within",
    )

    walked: Path
    """The path, if somebody could look or has asked for it, else ..."""
    chain: Chain
    """... what it is made of."""
    holder: Holder
    ambience: Ambience
    task: TaskRef | None
    asked: float
    """``time.monotonic()`` of the request."""
    taken: float
    proxy: Callable[[], Any]
    """Weak reference to the connection proxy that the application holds."""
    facts: ConnectionFacts | None
    """What is known of the connection, if that was noted or asked for, else ..."""
    lender: QuietLender
    """... who knows it."""
    dropped: int
    """Looks in a row at which nothing but the pool referred to the connection."""
    keyed: bool
    """Taken under a key, by which whoever knows it gets it again."""
    leaked: bool
    """Already counted as leaked."""
    number: int
    """Given when somebody first looks."""
    usage: Usage | None
    said: str
    """The last statement, if nobody could look when it was sent: then it is all that is
    kept of it."""
    within: tuple[Checkout, ...]
    """Holds of the same pool that its holder was using when it asked; only set where
    there are some."""
    account: Account | None
    """Whose code took it, if an observer has said so."""

    def __init__(
        self,
        path: Path,
        holder: Holder,
        ambience: Ambience,
        task: TaskRef | None,
        asked: float,
    ) -> None:
        self.walked = path
        self.holder = holder
        self.ambience = ambience
        self.task = task
        self.asked = asked
        self.usage = None
        self.account = None

    # Not by __getattr__: whatever is read of an object that has one takes much longer.

    @property
    def path(self) -> Path:
        """Where it was asked for."""
        try:
            return self.walked
        except AttributeError:
            from poolwatch.callsites import LonePath  # mostly nobody asks

            self.walked = LonePath.of(self.chain)
            return self.walked

    @property
    def connection(self) -> ConnectionFacts | None:
        """What is known of the connection; None if it is gone."""
        try:
            return self.facts
        except AttributeError:
            self.facts = self.lender.facts(self)
            return self.facts

    def owner(self) -> object:
        """The one that holds or waits: equal for two requests of one task or thread."""
        return self.holder if self.task is None else self.task

    def statement(self) -> str | None:
        """The last statement that was sent, literals included."""
        if self.usage is None:
            return getattr(self, "said", None)
        return self.usage.statement

    def is_dropped(self) -> bool:
        """Whether nobody can return it: enough looks in a row have said so."""
        return getattr(self, "dropped", 0) >= _LOOKS

    def taker(self) -> tuple[int | None, Callable[[], Any] | None]:
        """Whose stack it is (Holder.stack_key), None if it has ended; and the task, by
        weakref.
        """
        ident = None if self.holder.has_ended() else self.holder.stack_key()
        return ident, self.task.reference if self.task is not None else None

    def ended_owner(self) -> str | None:
        """Who took it, in words, if that thread or task has ended.

        None if somebody else has used the connection: then it was handed over. Also if
        nobody looked who that was.
        """
        if self.task is not None:
            ended, who = self.task.has_ended(), f"task {self.task.name}"
        else:
            ended, who = self.holder.has_ended(), f"thread {self.holder.name}"
        if not ended or (self.usage is not None and self.usage.by_others):
            return None
        if hasattr(self, "said"):
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
    timed = True
    """The seconds below are those of all its statements."""
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
