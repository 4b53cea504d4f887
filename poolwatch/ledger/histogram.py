"""Durations counted in buckets: bounded memory, percentiles within 10 %.

A bucket is up to a fifth wide, and buckets are stored sparsely. Their edges include
those of :data:`poolwatch.model.BUCKETS`, so that metrics have exact counts. Not
thread-safe: the caller must serialize access.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from poolwatch.model import BUCKETS

if TYPE_CHECKING:
    from poolwatch.model import Distribution

_EDGES = [
    edge
    for decade in range(-6, 7)
    for edge in (
        *(float(f"1e{decade}") * 5 ** (step / 9) for step in range(9)),
        *(float(f"5e{decade}") * 2 ** (step / 4) for step in range(4)),
    )
]
"""Upper edges of the buckets, from a microsecond to 58 days, the edges included."""
_BOUNDS = [_EDGES.index(bound) for bound in BUCKETS]


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

        Sorting puts the durations of one bucket next to each other, so it is looked up
        once per bucket instead of once per duration.
        """
        if not samples:
            return
        ordered = sorted(samples)
        buckets = self.buckets
        start, stop = 0, len(ordered)
        last = len(_EDGES) - 1
        while start < stop:
            number = min(bisect_left(_EDGES, ordered[start]), last)
            end = stop
            if number < last:
                end = bisect_right(ordered, _EDGES[number], start + 1)
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

    def distribution(self, *, buckets: bool = False) -> Distribution:
        """Return count, sum, maximum and percentiles; on demand also ``up_to``."""
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
            up_to=self._up_to() if buckets else (),
        )

    def _up_to(self) -> tuple[int, ...]:
        counts = self.buckets.items()
        return tuple([sum(n for b, n in counts if b <= bound) for bound in _BOUNDS])


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


def _middle(bucket: int) -> float:
    below = _EDGES[bucket - 1] if bucket else _EDGES[0] / 2
    return float((below * _EDGES[bucket]) ** 0.5)
