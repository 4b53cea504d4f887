"""Compares the pool's own count of its slots with the holds.

A slot that the pool counts as checked out, but that has no holder, is lost: it is
neither a hold, nor on its way (being opened, handed over, returned or closed), nor was
it checked out before the pool was instrumented.

The figures are read one after the other, without the pool's lock, and may not fit
together. So they change a result only if two comparisons, some time apart, agree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import ConnectionFacts, Gauges, Session
    from poolwatch.stacks.capture import CapturedStack

_APART_S = 0.25
"""Minimum time between two comparisons."""
_LEFT_BEHIND_S = 3.0
"""Time for a pool to take back the connection of a request that failed."""
_MAX_FAILED = 32
_MAX_LOST = 32
"""Maximum number of lost slots whose time is known."""


class Failed(NamedTuple):
    """A request or a return that ended with an exception, other than a timeout."""

    at: float
    """``time.monotonic()``"""
    stack: CapturedStack
    """The stack of the request."""
    error: str | None
    """Class of the exception; None if unknown: a return that was not completed."""


class LostSlot(NamedTuple):
    """A slot that is lost, and what failed at the time."""

    since: float
    """``time.monotonic()`` of the first comparison that missed it."""
    failed: tuple[Failed, ...]
    """All that failed since the comparison before: one of these may be the cause."""


class Slots:
    """The slots of one pool."""

    def __init__(self) -> None:
        self.failed: deque[Failed] = deque(maxlen=_MAX_FAILED)
        """The latest failures."""
        self.stranded: deque[tuple[Failed, ConnectionFacts]] = deque(maxlen=_MAX_FAILED)
        """Connections that failed requests have opened, and that the pool has not."""
        self.forget()

    def forget(self) -> None:
        """Start over: the pool is instrumented, made anew, or inherited by a fork."""
        self.lost = 0
        """Slots that the pool will never lend again."""
        self.dropped = 0
        """Lost slots whose connection the holder has dropped."""
        self.before = 0
        """Slots that have been checked out since before the start."""
        self.missing: list[LostSlot] = []
        """The lost slots that were found by the pool's count alone."""
        self._last: tuple[float, int, int] | None = None
        """The last comparison: its time, the fewest and the most slots missing."""
        self._at_most = [monotonic()] * _MAX_LOST
        """By number: when no more slots than that were missing, for the last time."""
        self.failed.clear()
        self.stranded.clear()

    def drop(self) -> None:
        """Count a slot that is lost because its connection was dropped."""
        self.dropped += 1
        self.lost = self.dropped + len(self.missing)

    def compare(self, now: float, gauges: Gauges) -> None:
        """Compare the pool's count with the holds; the first time, begin with it."""
        if gauges.unheld is None:
            return
        if self._last is None:
            self.before = max(0, gauges.unheld[0] - self.dropped)
        elif now - self._last[0] < _APART_S:
            return
        if gauges.before is not None:
            self.before, known = gauges.before, self.dropped
        else:
            known = self.before + self.dropped
        least, most = (unheld - known for unheld in gauges.unheld)
        last_at, last_least, last_most = self._last or (now, least, most)
        came_back = min(self.before, max(0, -max(most, last_most)))
        if came_back and gauges.before is None:
            self.before -= came_back
            least, most = least + came_back, most + came_back
        for number in range(max(0, most), _MAX_LOST):
            self._at_most[number] = now
        del self.missing[max(0, most, last_most) :]
        while len(self.missing) < min(least, last_least, _MAX_LOST):
            self.missing.append(self._lost(last_at))
        self.lost = self.dropped + len(self.missing)
        self._last = now, least, most

    def left_behind(self, now: float, known: Collection[Session]) -> set[Session]:
        """Sessions of connections that failed requests had, some time ago.

        If the pool still counts such a connection as out and no hold has it, no code
        will return it, although the traceback of the exception may keep it alive.
        ``known``: sessions that are idle or held, so that they have come back.
        """
        for each in list(self.stranded):
            if each[1].session in known:
                with suppress(ValueError):
                    self.stranded.remove(each)
        return {
            facts.session
            for failed, facts in list(self.stranded)
            if now - failed.at > _LEFT_BEHIND_S
        }

    def unrecorded(self, gauges: Gauges) -> int:
        """Slots that are out by checkouts without a hold, and that are not lost."""
        before = self.before if gauges.before is None else gauges.before
        if gauges.unheld is not None and gauges.before is None:
            before = min(before, max(0, gauges.unheld[1]))  # some may have come back
        return before + gauges.unseen

    def _lost(self, since: float) -> LostSlot:
        """The next lost slot, found missing at ``since``."""
        there = self._at_most[len(self.missing)]
        failed = [each for each in list(self.failed) if there <= each.at <= since]
        return LostSlot(since, tuple(failed))
