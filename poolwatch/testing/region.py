"""Records the checkouts and returns while a block of code runs."""

from __future__ import annotations

import itertools
import time
from typing import Any

from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.gc_pause import collect
from poolwatch.testing import evidence
from poolwatch.testing.leak import Leak
from poolwatch.testing.open_blocks import open_blocks
from poolwatch.testing.open_holds import is_open, steps, wait_for_collections

_numbers = itertools.count(1)


class Region:
    """One run of a block."""

    def __init__(self, target: Any) -> None:
        self.number = next(_numbers)
        self.pool: str | None = None
        self.open_holds: dict[Checkout, PoolLedger] = {}
        self._suspects: list[Checkout] = []
        self.peak: list[Checkout] = []
        """The open holds when there were the most."""
        self._collected: list[Leak] = []
        open_blocks.begin(self, target)

    def checked_out(self, pool: PoolLedger, hold: Checkout) -> None:
        """Record a checkout that belongs to this block."""
        self.open_holds[hold] = pool
        if len(self.open_holds) > len(self.peak):
            self.peak = list(self.open_holds)

    def ended(
        self, pool: PoolLedger, hold: Checkout, now: float, collected: bool
    ) -> None:
        """Record the end of a hold; a garbage-collected one is a leak."""
        if self.open_holds.pop(hold, None) is not None and collected:
            self._collected.append(evidence.from_collected_hold(pool, hold, now))

    def wait_for_returns(self, grace: float) -> None:
        """Wait up to ``grace`` seconds for other threads to return connections."""
        self.mark_suspects()
        for pause in steps(grace):
            if not self.has_open_suspects():
                return
            time.sleep(pause)

    def mark_suspects(self) -> None:
        """End the block: only holds that are open now may be leaks.

        A thread started in the block may go on to check out and return connections.
        """
        self._suspects = [
            hold for hold in list(self.open_holds) if not hold.is_kept_by_framework()
        ]

    def has_open_suspects(self) -> bool:
        """Whether any hold that was open at the end of the block still is."""
        return any(hold in self.open_holds for hold in self._suspects)

    def leaks(self, allowed: int) -> list[Leak]:
        """Return the leaks, if they are more than ``allowed``."""
        if self.has_open_suspects():
            collect()  # distinguishes held connections from dropped ones
            wait_for_collections(self.open_holds)
        pairs = [(self.open_holds.get(hold), hold) for hold in self._suspects]
        held = [(pool, hold) for pool, hold in pairs if pool and is_open(hold)]
        if len(held) + len(self._collected) <= allowed:
            return []
        return [*self._collected, *evidence.from_open_holds(held, time.monotonic())]

    def end(self) -> None:
        """Stop recording."""
        open_blocks.end(self)


class Regions:
    """The running blocks of one context manager, which tasks and threads may share."""

    def __init__(self) -> None:
        self._running: list[Region] = []

    def begin(self, target: Any) -> None:
        """Begin a block."""
        self._running.append(Region(target))

    def last(self) -> Region:
        """Remove and return the block that ends: the innermost of the running code."""
        around = open_blocks.around()
        own = [each for each in self._running if each.number in around]
        region = (own or self._running)[-1]  # else it ends in another context
        self._running.remove(region)
        return region
