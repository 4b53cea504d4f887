"""Observers notified when a connection is checked out or returned. Usually 0 or 1.

An observer is any object that has one or more of these methods. They are called in the
thread of the checkout or return, and possibly in the middle of a garbage collection:
they must be quick and must not fail. (If one fails, the hooks of that pool are switched
off.)

``checked_out(pool, hold)``             a connection was checked out
``ended(pool, hold, now, collected)``   it was returned, or garbage-collected
``parted(pool)``                        the pool was collected or uninstrumented
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from poolwatch.ledger.checkout import Checkout

# The first argument is a PoolLedger, whose module imports this one.
OnCheckout = Callable[[Any, Checkout], None]
OnEnd = Callable[[Any, Checkout, float, bool], None]
OnPart = Callable[[Any], None]


class Observers:
    """The observers of all pools.

    Other threads may call them during a change: each attribute is replaced as a whole.
    """

    __slots__ = ("_all", "checked_out", "ended", "parted")

    def __init__(self) -> None:
        self._all: tuple[object, ...] = ()
        self.checked_out: OnCheckout | None = None
        """Calls ``checked_out`` of every observer that has it; None if none has it."""
        self.ended: OnEnd | None = None
        """Calls ``ended`` of every observer that has it; None if none has it."""
        self.parted: OnPart | None = None
        """Calls ``parted`` of every observer that has it; None if none has it."""

    def __bool__(self) -> bool:
        """Whether there is at least one observer."""
        return bool(self._all)

    def append(self, observer: object) -> None:
        """Add an observer at the end."""
        self._set(*self._all, observer)

    def remove(self, observer: object) -> None:
        """Remove an observer, if it is registered."""
        self._set(*[each for each in self._all if each is not observer])

    def _set(self, *observers: object) -> None:
        self._all = observers
        for name in ("checked_out", "ended", "parted"):
            setattr(self, name, self._combined(name))

    def _combined(self, name: str) -> Callable[..., None] | None:
        calls = [getattr(each, name) for each in self._all if hasattr(each, name)]
        if len(calls) <= 1:
            return calls[0] if calls else None

        def notify(*args: Any) -> None:
            for call in calls:
                call(*args)

        return notify
