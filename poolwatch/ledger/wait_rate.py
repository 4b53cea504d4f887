"""Seconds waited for a connection, per second of the last minute."""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0


class WaitRate:
    """Samples of the total seconds waited, over the last minute."""

    def __init__(self, begun: float) -> None:
        self._marks = deque([(begun, 0.0)], maxlen=2 + int(WINDOW_S))

    def mark(self, now: float, waited: float) -> None:
        """Record the total seconds that all requests have waited until ``now``."""
        marks = self._marks
        if now - marks[-1][0] < 1.0 and len(marks) > 1:
            return
        marks.append((now, waited))
        while len(marks) > 2 and now - marks[1][0] >= WINDOW_S:
            marks.popleft()

    def per_second(self, now: float, waited: float) -> float:
        """Seconds waited per second since the oldest sample."""
        then, waited_then = self._marks[0]
        return max(0.0, waited - waited_then) / max(now - then, 1e-3)
