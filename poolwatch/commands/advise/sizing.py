"""The smallest pool that keeps waits within a target: by replay, and by theory.

Requests are pairs (asked, held) in seconds, in the order they were made.

Replay: first come, first served. Each request takes the connection that is free first,
and holds it as long as it did in the recording. (In reality a caller that waits longer
makes its next request later. The replay keeps the recorded times, so a small pool may
look worse than it is, never better.)

Theory: M/M/c, corrected for uneven load. Erlang's C formula gives the probability of
waiting for Poisson arrivals; the tail of the wait is exponential. Allen and Cunneen's
factor (half the sum of the squared variations of arrivals and of holds) stretches it
for other loads. Source: A. O. Allen, Probability, Statistics, and Queueing Theory, 2nd
ed., 1990, section 5.3.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from itertools import pairwise

Requests = Sequence[tuple[float, float]]

_LARGEST = 10_000
_ABOUT_ONE = 0.6, 1.5
"""Range of the squared variation of 200 exponentially distributed samples."""


# -- by replay ---------------------------------------------------------------------


def smallest_by_replay(requests: Requests, target_s: float, share: float = 0.99) -> int:
    """Return the smallest pool in which ``share`` of all requests wait <= ``target_s``.

    More connections never make a request wait longer, hence the binary search.
    """
    low, high = 1, 1
    while percentile(replayed_waits(requests, high), share) > target_s:
        low, high = high + 1, high * 2
    while low < high:
        middle = (low + high) // 2
        if percentile(replayed_waits(requests, middle), share) > target_s:
            low = middle + 1
        else:
            high = middle
    return low


def replayed_waits(requests: Requests, size: int) -> list[float]:
    """Return the seconds that each request would wait in a pool of ``size``."""
    free = [0.0] * size
    waited = []
    for asked, held in requests:
        begin = max(asked, free[0])
        heapq.heapreplace(free, begin + held)
        waited.append(begin - asked)
    return waited


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of all samples do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


# -- by theory ---------------------------------------------------------------------


def smallest_by_theory(
    rate: float, held_s: float, uneven: float, target_s: float
) -> int | None:
    """Return the smallest pool whose 99 % wait meets the target; None above 10,000."""
    for size in range(max(1, math.ceil(rate * held_s)), _LARGEST):
        if wait_percentile(size, rate, held_s, uneven) <= target_s:
            return size
    return None


def wait_percentile(size: int, rate: float, held_s: float, uneven: float) -> float:
    """Return the 99th percentile of the wait in seconds; infinite under overload.

    ``rate`` is requests per second, ``held_s`` the mean hold, ``uneven`` 1 for M/M/c.
    """
    load = rate * held_s
    if load >= size:
        return math.inf
    probability = erlang_c(size, load)
    if probability <= 0.01:
        return 0.0
    return math.log(probability / 0.01) * uneven * held_s / (size - load)


def erlang_c(size: int, load: float) -> float:
    """Return the probability of waiting; ``load`` is in connections, below ``size``."""
    blocked = 1.0
    for servers in range(1, size + 1):  # recursive Erlang B avoids factorials
        blocked = load * blocked / (servers + load * blocked)
    return blocked / (1.0 - (load / size) * (1.0 - blocked))


def is_memoryless(requests: Requests) -> bool:
    """Whether gaps and holds look exponentially distributed, as in M/M/c."""
    low, high = _ABOUT_ONE
    return all(low <= variation <= high for variation in _variations(requests))


def unevenness(requests: Requests) -> float:
    """Return half the sum of the squared variations of gaps and holds; M/M/c: 1."""
    return sum(_variations(requests)) / 2


def _variations(requests: Requests) -> tuple[float, float]:
    """Return the squared variations of the gaps between requests, and of the holds."""
    gaps = [after - before for (before, _), (after, _) in pairwise(requests)]
    return _squared_variation(gaps), _squared_variation([held for _, held in requests])


def _squared_variation(samples: Sequence[float]) -> float:
    if not samples:
        return 1.0
    mean = sum(samples) / len(samples)
    if mean <= 0:
        return 0.0
    return sum((each - mean) ** 2 for each in samples) / len(samples) / mean**2
