"""What the ledger asks of those who want to know of every hold.

By itself, because it is only for type checkers: a Protocol takes a while to make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from poolwatch.checkout import Checkout
    from poolwatch.ledger import PoolBook


class Observer(Protocol):
    """Is told of each hold as it begins and ends, in the thread where that happens.

    It must be quick and may not fail: it is called on the way of a checkout. (If it
    fails all the same, the hooks of that pool are switched off.)
    """

    def taken(self, book: PoolBook, hold: Checkout) -> None:
        """A connection was lent."""

    def ended(
        self, book: PoolBook, hold: Checkout, now: float, collected: bool
    ) -> None:
        """It has come back, by itself or by the garbage collector."""
