"""Percentiles of a histogram are close to the truth."""

from __future__ import annotations

import random

import pytest

from poolwatch.ledger.histogram import Histogram, merged
from poolwatch.model import BUCKETS


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e4])
def test_percentiles(scale):
    """p50, p95 and p99 are within 10 % of the truth; count, sum and max are exact."""
    chance = random.Random(3)
    samples = [scale * chance.lognormvariate(2, 1) for _ in range(5000)]
    histogram = Histogram()
    for at in range(0, 5000, 50):
        histogram.add(samples[at : at + 50])
    seen = histogram.distribution()
    assert (seen.count, seen.max) == (5000, max(samples))
    assert seen.sum == pytest.approx(sum(samples))
    samples.sort()
    for share, value in ((0.5, seen.p50), (0.95, seen.p95), (0.99, seen.p99)):
        truth = samples[int(share * 5000) - 1]
        assert value == pytest.approx(truth, rel=0.1, abs=1.1e-6)


def test_extreme_samples():
    """Nothing, zero and a century: all are counted."""
    assert Histogram().distribution().p50 is None
    histogram = Histogram()
    histogram.add([0.0, 0.0, 3e9])
    both = merged([histogram, Histogram(), histogram]).distribution()
    assert (both.count, both.max) == (6, 3e9)
    assert both.p50 < 1e-6


def test_counts_up_to_the_bounds_of_metrics_are_exact():
    """A duration that is equal to a bound counts as within it."""
    chance = random.Random(5)
    samples = [10 ** chance.uniform(-4, 2) for _ in range(2000)] + list(BUCKETS)
    histogram = Histogram()
    for at in range(0, len(samples), 60):
        histogram.add(samples[at : at + 60])
    expected = [sum(each <= bound for each in samples) for bound in BUCKETS]
    assert list(histogram.distribution(buckets=True).up_to) == expected
