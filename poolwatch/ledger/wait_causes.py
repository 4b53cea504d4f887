"""The causes of waits: the holds that were open when each wait began.

The time of a wait is shared among these holds: among their stacks, and among the values
of their labels.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.ledger.label_stats import LabelStats
    from poolwatch.ledger.site_stats import StackStats
    from poolwatch.stacks.capture import CapturedStack

    StatsOf = Callable[[CapturedStack], StackStats]

MAX_BLAMED = 64
"""Maximum number of holds among which the time of one wait is shared."""
MIN_SHOWN_WAIT_S = 0.001
"""Seconds. Shorter waits are not shown: they are connections being handed over."""


class WaitCauses:
    """The causes of the open waits of one pool."""

    def __init__(self, labels: LabelStats) -> None:
        self._labels = labels
        self.blamed: dict[int, list[tuple[CapturedStack, Mapping[str, str]]]] = {}
        """By id of the wait: the stacks and labels of the holds that were open when it
        began."""

    def note(self, wait: Checkout, holds: Iterable[Checkout]) -> list[CapturedStack]:
        """Record the holds that are open when a wait begins; returns their stacks."""
        first = list(itertools.islice(holds, MAX_BLAMED))
        self.blamed[id(wait)] = [(hold.stack, hold.context.labels) for hold in first]
        return [hold.stack for hold in first]

    def ended(self, wait: Checkout, now: float, stats_of: StatsOf) -> bool:
        """Share the time of an ended wait; False if it is none worth mentioning."""
        blamed = self.blamed.pop(id(wait), None)
        if blamed is None or now - wait.requested_at < MIN_SHOWN_WAIT_S:
            return False
        for stats, seconds in self._shares(blamed, now - wait.requested_at, stats_of):
            stats.wait_caused += seconds
        return True

    def of_open(
        self, waits: Iterable[Checkout], now: float, stats_of: StatsOf
    ) -> Counter[StackStats]:
        """Like StackStats.wait_caused, for the waits that are not over yet."""
        causing: Counter[StackStats] = Counter()
        for wait in list(waits):
            blamed = self.blamed.get(id(wait), [])
            waited = now - wait.requested_at
            for stats, seconds in self._shares(blamed, waited, stats_of):
                causing[stats] += seconds  # type: ignore[assignment]
        return causing

    def _shares(
        self,
        blamed: list[tuple[CapturedStack, Mapping[str, str]]],
        waited: float,
        stats_of: StatsOf,
    ) -> Iterator[tuple[StackStats, float]]:
        for stack, labels in blamed:
            share = waited / len(blamed)
            yield stats_of(stack), share
            for stats in self._labels.of(labels):
                yield stats, share
