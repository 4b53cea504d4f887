"""Durations counted in buckets: bounded memory, percentiles within 10 %.

Buckets are a quarter of an octave wide, kept sparsely. Not thread-safe: whoever owns a
histogram calls it from one thread at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log2
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolwatch.model import Distribution

_STEPS = 4
"""Buckets per octave."""
_ZERO = 64 * _STEPS
"""Number of the bucket that begins at one second; keeps all numbers positive."""


class Histogram:
    """A distribution of durations in seconds."""

    __slots__ = ("buckets", "count", "longest", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.longest = 0.0

    def add(self, samples: Sequence[float]) -> None:
        """Count durations, many at once; they are told apart by microseconds.

        Short ones repeat, so the logarithm is taken of distinct values only.
        """
        repeated = Counter([int(seconds * 1e6) for seconds in samples])
        buckets = self.buckets
        for microseconds, count in repeated.items():
            number = int(_STEPS * log2((microseconds + 0.5) / 1e6) + _ZERO)
            buckets[number] = buckets.get(number, 0) + count
        self.count += len(samples)
        self.total += sum(samples)
        longest = max(samples)
        self.longest = max(self.longest, longest)

    def percentile(self, share: float) -> float | None:
        """The duration that ``share`` (0 to 1) of all samples do not exceed."""
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
        """The figures people ask for."""
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
    """One histogram of all samples of several."""
    total = Histogram()
    for each in histograms:
        for bucket, count in each.buckets.items():
            total.buckets[bucket] = total.buckets.get(bucket, 0) + count
        total.count += each.count
        total.total += each.total
        total.longest = max(total.longest, each.longest)
    return total


def _middle(bucket: int) -> float:
    return float(2 ** ((bucket + 0.5 - _ZERO) / _STEPS))
