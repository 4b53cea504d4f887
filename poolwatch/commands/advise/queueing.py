"""What queueing theory says of a pool: M/M/c, corrected for how uneven the load is.

Erlang's C formula gives the probability of waiting for Poisson arrivals; the tail of
the wait is exponential. Allen and Cunneen's factor (half the sum of the squared
variations of arrivals and of holds) stretches it for other loads. Source: A. O. Allen,
Probability, Statistics, and Queueing Theory, 2nd ed., 1990, section 5.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

_LARGEST = 10_000
_ABOUT_ONE = 0.6, 1.5
"""Squared variations of what may be exponential; 200 samples scatter that far."""


def erlang_c(size: int, load: float) -> float:
    """The probability that a request must wait; ``load`` in connections, < size."""
    blocked = 1.0
    for servers in range(1, size + 1):  # Erlang B, step by step: no factorials
        blocked = load * blocked / (servers + load * blocked)
    return blocked / (1.0 - (load / size) * (1.0 - blocked))


def wait_percentile(size: int, rate: float, held_s: float, uneven: float) -> float:
    """The wait that 99 % do not exceed, in seconds; infinite if the load is too much.

    ``rate`` is requests a second, ``held_s`` the mean hold, ``uneven`` 1 for M/M/c.
    """
    load = rate * held_s
    if load >= size:
        return math.inf
    probability = erlang_c(size, load)
    if probability <= 0.01:
        return 0.0
    return math.log(probability / 0.01) * uneven * held_s / (size - load)


def smallest(rate: float, held_s: float, uneven: float, target_s: float) -> int | None:
    """The smallest pool whose 99 % wait is within the target; None beyond reason."""
    for size in range(max(1, math.ceil(rate * held_s)), _LARGEST):
        if wait_percentile(size, rate, held_s, uneven) <= target_s:
            return size
    return None


def is_memoryless(requests: Sequence[tuple[float, float]]) -> bool:
    """Whether gaps and holds vary about as much as exponential ones: near M/M/c."""
    low, high = _ABOUT_ONE
    gaps = [b[0] - a[0] for a, b in pairwise(requests)]
    return all(
        low <= _squared_variation(samples) <= high
        for samples in (gaps, [held for _, held in requests])
    )


def unevenness(requests: Sequence[tuple[float, float]]) -> float:
    """Half the sum of the squared variations of gaps and of holds; 1 for M/M/c."""
    gaps = [b[0] - a[0] for a, b in pairwise(requests)]
    return (_squared_variation(gaps) + _squared_variation([h for _, h in requests])) / 2


def _squared_variation(samples: Sequence[float]) -> float:
    if not samples:
        return 1.0
    mean = sum(samples) / len(samples)
    if mean <= 0:
        return 0.0
    return sum((each - mean) ** 2 for each in samples) / len(samples) / mean**2
