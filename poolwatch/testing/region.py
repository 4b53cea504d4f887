"""Records the checkouts and returns while a block of code runs."""

from __future__ import annotations

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
from poolwatch.runtime.gc_pause import collect
from poolwatch.stacks.holder import get_ident
from poolwatch.testing import evidence
from poolwatch.testing.leak import Leak

STEP_S = 0.005
"""Seconds between two checks whether other threads have returned their connections."""

_blocks: ContextVar[tuple[int, ...]] = ContextVar("poolwatch_no_leaks", default=())
"""The numbers of the blocks around the running code; tasks inherit them."""
_numbers = itertools.count(1)


class Region:
    """One run of a block, as an observer of the ledger."""

    def __init__(self, target: Any) -> None:
        self._pool: str | None = None
        self._instrumented = self._instrument(target)
        self._target = target
        self.open_holds: dict[int, tuple[PoolLedger, Checkout]] = {}
        self._suspects: dict[int, tuple[PoolLedger, Checkout]] = {}
        self.peak: list[Checkout] = []
        """The open holds when there were the most."""
        self._collected: list[Leak] = []
        self._ident = get_ident()
        self._begun = time.monotonic()
        self._number = next(_numbers)
        self._token = _blocks.set((*_blocks.get(), self._number))
        agent.ledger.observers.append(self)

    def _instrument(self, target: Any) -> bool:
        """Instrument the target if needed; return whether to undo that at the end."""
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

    def checked_out(self, pool: PoolLedger, hold: Checkout) -> None:
        """Record a checkout, if it belongs to this block."""
        if pool.shared or (self._pool is not None and pool.id != self._pool):
            return
        if self._number in _blocks.get() or (
            hold.holder.ident != self._ident and hold.holder.first_seen >= self._begun
        ):
            self.open_holds[id(hold)] = pool, hold
            if len(self.open_holds) > len(self.peak):
                self.peak = [hold for _, hold in list(self.open_holds.values())]

    def ended(
        self, pool: PoolLedger, hold: Checkout, now: float, collected: bool
    ) -> None:
        """Record the end of a hold; a garbage-collected one is a leak."""
        if self.open_holds.pop(id(hold), None) is not None and collected:
            self._collected.append(evidence.from_collected_hold(pool, hold, now))

    def wait_for_returns(self, grace: float) -> None:
        """Wait up to ``grace`` seconds for other threads to return connections."""
        self.mark_suspects()
        until = time.monotonic() + grace
        while self.has_open_suspects() and time.monotonic() < until:
            time.sleep(STEP_S)

    def mark_suspects(self) -> None:
        """End the block: only holds that are open now may be leaks.

        A thread started in the block may go on to check out and return connections.
        """
        self._suspects = {
            key: each
            for key, each in list(self.open_holds.items())
            if not each[1].is_kept_by_framework()
        }

    def has_open_suspects(self) -> bool:
        """Whether any hold that was open at the end of the block still is."""
        return any(key in self.open_holds for key in self._suspects)

    def leaks(self, allowed: int) -> list[Leak]:
        """Return the leaks, if they are more than ``allowed``."""
        if self.has_open_suspects():
            collect()  # distinguishes held connections from dropped ones
        held = [pair for key, pair in self._suspects.items() if key in self.open_holds]
        if len(held) + len(self._collected) <= allowed:
            return []
        return [*self._collected, *evidence.from_open_holds(held, time.monotonic())]

    def end(self) -> None:
        """Stop recording."""
        agent.ledger.observers.remove(self)
        try:
            _blocks.reset(self._token)
        except ValueError:  # ended in another context than it began in
            remaining = tuple(
                number for number in _blocks.get() if number != self._number
            )
            _blocks.set(remaining)
        if self._instrumented:
            uninstrument(self._target)
