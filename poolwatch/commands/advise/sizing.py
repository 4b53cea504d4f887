"""The smallest pool that keeps waits within a target: by replay, and by theory.

Requests are pairs (requested, held) in seconds, in the order they were made.

Replay: first come, first served. Each request gets the connection that is free first,
and holds it as long as it did in the recording. (In reality a caller that waits longer
makes its next request later. The replay keeps the recorded times, so a small pool may
look worse than it is, never better.)

Theory: M/M/c, corrected for variability. Erlang's C formula gives the probability of
waiting for Poisson arrivals; the tail of the wait is exponential. Allen and Cunneen's
factor (half the sum of the squared coefficients of variation of the interarrival
times and of the hold times) scales it for other distributions. Source: A. O. Allen,
Probability, Statistics, and Queueing Theory, 2nd ed., 1990, section 5.3.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from itertools import pairwise

Requests = Sequence[tuple[float, float]]

_MAX_SIZE = 10_000
_MEMORYLESS = 0.6, 1.5
"""Range of the squared coefficient of variation (SCV) of 200 exponential samples."""


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
    for requested, held in requests:
        begin = max(requested, free[0])
        heapq.heapreplace(free, begin + held)
        waited.append(begin - requested)
    return waited


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of all samples do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


# -- by theory ---------------------------------------------------------------------


def smallest_by_theory(
    rate: float, held_s: float, variability: float, target_s: float
) -> int | None:
    """Return the smallest pool whose 99 % wait meets the target; None above 10,000."""
    for size in range(max(1, math.ceil(rate * held_s)), _MAX_SIZE):
        if wait_percentile(size, rate, held_s, variability) <= target_s:
            return size
    return None


def wait_percentile(size: int, rate: float, held_s: float, variability: float) -> float:
    """Return the 99th percentile of the wait in seconds; infinite under overload.

    ``rate`` is requests per second, ``held_s`` the mean hold time; ``variability`` is 1
    for M/M/c.
    """
    load = rate * held_s
    if load >= size:
        return math.inf
    probability = erlang_c(size, load)
    if probability <= 0.01:
        return 0.0
    return math.log(probability / 0.01) * variability * held_s / (size - load)


def erlang_c(size: int, load: float) -> float:
    """Return the probability of waiting; ``load`` is the offered load, < ``size``."""
    blocked = 1.0
    for servers in range(1, size + 1):  # recursive Erlang B avoids factorials
        blocked = load * blocked / (servers + load * blocked)
    return blocked / (1.0 - (load / size) * (1.0 - blocked))


def is_memoryless(requests: Requests) -> bool:
    """Whether interarrival and hold times look exponential, as in M/M/c."""
    low, high = _MEMORYLESS
    return all(low <= scv <= high for scv in _scvs(requests))


def variability_factor(requests: Requests) -> float:
    """Return Allen and Cunneen's factor; 1 for M/M/c."""
    return sum(_scvs(requests)) / 2


def _scvs(requests: Requests) -> tuple[float, float]:
    """Return the SCV of the interarrival times and of the hold times."""
    intervals = [after - before for (before, _), (after, _) in pairwise(requests)]
    return _scv(intervals), _scv([held for _, held in requests])


def _scv(samples: Sequence[float]) -> float:
    if not samples:
        return 1.0
    mean = sum(samples) / len(samples)
    if mean <= 0:
        return 0.0
    return sum((each - mean) ** 2 for each in samples) / len(samples) / mean**2
