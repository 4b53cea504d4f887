"""The connections of one psycopg_pool pool, for as long as each of them lives.

The pool keeps no reference to what it has lent. So one weak reference per connection
tells everything: if it dies while its connection is held, nobody can return that any
more. The pool does not notice, and counts the connection for ever: a slot is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any
from weakref import ref

from poolwatch.adapters.psycopg3.statements import StatementHooks
from poolwatch.ledger.checkout import Checkout, ConnectionFacts
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import Guard

Remember = Callable[[Any, int, float, float | None], ConnectionFacts]


class Met:
    """One connection, as far as it may be remembered."""

    __slots__ = ("closed", "facts", "reference")

    def __init__(self, reference: ref[Any], facts: ConnectionFacts) -> None:
        self.reference = reference
        self.facts = facts
        self.closed = False
        """Already counted as closed."""


class Connections:
    """Those that were made or lent since the pool was hooked."""

    def __init__(
        self,
        book: PoolLedger,
        guard: Guard,
        statements: StatementHooks,
        remember: Remember,
        keeps_slot: Callable[[], bool],
    ) -> None:
        """``keeps_slot`` says whether the pool still counts what was dropped."""
        self.known: dict[int, Met] = {}
        """By the id of the connection: it is unique as long as that lives, and the
        entry goes with it."""
        self._book = book
        self._guard = guard
        self._statements = statements
        self._remember = remember
        self._keeps_slot = keeps_slot

    def meet(self, connection: Any, opened: float, took: float | None) -> Met:
        """Take down one that is new to us."""
        key = id(connection)
        facts = self._remember(connection, key, opened, took)
        met = Met(ref(connection, partial(self._dead, key)), facts)
        self.known[key] = met
        self._statements.wrap(connection)
        return met

    def closed(self, connection: Any) -> None:
        """It is being closed, or was found closed."""
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
        """Take everything of ours off the connections, and let go of them."""
        known = list(self.known.values())
        self.known.clear()
        for met in known:
            connection = met.reference()
            if connection is not None:
                self._statements.unwrap(connection)

    def _dead(self, key: int, dead: ref[Any]) -> None:
        """Nobody refers to it any more. Runs where the last reference was dropped."""
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
