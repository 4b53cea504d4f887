"""Watches a forked child for connections that its parent process had opened.

Parent and child share the session of such a connection. One short hold is enough to
mix up their answers, so each checkout is recorded as it happens.
"""

from __future__ import annotations

import os
from time import monotonic

from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.inherited import InheritedCheckouts
from poolwatch.ledger.ledger import Ledger
from poolwatch.ledger.pool import PoolLedger

_MAX_PATHS = 64
"""Paths kept per pool."""


class Inherited:
    """The observer in a forked child, while a pool has connections of its parent."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pid = os.getpid()

    def checked_out(self, pool: PoolLedger, hold: Checkout) -> None:
        """Record a hold whose connection the parent process had opened."""
        facts = hold.facts
        if facts is None or facts.process == self._pid:
            return
        uses = pool.inherited
        use = uses.get(hold.stack)
        if use is None:
            if len(uses) >= _MAX_PATHS:
                return
            use = uses[hold.stack] = InheritedCheckouts(hold.stack, facts.backend_pid)
        use.last = monotonic()

    def is_over(self) -> bool:
        """Whether no pool has connections of the parent any more."""
        pools = list(self._ledger.pools.values())
        facts = [each for pool in pools for each in list(pool.connections.values())]
        return all(each.process == self._pid for each in facts)
