"""Statements that begin on a connection while another one is running on it.

Two threads or tasks share the connection then. Each begin of a statement shows it, at
the cost of one comparison; only what is found gets here.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from poolwatch.model import ConcurrentStatements
from poolwatch.stacks.callers import distinguishing_callers

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.stacks.capture import CapturedStack

_MAX_PAIRS = 64
"""Maximum number of pairs of stacks per pool."""


class _Pair:
    """Two stacks that sent statements over one connection at the same time."""

    __slots__ = ("begun", "checkout", "count", "last", "running", "tasks")

    def __init__(
        self, running: CapturedStack, begun: CapturedStack, hold: Checkout
    ) -> None:
        self.running = running
        self.begun = begun
        self.checkout = hold.stack
        self.tasks = hold.task is not None
        self.count = 0
        self.last = 0.0

    def record(self, now: float) -> ConcurrentStatements:
        """Return the record for a snapshot taken at ``now`` (``time.monotonic()``)."""
        return ConcurrentStatements(
            self.running.site(),
            self.begun.site(),
            distinguishing_callers(self.running, self.begun),
            self.checkout.site(),
            self.tasks,
            now - self.last,
            self.count,
        )


class ConcurrentUses:
    """The concurrent statements of one pool. Written without a lock: see the ledger."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[CapturedStack, CapturedStack], _Pair] = {}

    def note(
        self, hold: Checkout, running: CapturedStack | None, begun: CapturedStack
    ) -> None:
        """Record that a statement begins while the one of ``running`` still runs."""
        if running is None:
            return
        pair = self._pairs.get((running, begun))
        if pair is None:
            if len(self._pairs) >= _MAX_PAIRS:
                return
            pair = self._pairs[running, begun] = _Pair(running, begun, hold)
        pair.count += 1
        pair.last = monotonic()

    def records(self, now: float) -> list[ConcurrentStatements]:
        """Return the records for a snapshot taken at ``now`` (``time.monotonic()``)."""
        return [pair.record(now) for pair in list(self._pairs.values())]

    def forget(self) -> None:
        """Start over in a forked child."""
        self._pairs.clear()
