"""Connections that were opened before the process forked, and the lines that take them.

Parent and child share the session of such a connection. One short hold is enough to
mix up their answers, so each is noted as it is taken: see observers.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING

from poolwatch.model import InheritedUse

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.ledger.ledger import Ledger
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.stacks.capture import Path

_MOST = 64
"""Paths kept per pool."""


class InheritedPath:
    """A stack that has taken such a connection."""

    __slots__ = ("backend_pid", "last", "logged", "path")

    def __init__(self, path: Path, backend_pid: int | None) -> None:
        self.path = path
        self.backend_pid = backend_pid
        """Backend of the first such connection."""
        self.last = 0.0
        """``time.monotonic()`` of its last use."""
        self.logged = False
        """Already in the log."""

    def record(self, now: float) -> InheritedUse:
        """Return what is reported of it at ``now`` (``time.monotonic()``)."""
        return InheritedUse(self.path.site(), self.backend_pid, now - self.last)


class Inherited:
    """The observer in a forked child, while a pool has connections of its parent."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pid = os.getpid()

    def taken(self, book: PoolLedger, hold: Checkout) -> None:
        """Note a hold of such a connection."""
        facts = hold.facts
        if facts is None or facts.process == self._pid:
            return
        uses = book.inherited
        use = uses.get(hold.path)
        if use is None:
            if len(uses) >= _MOST:
                return
            use = uses[hold.path] = InheritedPath(hold.path, facts.backend_pid)
        use.last = monotonic()

    def is_over(self) -> bool:
        """Whether no pool has such connections any more."""
        books = list(self._ledger.books.values())
        facts = [each for book in books for each in list(book.connections.values())]
        return all(each.process == self._pid for each in facts)
