"""What is taken and returned while a block of code runs."""

from __future__ import annotations

import gc
import itertools
import time
from contextvars import ContextVar
from typing import Any

from poolwatch.agent.instrument import (
    agent,
    instrument,
    instrument_without_agent,
    uninstrument,
)
from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.pool import PoolLedger
from poolwatch.stacks.holder import get_ident
from poolwatch.testing import evidence
from poolwatch.testing.leak import Leak

STEP_S = 0.005
"""Between two looks whether others have returned theirs."""

_inside: ContextVar[tuple[int, ...]] = ContextVar("poolwatch_no_leaks", default=())
"""The blocks that this code runs in, by number; tasks inherit them."""
_numbers = itertools.count(1)


class Region:
    """One run of a block, as an observer of the ledger."""

    def __init__(self, target: Any) -> None:
        self._pool: str | None = None
        self._instrumented = self._watch(target)
        self._target = target
        self.out: dict[int, tuple[PoolLedger, Checkout]] = {}
        self._suspects: dict[int, tuple[PoolLedger, Checkout]] = {}
        self.peak: list[Checkout] = []
        """What was out when most was."""
        self._collected: list[Leak] = []
        self._ident = get_ident()
        self._begun = time.monotonic()
        self._number = next(_numbers)
        self._token = _inside.set((*_inside.get(), self._number))
        agent.ledger.observers.append(self)

    def _watch(self, target: Any) -> bool:
        """Instrument what is not yet; returns whether that must be undone."""
        if target is None:
            before = agent.pools is not None and agent.pools.watches_all
            if not before:
                instrument_without_agent()
            return not before
        known = agent.pools.id_of(target) if agent.pools is not None else None
        if known is None:
            instrument(target)
        self._pool = agent.pools.id_of(target) if agent.pools else None
        return known is None

    def taken(self, book: PoolLedger, hold: Checkout) -> None:
        """See whether it is ours."""
        if book.shared or (self._pool is not None and book.id != self._pool):
            return
        if self._number in _inside.get() or (
            hold.holder.ident != self._ident and hold.holder.first_seen >= self._begun
        ):
            self.out[id(hold)] = book, hold
            if len(self.out) > len(self.peak):
                self.peak = [hold for _, hold in list(self.out.values())]

    def ended(
        self, book: PoolLedger, hold: Checkout, now: float, collected: bool
    ) -> None:
        """See whether it came back by itself."""
        if self.out.pop(id(hold), None) is not None and collected:
            self._collected.append(evidence.collected(book, hold, now))

    def settle(self, grace: float) -> None:
        """Give other threads the time to return theirs."""
        self.last_call()
        until = time.monotonic() + grace
        while self.waits() and time.monotonic() < until:
            time.sleep(STEP_S)

    def last_call(self) -> None:
        """The block is over: only what is out now may be a leak.

        A thread that it has started may go on to take and return connections.
        """
        self._suspects = dict(self.out)

    def waits(self) -> bool:
        """Whether some of that is still out."""
        return any(key in self.out for key in self._suspects)

    def leaks(self, allowed: int) -> list[Leak]:
        """What has not come back, or not by itself."""
        if self.waits():
            gc.collect()  # tells what is held from what was dropped
        held = [pair for key, pair in self._suspects.items() if key in self.out]
        if len(held) + len(self._collected) <= allowed:
            return []
        return [*self._collected, *evidence.open_ones(held, time.monotonic())]

    def end(self) -> None:
        """Take no more notice."""
        agent.ledger.observers.remove(self)
        try:
            _inside.reset(self._token)
        except ValueError:  # ended in another context than it was begun in
            left = tuple(each for each in _inside.get() if each != self._number)
            _inside.set(left)
        if self._instrumented:
            uninstrument(self._target)
