"""Durations counted in buckets: bounded memory, percentiles within 10 %.

A bucket is up to a fifth wide; those between the shortest and the longest duration are
stored. Their edges include those of :data:`poolwatch.model.BUCKETS`, so that metrics
have exact counts. Not thread-safe: the caller must serialize access.
"""

from __future__ import annotations

from array import array
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

    __slots__ = ("count", "counts", "first", "longest", "total")

    def __init__(self) -> None:
        self.first = 0
        """Number of the bucket that ``counts`` begins with."""
        self.counts = array("L")
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
        start, stop = 0, len(ordered)
        last = len(_EDGES) - 1
        while start < stop:
            number = min(bisect_left(_EDGES, ordered[start]), last)
            end = stop
            if number < last:
                end = bisect_right(ordered, _EDGES[number], start + 1)
            self.add_to(number, end - start)
            start = end
        self.count += stop
        self.total += sum(samples)
        self.longest = max(self.longest, ordered[-1])

    def add_to(self, number: int, count: int) -> None:
        """Add to the count of one bucket."""
        counts = self.counts
        if not counts:
            self.first = number
        if number < self.first:
            counts[:0] = array("L", bytes(counts.itemsize * (self.first - number)))
            self.first = number
        at = number - self.first
        if at >= len(counts):
            counts.frombytes(bytes(counts.itemsize * (at + 1 - len(counts))))
        counts[at] += count

    def percentile(self, share: float) -> float | None:
        """The duration that a ``share`` (0 to 1) of all samples does not exceed."""
        if not self.count:
            return None
        rank = share * self.count
        seen = 0
        for bucket, count in enumerate(self.counts, self.first):
            seen += count
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
        ends = [max(0, bound + 1 - self.first) for bound in _BOUNDS]
        return tuple([sum(self.counts[:end]) for end in ends])


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """Return one histogram of the samples of all."""
    total = Histogram()
    for histogram in histograms:
        for number, count in enumerate(histogram.counts, histogram.first):
            total.add_to(number, count)
        total.count += histogram.count
        total.total += histogram.total
        total.longest = max(total.longest, histogram.longest)
    return total


def _middle(bucket: int) -> float:
    below = _EDGES[bucket - 1] if bucket else _EDGES[0] / 2
    return float((below * _EDGES[bucket]) ** 0.5)
