"""The connections of one psycopg_pool pool, each as long as it lives.

The pool keeps no reference to a connection that is out. So there is one weak reference
to each: if it dies while the connection is held, the connection can never be returned.
The pool does not notice, and counts the connection for ever: a slot is lost.
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


class Met:
    """What is kept of a connection without keeping it alive."""

    __slots__ = ("closed", "facts", "reference", "wrapped")

    def __init__(
        self, reference: ref[Any], facts: ConnectionFacts, wrapped: Wrapped
    ) -> None:
        self.reference = reference
        self.facts = facts
        self.wrapped = wrapped
        self.closed = False
        """Already counted as closed."""


class Connections:
    """The connections that were opened or lent since the pool was hooked."""

    def __init__(
        self,
        book: PoolLedger,
        guard: Guard,
        statements: StatementHooks,
        remember: Remember,
        keeps_slot: Callable[[], bool],
    ) -> None:
        """``keeps_slot`` tells whether the pool still counts a dropped connection."""
        self.known: dict[int, Met] = {}
        """By the ``id()`` of the connection. The entry goes with the connection."""
        self._book = book
        self._guard = guard
        self._statements = statements
        self._remember = remember
        self._keeps_slot = keeps_slot

    def meet(self, connection: Any, opened: float, took: float | None) -> Met:
        """Record a connection that is new to us."""
        key = id(connection)
        facts = self._remember(connection, key, opened, took)
        wrapped = self._statements.wrap(connection)
        met = Met(ref(connection, partial(self._dead, key)), facts, wrapped)
        self.known[key] = met
        return met

    def closed(self, connection: Any) -> None:
        """Record that a connection is closed."""
        met = self.known.get(id(connection))
        if met is None:
            self._book.closed(None, monotonic())
        else:
            self._closed(met)

    def _closed(self, met: Met) -> None:
        if not met.closed:
            met.closed = True
            self._book.closed(met.facts, monotonic())

    def forget(self) -> None:
        """Take our methods off the connections, and forget these."""
        known = list(self.known.values())
        self.known.clear()
        for met in known:
            met.wrapped.unwrap()

    def _dead(self, key: int, dead: ref[Any]) -> None:
        """The connection is gone. Runs where the last reference was dropped."""
        met = self.known.get(key)
        if met is None or met.reference is not dead:
            return
        try:
            del self.known[key]
            self._book.connections.pop(key, None)
            hold = self._book.holds.get(key)
            if hold is not None and hold.proxy is dead:
                self._dropped(key, hold)
            self._closed(met)
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self._guard.failed(error)

    def _dropped(self, key: int, hold: Checkout) -> None:
        self._book.holds.pop(key, None)
        if self._keeps_slot():
            self._book.lost_slots += 1
        self._book.end(hold, monotonic(), True)
