"""Durations counted in buckets: bounded memory, percentiles within 10 %.

Buckets are a quarter of an octave wide and stored sparsely. Not thread-safe: the caller
must serialize access.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from math import log2
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolwatch.model import Distribution

_STEPS = 4
"""Buckets per octave."""
_ZERO = 64 * _STEPS
"""Number of the bucket that begins at one second; keeps all bucket numbers positive."""
_SHORTEST = 5e-7
"""Shorter durations count as this many seconds."""


class Histogram:
    """A distribution of durations in seconds."""

    __slots__ = ("buckets", "count", "longest", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.longest = 0.0

    def add(self, samples: Sequence[float]) -> None:
        """Count a batch of durations.

        Sorting puts the durations of one bucket next to each other, so the logarithm is
        computed once per bucket instead of once per duration.
        """
        ordered = sorted(samples)
        buckets = self.buckets
        start, stop = 0, len(ordered)
        while start < stop:
            number = int(_STEPS * log2(max(ordered[start], _SHORTEST)) + _ZERO)
            end = bisect_left(ordered, _begin(number + 1), start + 1)
            buckets[number] = buckets.get(number, 0) + end - start
            start = end
        self.count += stop
        self.total += sum(samples)
        self.longest = max(self.longest, ordered[-1])

    def percentile(self, share: float) -> float | None:
        """The duration that a ``share`` (0 to 1) of all samples does not exceed."""
        if not self.count:
            return None
        rank = share * self.count
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                return min(_middle(bucket), self.longest)
        return self.longest

    def distribution(self) -> Distribution:
        """Return count, sum, maximum and percentiles."""
        from poolwatch.model import NO_SAMPLES, Distribution

        if not self.count:
            return NO_SAMPLES
        return Distribution(
            count=self.count,
            sum=self.total,
            max=self.longest,
            p50=self.percentile(0.50),
            p95=self.percentile(0.95),
            p99=self.percentile(0.99),
        )


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """Return one histogram of the samples of all."""
    total = Histogram()
    for histogram in histograms:
        for bucket, count in histogram.buckets.items():
            total.buckets[bucket] = total.buckets.get(bucket, 0) + count
        total.count += histogram.count
        total.total += histogram.total
        total.longest = max(total.longest, histogram.longest)
    return total


def _begin(bucket: int) -> float:
    return float(2 ** ((bucket - _ZERO) / _STEPS))


def _middle(bucket: int) -> float:
    return float(2 ** ((bucket + 0.5 - _ZERO) / _STEPS))
