"""Records the requests of every pool for some seconds, when a viewer asks for it.

Nothing is recorded at other times, so it costs nothing then.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict

from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.ledger import Ledger
from poolwatch.ledger.pool import PoolLedger
from poolwatch.model import Frame
from poolwatch.protocol.trace import Request, Trace

MOST_S = 600.0
MOST_REQUESTS = 200_000
"""Per pool; then that recording ends early."""


class _Recorder:
    """Observes the ledger: see :mod:`poolwatch.ledger.observers`."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.ended_holds: dict[str, list[tuple[Checkout, float]]] = defaultdict(list)

    def ended(
        self,
        book: PoolLedger,
        hold: Checkout,
        now: float,
        collected: bool,  # noqa: ARG002 - as it is called
    ) -> None:
        """Keep it, if it was asked for during the recording."""
        mine = self.ended_holds[book.id]
        if hold.asked >= self.begun and len(mine) < MOST_REQUESTS:
            mine.append((hold, now))


def record(ledger: Ledger, seconds: float, stop: threading.Event) -> list[Trace]:
    """Record for so many seconds, or until ``stop`` is set."""
    recorder = _Recorder()
    before = {book.id: (book.connects, book.timeouts) for book in ledger.books.values()}
    ledger.observers.append(recorder)
    try:
        stop.wait(min(seconds, MOST_S))
    finally:
        ledger.observers.remove(recorder)
    now = time.monotonic()
    return [
        _trace(book, recorder, now, before.get(book.id, (0, 0)))
        for book in list(ledger.books.values())
    ]


def _trace(
    book: PoolLedger, recorder: _Recorder, now: float, before: tuple[int, int]
) -> Trace:
    begun = recorder.begun
    out = [hold for hold in book.open_holds() if hold.asked >= begun]
    holds = [*recorder.ended_holds[book.id], *((hold, now) for hold in out)]
    holds.sort(key=lambda pair: pair[0].asked)
    sites: dict[Frame, int] = {}
    requests = []
    for hold, end in holds:
        site = hold.path.site()
        at = -1 if site is None else sites.setdefault(site, len(sites))
        requests.append(
            Request(hold.asked - begun, end - hold.taken, hold.taken - hold.asked, at)
        )
    depth = max((each.depth for each in book.nestings.seen.values()), default=1)
    outer = {each.outer.site() for each in book.nestings.seen.values()}
    spans = [(h.taken, end) for h, end in holds if h.path.site() in outer]
    waits = book.open_waits(now)
    return Trace(
        pool=book.stats(len(book.open_holds()), len(waits)),
        seconds=now - begun,
        requests=tuple(requests),
        sites=tuple(sites),
        timeouts=book.timeouts - before[1],
        connects=book.connects - before[0],
        depth=depth,
        nesting=most_at_once(spans),
    )


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """How many of these spans of time overlap at most."""
    changes = sorted(
        [(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans]
    )
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most
