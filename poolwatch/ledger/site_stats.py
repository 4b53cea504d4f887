"""What one call site has done to one pool, by caller, in bounded memory."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from poolwatch.ledger.histogram import Histogram

if TYPE_CHECKING:
    from poolwatch.model import Frame
    from poolwatch.stacks.capture import Path

BATCH = 64
"""Ended holds of a call site that may queue up."""


class Tally:
    """What one call site has done to one pool, reached by one stack."""

    __slots__ = (
        "caused",
        "collected",
        "folds",
        "held",
        "hold",
        "idle",
        "in_sql",
        "leaked",
        "paths",
        "pool_wait",
        "stack",
        "used",
        "wait",
        "waited",
    )

    def __init__(self, stack: tuple[Frame, ...] = ()) -> None:
        self.stack = stack
        """The call site and its nearest callers."""
        self.held = array("d")
        """Seconds of ended holds that are not folded yet, and beside them ..."""
        self.waited = array("d")
        """... the seconds each had waited before."""
        self.hold = Histogram()
        self.wait = Histogram()
        self.collected = 0
        self.used = 0
        """Ended holds through which statements were seen, and ..."""
        self.in_sql = 0.0
        """... the seconds they spent in those, and ..."""
        self.idle = 0.0
        """... in a transaction without one."""
        self.caused = 0.0
        """Seconds that others have waited while this held a connection: each wait is
        shared out among all that held one when it began."""
        self.pool_wait = 0.0
        """Seconds in which holders of these waited for another connection meanwhile."""
        self.leaked = 0
        """Open holds that were found leaked, and those that were collected."""
        self.paths: list[Path] = []
        self.folds = 0

    @property
    def count(self) -> int:
        """Holds that have ended."""
        return self.hold.count + len(self.held)

    def fold(self) -> None:
        """Move what was appended into the histograms; one thread at a time."""
        ready = min(len(self.held), len(self.waited))
        if not ready:
            return
        self.hold.add(self.held[:ready])
        self.wait.add(self.waited[:ready])
        del self.held[:ready], self.waited[:ready]
        self.folds += 1
        if self.folds & (self.folds - 1) == 0:  # ever more rarely
            for path in self.paths:
                path.recheck_tail()
