"""The ledger of one process: the pool ledger of every pool, and the observers.

The application's threads write it during their own calls, so it takes no lock there:
see :mod:`poolwatch.ledger.pool`, which is loaded for the first pool.
"""

from __future__ import annotations

import itertools
from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from poolwatch.ledger.observers import Observers

if TYPE_CHECKING:
    from poolwatch.ledger.nesting import InUse
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.ledger.pool_origins import PoolOrigins, Use

_DEPARTED = 32
"""Ledgers kept of pools that were taken away."""


class Ledger:
    """The pool ledgers of this process."""

    def __init__(self, in_use: InUse) -> None:
        self._in_use = in_use
        self.books: WeakValueDictionary[str, PoolLedger] = WeakValueDictionary()
        """By the id of the pool. The hooks of the pool keep its ledger alive."""
        self._numbers = itertools.count(1)
        self.changes = 0
        """How often the hooks of a pool, or those of every pool, were taken away."""
        self.taken_away: deque[PoolLedger] = deque(maxlen=_DEPARTED)
        """The latest ledgers of such pools; none without an observer."""
        self.observers = Observers()
        """Called for every hold of every pool."""
        self.numbers = itertools.count(1)
        """Numbers holds and waits; ``next()`` on it is atomic."""

    def open(self, **about: Any) -> PoolLedger:
        """Begin the ledger of a pool; ``about`` are further arguments of PoolLedger."""
        from poolwatch.ledger.pool import PoolLedger

        pool_id = f"p{next(self._numbers)}"
        book = self.books[pool_id] = PoolLedger(
            pool_id,
            observers=self.observers,
            beside=self.books,
            in_use=self._in_use,
            **about,
        )
        return book

    def take_away(self, book: PoolLedger) -> None:
        """Forget a pool that may live on."""
        self.close(book.id)
        if self.observers:
            self.taken_away.append(book)
        self.changes += 1

    def close(self, pool_id: str) -> None:
        """Forget a pool."""
        self.books.pop(pool_id, None)
        origins = self.__dict__.get("origins")
        if origins is not None:
            origins.gone(pool_id)

    @cached_property
    def origins(self) -> PoolOrigins:
        """The code that has made pools; loaded for the first pool that counts."""
        from poolwatch.ledger.pool_origins import PoolOrigins

        return PoolOrigins()

    def use_of(self, pool_id: str) -> Use:
        """How far a pool was used: see PoolLedger.use(); 2 if it is gone."""
        book = self.books.get(pool_id)
        return 2 if book is None else book.use()

    def forget_origins(self) -> None:
        """Begin anew with the code that makes pools."""
        self.__dict__.pop("origins", None)

    def forget_parent(self) -> None:
        """Begin anew in a forked child."""
        self.forget_origins()
        for book in self.books.values():
            book.forget()
