"""Statistics of the ended holds of one call site, in bounded memory."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from poolwatch.ledger.histogram import Histogram

if TYPE_CHECKING:
    from poolwatch.model import Frame
    from poolwatch.stacks.capture import CapturedStack

BATCH = 64
"""Ended holds of one stack that queue up before they are folded."""


class StackStats:
    """Statistics of one pool, one call site and one stack that led to it."""

    __slots__ = (
        "captured",
        "collected",
        "folds",
        "held",
        "hold",
        "idle",
        "in_sql",
        "leaked",
        "pool_wait",
        "stack",
        "used",
        "wait",
        "wait_caused",
        "waited",
    )

    def __init__(self, stack: tuple[Frame, ...] = ()) -> None:
        self.stack = stack
        """The call site and its nearest callers."""
        self.held = array("d")
        """Seconds that the ended holds not yet folded were held."""
        self.waited = array("d")
        """Seconds that each of these holds had waited for its connection."""
        self.hold = Histogram()
        self.wait = Histogram()
        self.collected = 0
        self.used = 0
        """Ended holds with measured statements."""
        self.in_sql = 0.0
        """Seconds that ended holds spent in statements."""
        self.idle = 0.0
        """Seconds that ended holds were idle in a transaction."""
        self.wait_caused = 0.0
        """Seconds of waits caused: the time of each ended wait is shared among the
        holds that were open when it began."""
        self.pool_wait = 0.0
        """Seconds in which holders also waited for another connection."""
        self.leaked = 0
        """Holds that were found leaked or were garbage-collected."""
        self.captured: list[CapturedStack] = []
        """The latest captures of this stack."""
        self.folds = 0

    @property
    def count(self) -> int:
        """The number of ended holds."""
        return self.hold.count + len(self.held)

    def fold(self) -> None:
        """Move the queued durations into the histograms. Not thread-safe."""
        ready = min(len(self.held), len(self.waited))
        if not ready:
            return
        self.hold.add(self.held[:ready])
        self.wait.add(self.waited[:ready])
        del self.held[:ready], self.waited[:ready]
        self.folds += 1
        if self.folds & (self.folds - 1) == 0:  # after 1, 2, 4, 8 ... folds
            for each in self.captured:
                each.recheck_tail()
