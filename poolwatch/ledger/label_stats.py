"""Statistics of the holds of one pool by label, in bounded memory.

Like those by call site, kept for the holds that carry labels, once per label. The first
values of a label have statistics of their own; the others are counted together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from poolwatch.ledger.site_stats import StackStats
from poolwatch.model import OTHER_VALUES

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout

MAX_LABELS = 4
"""Maximum number of labels per pool; further ones are not counted."""
MAX_VALUES = 32
"""Maximum number of values per label; further ones are counted together."""
_BATCH = 16
"""Ended holds of one value that queue up before they are folded."""


class LabelStats:
    """The statistics of one pool. Written without a lock: see the ledger."""

    def __init__(self) -> None:
        self._by_label: dict[str, dict[str, StackStats]] = {}

    def of(self, labels: Mapping[str, str]) -> Iterator[StackStats]:
        """The statistics of each of these labels."""
        for label, value in labels.items():
            values = self._by_label.get(label)
            if values is None:
                if len(self._by_label) >= MAX_LABELS:
                    continue
                values = self._by_label.setdefault(label, {})
            if value not in values and len(values) >= MAX_VALUES:
                value = OTHER_VALUES  # noqa: PLW2901
            yield values.get(value) or values.setdefault(value, StackStats())

    def ended(self, hold: Checkout, now: float, collected: bool) -> list[StackStats]:
        """Record the end of a hold; returns the statistics that should be folded."""
        full = []
        usage = hold.usage
        for stats in self.of(hold.context.labels):
            stats.held.append(now - hold.checked_out_at)
            stats.waited.append(hold.checked_out_at - hold.requested_at)
            stats.collected += collected
            if usage is not None:
                stats.used += not usage.streamed
                stats.in_sql += usage.in_sql
                stats.idle += usage.idle_until(now)
            if len(stats.held) >= _BATCH:
                full.append(stats)
        return full

    def all(self) -> list[tuple[str, str, StackStats]]:
        """The label, the value and the statistics of each."""
        return [
            (label, value, stats)
            for label, values in list(self._by_label.items())
            for value, stats in list(values.items())
        ]

    def forget(self) -> None:
        """Start over in a forked child."""
        self._by_label.clear()
