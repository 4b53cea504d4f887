"""The ledger of one process: the ledgers of its pools, and the observers.

The application's threads write the ledger during their own calls, without a lock: see
:mod:`poolwatch.ledger.pool`, which is loaded for the first pool.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from poolwatch.ledger.observers import Observers
from poolwatch.runtime.made_once import made_once
from poolwatch.runtime.weak_values import WeakValues

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.ledger.nesting import InUse
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.ledger.pool_origins import PoolOrigins, UseLevel

_REMOVED_POOLS = 32
"""Ledgers kept of pools that were uninstrumented."""


class TestRun(Protocol):
    """Tells a viewer which test or fixture is at work."""

    def running(self) -> str | None:
        """The running test; None between tests."""

    def labels_of(self, request: Checkout) -> Mapping[str, str]:
        """Labels with the test or fixture that a hold or wait belongs to."""


class Ledger:
    """The pool ledgers of this process."""

    def __init__(self, in_use: InUse) -> None:
        self._in_use = in_use
        self.pools: WeakValues[str, PoolLedger] = WeakValues()
        """The ledger of each pool, by pool id; the hooks of the pool keep it alive."""
        self._pool_numbers = itertools.count(1)
        self.changes = 0
        """How often a pool, or every pool, was uninstrumented."""
        self.removed_pools: deque[PoolLedger] = deque(maxlen=_REMOVED_POOLS)
        """Ledgers of the latest uninstrumented pools, if their holds are observed."""
        self.observers = Observers()
        """Notified of every hold of every pool."""
        self.test_run: TestRun | None = None
        """The run of tests that this process is, if it is one."""
        self.numbers = itertools.count(1)
        """Numbers holds and waits; ``next()`` on it is atomic."""

    def open(self, **arguments: Any) -> PoolLedger:
        """Create the ledger of a pool; ``arguments`` are passed on to PoolLedger."""
        from poolwatch.ledger.pool import PoolLedger

        pool_id = f"p{next(self._pool_numbers)}"
        pool = self.pools[pool_id] = PoolLedger(
            pool_id,
            observers=self.observers,
            all_pools=self.pools,
            in_use=self._in_use,
            **arguments,
        )
        return pool

    def remove(self, pool: PoolLedger) -> None:
        """Forget a pool that was uninstrumented; the pool itself may stay in use."""
        self.close(pool.id)
        if self.observers.ended is not None:
            self.removed_pools.append(pool)
        self.changes += 1

    def close(self, pool_id: str) -> None:
        """Forget a pool, e.g. one that was garbage-collected."""
        pool = self.pools.pop(pool_id, None)
        if pool is not None:  # else its own end has told the observers
            pool.part()
        origins = self.__dict__.get("origins")
        if origins is not None:
            origins.forget_pool(pool_id)

    @made_once
    def origins(self) -> PoolOrigins:
        """The code that creates pools; loaded for the first pool."""
        from poolwatch.ledger.pool_origins import PoolOrigins

        return PoolOrigins()

    def use_level_of(self, pool_id: str) -> UseLevel:
        """See PoolLedger.use_level(); 2 if the pool is unknown."""
        pool = self.pools.get(pool_id)
        return 2 if pool is None else pool.use_level()

    def forget_origins(self) -> None:
        """Start over with counting the code that creates pools."""
        self.__dict__.pop("origins", None)

    def forget_parent(self) -> None:
        """Start over in a forked child."""
        self.forget_origins()
        for pool in self.pools.values():
            pool.forget()
