"""Feeds OpenTelemetry from the ledger; the only module that imports its API.

Nothing happens at a checkout. When a reader of the application's MeterProvider
collects, it calls back, and the figures are read from the ledger.
"""

from __future__ import annotations

import os
import sys
import threading
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from functools import partial
from time import monotonic

from opentelemetry import metrics, trace
from opentelemetry.context import Context

from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.ledger import Ledger
from poolwatch.ledger.pool import PoolLedger
from poolwatch.model import BUCKETS, Distribution, PoolStats
from poolwatch.protocol.pool_metrics import INSTRUMENTS, POOL_NAME
from poolwatch.runtime.guard import log
from poolwatch.text.naming import PoolNames
from poolwatch.version import VERSION

_MAX_PARTED = 1024
"""Pools that came to their end since the last collection, whose figures are kept."""
_LOWEST = (0.0, *BUCKETS)
"""Lower bounds of the buckets; the bound itself belongs to the bucket before."""
_INSIDE = 1e-9
"""The least share of a bucket's width that a duration lies above its lower bound."""
_SHARE_OF_TIME = 0.8
"""Share of a collection's time that may go by with recording: 6 µs a duration."""
_SLICE = 500
"""Durations that are recorded between two looks at the clock."""
_LONG_WAIT_S = 0.001
"""Waits that are longer become events."""
_NO_CONTEXT = Context()
"""No span: a duration is recorded long after it was measured."""
_COUNTERS = {each.name for each in INSTRUMENTS if each.kind == "counter"}

Series = tuple[str, tuple[tuple[str, str], ...]]
"""An instrument and the attributes of a pool."""


class Recorded:
    """What a histogram of OpenTelemetry has been given of one distribution."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0
        self._max = 0.0

    def add(self, truth: Distribution) -> list[tuple[float, int]]:
        """Return durations, and how often to record each, so that it has the truth.

        A histogram takes single durations, but the ledger only has their distribution.
        These are others: count, sum, maximum and the count of each bucket are the same.
        """
        counts = truth.in_buckets
        if counts is None or truth.max is None:
            return []
        # a hold that ended during the reading may be missing in it, but not in the next
        new = [max(0, a - b) for a, b in zip(counts, self._counts, strict=True)]
        self._counts = list(map(max, counts, self._counts))
        missing = truth.sum - self._sum
        found: list[tuple[float, int]] = []
        top = bisect_left(BUCKETS, truth.max)
        if truth.max > self._max and new[top]:
            self._max = truth.max
            new[top] -= 1
            found.append((truth.max, 1))
            missing -= truth.max
        found += _durations(new, missing, truth.max)
        self._sum += sum(duration * count for duration, count in found)
        return found


def _durations(
    counts: Sequence[int], total: float, longest: float
) -> list[tuple[float, int]]:
    """One duration for each bucket, so that all together last ``total`` seconds.

    All are at the same share of the width of their buckets.
    """
    buckets = [
        (lowest, min(highest, longest), count)
        for lowest, highest, count in zip(
            _LOWEST, (*BUCKETS, longest), counts, strict=True
        )
        if count
    ]
    room = sum((highest - lowest) * count for lowest, highest, count in buckets)
    spare = total - sum(lowest * count for lowest, _, count in buckets)
    share = min(1.0, max(_INSIDE, spare / room)) if room > 0 else 1.0
    return [
        (min(highest, lowest + share * (highest - lowest)), count)
        for lowest, highest, count in buckets
    ]


class PoolMetrics:
    """The nine instruments on one MeterProvider; an observer of the ledger.

    A collection calls back the observable instruments, one after the other. The first
    of them reads the ledger for all, and records the new durations: the histograms are
    collected last, and so have them in the same collection.
    """

    def __init__(
        self, provider: metrics.MeterProvider, ledger: Ledger, *, is_global: bool
    ) -> None:
        self.provider = provider
        self.is_global = is_global
        self.active = True
        """False after uninstrument(): an instrument cannot be taken back."""
        self._ledger = ledger
        self._failed = False
        self._restart()
        meter = provider.get_meter("poolwatch", VERSION)
        self._histograms = {
            each.name: meter.create_histogram(
                each.name,
                each.unit,
                each.description,
                explicit_bucket_boundaries_advisory=BUCKETS,
            )
            for each in INSTRUMENTS
            if each.kind == "histogram"
        }
        create = {
            "counter": meter.create_observable_counter,
            "updowncounter": meter.create_observable_up_down_counter,
        }
        for each in INSTRUMENTS:
            if each.kind != "histogram":
                observe = partial(self._observe, each.name)
                create[each.kind](each.name, [observe], each.unit, each.description)

    def _restart(self) -> None:
        """Begin anew, as the ledger does in a forked child."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._names = PoolNames()
        self._parted: deque[PoolStats] = deque(maxlen=_MAX_PARTED)
        """The last figures of pools that are no more."""
        self._recorded: dict[str, dict[str, Recorded]] = {}
        """By pool id, by instrument."""
        self._durations: deque[tuple[Series, float, int]] = deque()
        """Durations that are yet to be recorded, and how often."""
        self._former: defaultdict[Series, int] = defaultdict(int)
        """Counters of pools that are no more."""
        self._values: dict[str, list[metrics.Observation]] = {}
        """Observations that are yet to be handed over, by instrument."""

    def parted(self, pool: PoolLedger) -> None:
        """Keep the last figures of a pool; may run in a garbage collection."""
        try:
            if self.active and not sys.is_finalizing():
                self._parted.append(pool.stats(0, 0))
        except Exception:  # noqa: BLE001 - no error may reach the application
            self._log_once()

    def _observe(
        self, instrument: str, options: metrics.CallbackOptions
    ) -> Iterable[metrics.Observation]:
        if not self.active:
            return ()
        deadline = monotonic() + _SHARE_OF_TIME * options.timeout_millis / 1000
        try:
            if self._pid != os.getpid():
                self._restart()
            self._record(deadline)  # what the last collection has left
            with self._lock:
                if instrument not in self._values:
                    self._read()
                values = self._values.pop(instrument, ())
            self._record(deadline)
        except Exception:  # noqa: BLE001 - no error may reach the application
            self._log_once()
            return ()
        return values

    def _record(self, deadline: float) -> None:
        """Record the new durations; what is left at the deadline comes next time."""
        while self._durations and monotonic() < deadline:
            (name, attributes), duration, count = self._durations.popleft()
            if count > _SLICE:
                left = (name, attributes), duration, count - _SLICE
                self._durations.appendleft(left)
            record, named = self._histograms[name].record, dict(attributes)
            for _ in range(min(count, _SLICE)):
                record(duration, named, _NO_CONTEXT)

    def _log_once(self) -> None:
        if not self._failed:
            self._failed = True
            log().exception("poolwatch could not read the metrics of the pools")

    def _read(self) -> None:
        """Read the ledger for one collection."""
        keeps_up = not self._durations
        totals: defaultdict[Series, int] = defaultdict(int)
        for _ in range(len(self._parted)):
            pool = self._parted.popleft()
            self._take(pool, totals)
            self._names.forget(pool.id)
            self._recorded.pop(pool.id, None)
        for series, value in totals.items():
            if series[0] in _COUNTERS and value:
                self._former[series] += value
        totals = self._former.copy()
        for ledger in list(self._ledger.pools.values()):
            try:
                self._take(_figures(ledger), totals, durations=keeps_up)
            except Exception:  # noqa: BLE001 - the other pools have their metrics
                self._log_once()
        self._values = {each.name: [] for each in INSTRUMENTS}
        for (name, attributes), value in totals.items():
            self._values[name].append(metrics.Observation(value, dict(attributes)))

    def _take(
        self,
        pool: PoolStats,
        totals: defaultdict[Series, int],
        *,
        durations: bool = True,
    ) -> None:
        name = self._names.of(pool)
        recorded = self._recorded.setdefault(pool.id, defaultdict(Recorded))
        for instrument in INSTRUMENTS:
            for more, value in instrument.points(pool):
                series = instrument.name, ((POOL_NAME, name), *more.items())
                if not isinstance(value, Distribution):
                    totals[series] += value
                elif durations:
                    new = recorded[instrument.name].add(value)
                    self._durations += [(series, *each) for each in new]


def _figures(pool: PoolLedger) -> PoolStats:
    """The figures of a pool, without a search for leaks."""
    holds, waits = pool.open_holds(), pool.open_waits(monotonic())
    return pool.stats(len(holds), len(waits))


_exports: list[PoolMetrics] = []


def export(ledger: Ledger, provider: metrics.MeterProvider | None) -> None:
    """Feed a provider, once; raises TypeError for something else.

    The global provider may be a stand-in at first, whose instruments become those of
    the real one.
    """
    current = metrics.get_meter_provider()
    if provider is None:
        provider = current
    if not isinstance(provider, metrics.MeterProvider):
        raise TypeError(
            f"meter_provider must be a MeterProvider of OpenTelemetry, not {provider!r}"
        )
    for each in _exports:
        if each.provider is provider or (each.is_global and provider is current):
            each.active = True
            break
    else:
        _exports.append(PoolMetrics(provider, ledger, is_global=provider is current))
        ledger.observers.append(_exports[-1])


def stop_exports() -> None:
    """Export nothing any more, until the next call of export()."""
    for each in _exports:
        each.active = False


# -- waits as events of spans ----------------------------------------------------------


class WaitEvents:
    """An observer: a long wait of a pool with ``trace_waits`` becomes an event."""

    def checked_out(self, pool: PoolLedger, hold: Checkout) -> None:
        """Add the wait of this hold to the current span."""
        waited = hold.checked_out_at - hold.requested_at
        if waited <= _LONG_WAIT_S or not pool.setup.trace_waits:
            return
        try:
            span = trace.get_current_span()
            if span.is_recording():
                lag = _loop_lag(pool, hold)
                attributes = {} if lag is None else {"poolwatch.loop_lag_s": lag}
                span.add_event(
                    "db.client.connection.wait",
                    {POOL_NAME: pool.name, "poolwatch.waited_s": waited, **attributes},
                )
        except Exception:  # noqa: BLE001 - no error may reach the application
            log().debug("a wait could not be traced", exc_info=True)


def _loop_lag(pool: PoolLedger, hold: Checkout) -> float | None:
    """Seconds of a task's wait after its connection had come back.

    In these the event loop was busy with others. None for a thread, and where the pool
    or a new connection took some of the time.
    """
    facts = hold.facts
    if hold.task is None or facts is None or not pool.setup.hands_over:
        return None
    returned_at = facts.last_use[-1] if facts.last_use else 0.0
    if returned_at < hold.requested_at:
        return None
    return float(hold.checked_out_at - returned_at)
