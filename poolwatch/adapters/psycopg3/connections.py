"""The connections of one psycopg_pool pool, from opening to closing.

The pool keeps no reference to a lent connection. So poolwatch keeps a weak reference to
each: if it dies while the connection is held, the connection can never be returned. The
pool does not notice, and counts the connection for ever: a slot is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any
from weakref import ref

from poolwatch.adapters.patching import Wrapped
from poolwatch.adapters.psycopg3.statements import StatementHooks
from poolwatch.ledger.checkout import Checkout, ConnectionFacts
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import Guard

Remember = Callable[[Any, int, float, float | None], ConnectionFacts]


class KnownConnection:
    """The record of a connection, which does not keep it alive."""

    __slots__ = ("closed", "facts", "key", "reference", "wrapped")

    def __init__(
        self, key: int, reference: ref[Any], facts: ConnectionFacts, wrapped: Wrapped
    ) -> None:
        self.key = key
        self.reference = reference
        self.facts = facts
        self.wrapped = wrapped
        self.closed = False
        """The close is already counted."""


class Connections:
    """The connections that were opened or lent since the pool was hooked."""

    def __init__(
        self,
        ledger: PoolLedger,
        guard: Guard,
        statements: StatementHooks,
        remember: Remember,
        keeps_slot: Callable[[], bool],
    ) -> None:
        """``keeps_slot`` returns whether the pool still counts a dropped connection."""
        self.known: dict[int, KnownConnection] = {}
        """By the ``id()`` of the connection, until it is collected."""
        self._ledger = ledger
        self._guard = guard
        self._statements = statements
        self._remember = remember
        self._keeps_slot = keeps_slot

    def add(
        self, connection: Any, opened: float, connect_s: float | None
    ) -> KnownConnection:
        """Record a new connection."""
        key = id(connection)
        facts = self._remember(connection, key, opened, connect_s)
        wrapped = self._statements.wrap(connection)
        known = KnownConnection(
            key, ref(connection, partial(self._dead, key)), facts, wrapped
        )
        self.known[key] = known
        return known

    def closed(self, connection: Any) -> None:
        """Record that a connection is closed."""
        known = self.known.get(id(connection))
        if known is None:
            self._ledger.closed(None, monotonic())
        else:
            self._closed(known)

    def _closed(self, known: KnownConnection) -> None:
        if not known.closed:
            known.closed = True
            self._ledger.connections.pop(known.key, None)
            self._ledger.closed(known.facts, monotonic())

    def on_their_way(self, pool: Any) -> int:
        """How many are neither idle in the pool nor held, and not closed."""
        idle, holds = set(map(id, list(pool._pool))), self._ledger.holds.copy()
        known = dict(self.known)
        here = {
            known[key].facts.session for key in known if key in idle or key in holds
        }
        left_behind = self._ledger.slots.left_behind(monotonic(), here)
        return sum(
            not each.closed and each.reference() is not None
            for each in known.values()
            if each.facts.session not in here | left_behind
        )

    def forget(self) -> None:
        """Remove our wrappers from the connections, and drop their records."""
        known = list(self.known.values())
        self.known.clear()
        for each in known:
            each.wrapped.unwrap()

    def _dead(self, key: int, dead: ref[Any]) -> None:
        """The connection was collected. Runs where the last reference was dropped."""
        known = self.known.get(key)
        if known is None or known.reference is not dead:
            return
        try:
            del self.known[key]
            self._ledger.connections.pop(key, None)
            hold = self._ledger.holds.get(key)
            if hold is not None and hold.proxy is dead:
                self._dropped(key, hold)
            self._closed(known)
        except Exception as error:  # noqa: BLE001 - the application must go on
            self._guard.failed(error)

    def _dropped(self, key: int, hold: Checkout) -> None:
        self._ledger.holds.pop(key, None)
        if self._keeps_slot():
            self._ledger.slots.drop()
        self._ledger.end(hold, monotonic(), True)


_TASK = "AddConnection"
"""The pool's task that opens a connection. Its slot is counted from before."""


def to_be_opened(pool: Any) -> int:
    """How many connections the pool is to open, now or when it tries again."""
    queued = getattr(pool._tasks, "queue", None)
    tasks = list(pool._tasks._queue if queued is None else queued)  # asyncio's is None
    later = [entry.action for entry in list(pool._sched._queue)]
    tasks += [getattr(action, "__self__", None) for action in later]
    return sum(type(task).__name__ == _TASK for task in tasks)
