"""Makes holds of connections that were out before their pool was hooked.

A connection on its way to or from its holder is out without a hold, too, for a moment.
So a connection is adopted only if two looks, some time apart, have found it so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, NamedTuple

from poolwatch.ledger.adopted import AdoptedHold
from poolwatch.ledger.checkout import ConnectionFacts
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import Guard

_APART_S = 0.05
"""Minimum time between two looks."""


class Unheld(NamedTuple):
    """A connection that is out and has no hold."""

    key: int
    """The key that its hold would have."""
    checkout: int
    """Identifies the checkout, as far as the pool tells two of them apart."""
    proxy: Callable[[], Any]
    """Weak reference to what the application has."""
    facts: ConnectionFacts | None
    is_out: Callable[[], bool]
    """Whether it is out still, and not being returned."""
    keyed: bool = False
    """See Checkout.keyed."""


class Adoption:
    """Adopts the connections of one pool."""

    def __init__(
        self, ledger: PoolLedger, unheld: Callable[[], Iterable[Unheld]], guard: Guard
    ) -> None:
        self._ledger = ledger
        self._unheld = unheld
        self._guard = guard
        self._seen: dict[tuple[int, int], float] = {}
        """When a connection was first found like that, by key and checkout."""

    def look(self) -> None:
        """Adopt what is out now and was at an earlier look."""
        if self._guard.tripped:
            return
        try:
            now, before = monotonic(), self._seen
            unheld = list(self._unheld())
            self._seen = {
                (each.key, each.checkout): before.get((each.key, each.checkout), now)
                for each in unheld
            }
            for each in unheld:
                if now - self._seen[each.key, each.checkout] >= _APART_S:
                    self._adopt(each)
        except Exception as error:  # noqa: BLE001 - the application must go on
            self._guard.failed(error)

    def _adopt(self, found: Unheld) -> None:
        """Add a hold, unless another thread was faster.

        A return removes the hold by its key, after ``is_out`` has become false: if it
        is true once the hold is there, the return will find it.
        """
        hold, holds = AdoptedHold(found.proxy, found.facts), self._ledger.holds
        hold.keyed = found.keyed
        if holds.setdefault(found.key, hold) is not hold:
            return
        if not found.is_out() and holds.get(found.key) is hold:
            holds.pop(found.key, None)
