"""The recorded requests once more, with another number of connections.

First come, first served: each request takes the connection that is free first, and
holds it for as long as it did. (Who had to wait longer would have come back later: that
the arrivals stay where they were makes a small pool look worse, never better.)
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence


def waits(requests: Sequence[tuple[float, float]], size: int) -> list[float]:
    """Seconds that each request waits; requests are (asked, held), in order."""
    free = [0.0] * size
    waited = []
    for asked, held in requests:
        begin = max(asked, free[0])
        heapq.heapreplace(free, begin + held)
        waited.append(begin - asked)
    return waited


def percentile(samples: Sequence[float], share: float) -> float:
    """The value that ``share`` of all samples do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def smallest(
    requests: Sequence[tuple[float, float]], target_s: float, share: float = 0.99
) -> int:
    """The smallest pool in which ``share`` of all requests wait no longer.

    More connections never make anybody wait longer, so the search halves.
    """
    low, high = 1, 1
    while percentile(waits(requests, high), share) > target_s:
        low, high = high + 1, high * 2
    while low < high:
        middle = (low + high) // 2
        if percentile(waits(requests, middle), share) > target_s:
            low = middle + 1
        else:
            high = middle
    return low
