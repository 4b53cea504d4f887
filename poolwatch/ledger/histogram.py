"""Durations counted in buckets: bounded memory, percentiles within 10 %.

Buckets are a quarter of an octave wide, kept sparsely. Not thread-safe: whoever owns a
histogram calls it from one thread at a time.
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
"""Number of the bucket that begins at one second; keeps all numbers positive."""
_SHORTEST = 5e-7
"""Seconds that what took no time counts as."""


class Histogram:
    """A distribution of durations in seconds."""

    __slots__ = ("buckets", "count", "longest", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.longest = 0.0

    def add(self, samples: Sequence[float]) -> None:
        """Count durations, many at once.

        Sorted, those of one bucket lie side by side: a logarithm is taken for each
        bucket, not for each of them.
        """
        ordered = sorted(samples)
        buckets = self.buckets
        done, ready = 0, len(ordered)
        while done < ready:
            number = int(_STEPS * log2(max(ordered[done], _SHORTEST)) + _ZERO)
            beyond = bisect_left(ordered, _begin(number + 1), done + 1)
            buckets[number] = buckets.get(number, 0) + beyond - done
            done = beyond
        self.count += ready
        self.total += sum(samples)
        self.longest = max(self.longest, ordered[-1])

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


def _begin(bucket: int) -> float:
    return float(2 ** ((bucket - _ZERO) / _STEPS))


def _middle(bucket: int) -> float:
    return float(2 ** ((bucket + 0.5 - _ZERO) / _STEPS))
