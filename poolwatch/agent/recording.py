"""Records every request of every pool for some seconds, when a viewer requests it.

There is no cost at other times.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict

from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.ledger import Ledger
from poolwatch.ledger.pool import PoolLedger
from poolwatch.model import Frame
from poolwatch.protocol.records import Request, Trace

MAX_SECONDS = 600.0
MAX_REQUESTS = 200_000
"""Limit per pool; later requests are left out."""


class _Recorder:
    """A ledger observer, see :mod:`poolwatch.ledger.observers`."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.ended_holds: dict[str, list[tuple[Checkout, float]]] = defaultdict(list)

    def ended(
        self,
        pool: PoolLedger,
        hold: Checkout,
        now: float,
        collected: bool,  # noqa: ARG002 - part of the observer interface
    ) -> None:
        """Record a hold that was requested during the recording."""
        ended = self.ended_holds[pool.id]
        if hold.requested_at >= self.started and len(ended) < MAX_REQUESTS:
            ended.append((hold, now))


def record(ledger: Ledger, seconds: float, stop: threading.Event) -> list[Trace]:
    """Record for ``seconds``, or until ``stop`` is set."""
    recorder = _Recorder()
    before = {pool.id: (pool.connects, pool.timeouts) for pool in ledger.pools.values()}
    ledger.observers.append(recorder)
    try:
        stop.wait(min(seconds, MAX_SECONDS))
    finally:
        ledger.observers.remove(recorder)
    now = time.monotonic()
    return [
        _trace(pool, recorder, now, before.get(pool.id, (0, 0)))
        for pool in list(ledger.pools.values())
    ]


def _trace(
    pool: PoolLedger, recorder: _Recorder, now: float, before: tuple[int, int]
) -> Trace:
    begun = recorder.started
    open_holds = [hold for hold in pool.open_holds() if hold.requested_at >= begun]
    holds = [*recorder.ended_holds[pool.id], *((hold, now) for hold in open_holds)]
    holds.sort(key=lambda pair: pair[0].requested_at)
    sites: dict[Frame, int] = {}
    requests = []
    for hold, end in holds:
        site = hold.stack.site()
        at = -1 if site is None else sites.setdefault(site, len(sites))
        requests.append(
            Request(
                hold.requested_at - begun,
                end - hold.checked_out_at,
                hold.checked_out_at - hold.requested_at,
                at,
            )
        )
    depth = max((each.depth for each in pool.nestings.seen.values()), default=1)
    outer = {each.outer.site() for each in pool.nestings.seen.values()}
    spans = [(h.checked_out_at, end) for h, end in holds if h.stack.site() in outer]
    waits = pool.open_waits(now)
    return Trace(
        pool=pool.stats(len(pool.open_holds()), len(waits)),
        seconds=now - begun,
        requests=tuple(requests),
        sites=tuple(sites),
        timeouts=pool.timeouts - before[1],
        connects=pool.connects - before[0],
        depth=depth,
        nesting=most_at_once(spans),
    )


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """Return the maximum number of time spans that overlap."""
    changes = sorted(
        [(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans]
    )
    open_spans = most = 0
    for _, change in changes:
        open_spans += change
        most = max(most, open_spans)
    return most
