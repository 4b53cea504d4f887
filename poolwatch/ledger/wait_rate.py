"""Seconds waited per second: how much a pool costs its application right now."""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0


class WaitRate:
    """Keeps what had been waited in all, at moments of the last minute."""

    def __init__(self, begun: float) -> None:
        self._marks = deque([(begun, 0.0)], maxlen=2 + int(WINDOW_S))

    def mark(self, now: float, waited: float) -> None:
        """Note how many seconds all requests have waited in all, until ``now``."""
        marks = self._marks
        if now - marks[-1][0] < 1.0 and len(marks) > 1:
            return
        marks.append((now, waited))
        while len(marks) > 2 and now - marks[1][0] >= WINDOW_S:
            marks.popleft()

    def per_second(self, now: float, waited: float) -> float:
        """Seconds waited per second since the oldest moment noted."""
        then, before = self._marks[0]
        return max(0.0, waited - before) / max(now - then, 1e-3)
