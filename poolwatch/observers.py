"""Those who want to know of every hold, called as one. Mostly there is none, or one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolwatch.checkout import Checkout
    from poolwatch.ledger import PoolBook
    from poolwatch.observer import Observer

    Taken = Callable[[PoolBook, Checkout], None]
    Ended = Callable[[PoolBook, Checkout, float, bool], None]


class Observers:
    """Changed while other threads call: what they call is replaced, never changed."""

    taken: Taken | None = None
    """Tells all that a connection was lent; None if nobody wants to know."""
    ended: Ended | None = None
    """Tells all that it has come back."""

    def __init__(self) -> None:
        self._all: tuple[Observer, ...] = ()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._all)

    def append(self, observer: Observer) -> None:
        """Tell one more."""
        self._tell(*self._all, observer)

    def remove(self, observer: Observer) -> None:
        """Tell it no more."""
        self._tell(*[each for each in self._all if each is not observer])

    def _tell(self, *observers: Observer) -> None:
        self._all = observers
        if not observers:
            self.taken = self.ended = None
        elif len(observers) == 1:
            self.taken, self.ended = observers[0].taken, observers[0].ended
        else:
            self.taken, self.ended = _all_taken(observers), _all_ended(observers)


def _all_taken(observers: tuple[Observer, ...]) -> Taken:
    def taken(book: PoolBook, hold: Checkout) -> None:
        for each in observers:
            each.taken(book, hold)

    return taken


def _all_ended(observers: tuple[Observer, ...]) -> Ended:
    def ended(book: PoolBook, hold: Checkout, now: float, collected: bool) -> None:
        for each in observers:
            each.ended(book, hold, now, collected)

    return ended
