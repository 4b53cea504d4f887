"""The ledger of one pool: open holds and waits, and statistics of ended ones.

The application's threads write it during their own calls, without a lock: single dict
and array operations are atomic, and the durations of an ended hold are only appended to
the statistics of its stack. When enough durations are queued and the fold lock is free,
the thread folds them into histograms. No thread of the application waits for that lock,
so a garbage collection during a fold, which may end holds, cannot deadlock.
"""

from __future__ import annotations

import itertools
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from poolwatch.ledger.checkout import Checkout, ConnectionFacts, Gauges
from poolwatch.ledger.concurrent import ConcurrentUses
from poolwatch.ledger.histogram import Histogram, merged
from poolwatch.ledger.label_stats import LabelStats
from poolwatch.ledger.nesting import InUse, Nestings
from poolwatch.ledger.observers import Observers
from poolwatch.ledger.pool_over_pool import Lending, took_from_another
from poolwatch.ledger.setup import Setup
from poolwatch.ledger.site_stats import BATCH, StackStats
from poolwatch.ledger.site_table import SiteTable
from poolwatch.ledger.slots import Slots
from poolwatch.ledger.wait_causes import MAX_BLAMED, MIN_SHOWN_WAIT_S, WaitCauses
from poolwatch.ledger.wait_rate import WaitRate

if TYPE_CHECKING:
    from poolwatch.ledger.inherited import InheritedCheckouts
    from poolwatch.ledger.pool_origins import UseLevel
    from poolwatch.ledger.site_costs import AllFigures, BySite
    from poolwatch.model import PoolStats
    from poolwatch.stacks.capture import CapturedStack, Pairs

_PATIENCE_S = 0.05
"""How long a viewer waits for a running fold before it reads without the lock."""
_MAX_CLOSED = 32
"""Closed connections that are remembered per pool."""


def _no_check() -> None:
    """Do nothing: the pool has an event for the end of every hold."""


class PoolLedger:
    """Open holds and waits of one pool, and statistics of ended ones."""

    server_connect: Callable[[], Any] | None = None
    """Opens a connection to this pool's PostgreSQL server, outside the pool; None for
    other databases."""
    records_statements = False
    """Whether the statements on its connections are recorded."""
    loaded_attribute: Callable[[Pairs], tuple[str, bool] | None] | None = None
    """Names the mapped attribute whose load made a checkout, if any, and says whether
    it is a relationship."""

    _has_parted = False

    def __init__(
        self,
        pool_id: str,
        *,
        name: str,
        kind: str,
        url: str | None,
        long_after: float,
        gauges: Callable[[], Gauges],
        observers: Observers,
        all_pools: Mapping[str, PoolLedger],
        in_use: InUse,
    ) -> None:
        self.id = pool_id
        self._all_pools = all_pools
        """The ledgers of all pools, this one included."""
        self.observers = observers
        """The observers of all pools."""
        self.nestings = Nestings(in_use)
        self.slots = Slots()
        self.concurrent = ConcurrentUses()
        self.setup = Setup()
        self.name = name
        self.kind = kind
        self.extends: str | None = None
        self.url = url
        self.long_after = long_after
        self.gauges = gauges
        self.shared = False
        """Whether one connection may be checked out several times at once. Then holds
        are keyed by proxy, and a dropped hold may end without an event."""
        self.find_dropped: Callable[[], None] = _no_check
        """Has the adapter find dropped connections, in pools that refer to connections
        that are checked out and so have no event for a drop."""
        self.adopt: Callable[[], None] = _no_check
        """Has the adapter make holds of connections that are out without one, if the
        pool was in use before poolwatch came."""
        self.per_thread = False
        """Whether every thread opens a connection of its own, without a pool: a hold
        takes no connection from any other thread."""
        self.server_view = True
        self.holds: dict[int, Checkout] = {}
        """Open holds. The adapter chooses the key, so that it finds the hold at its
        return."""
        self.detached: dict[int, Checkout] = {}
        """Open holds whose connection was detached from the pool."""
        self.lending = Lending(self.holds, all_pools)
        self.waits: dict[int, Checkout] = {}
        self.connections: dict[int, ConnectionFacts] = {}
        self.inherited: dict[CapturedStack, InheritedCheckouts] = {}
        """Stacks that checked out connections opened before a fork."""
        self.recently_closed: deque[tuple[float, ConnectionFacts]] = deque(
            maxlen=_MAX_CLOSED
        )
        """The latest closed connections: the time, and the facts."""
        self.switched_off: Callable[[], bool] = bool
        self._sites = SiteTable()
        self._stats, self._stats_of = self._sites.by_capture, self._sites.stats_of
        self.labels = LabelStats()
        self._causes = WaitCauses(self.labels)
        self.blamed = self._causes.blamed
        """The waits whose cause is noted, by id."""
        self._start_counting()

    def _start_counting(self) -> None:
        self.begun = time.monotonic()
        self.setup.restart(self.begun)
        self.connects = self.closes = self.timeouts = self.invalidated = 0
        self.gave_up = 0
        """Waits that the application itself ended."""
        self.most_wanted = 0
        """The most connections held and requested at once, while above the capacity."""
        self.leaked = 0
        """Holds that were found leaked or were garbage-collected."""
        self.first_full: list[CapturedStack] | None = None
        """The stacks of the holds when a request first found no free connection."""
        self._create = Histogram()
        self._failed_waits = Histogram()
        self._created = array("d")
        """Seconds of connects not yet folded into ``_create``."""
        self._failed = array("d")
        """Seconds of failed waits not yet folded into ``_failed_waits``."""
        self._folding = threading.Lock()
        self._wait_rate = WaitRate(self.begun)

    def part(self) -> None:
        """Tell the observers, once, that the pool is no more."""
        notify, has_parted = self.observers.parted, self._has_parted
        self._has_parted = True
        if notify is not None and not has_parted:
            notify(self)

    def __del__(self) -> None:
        """Tell the observers, if the pool went in a garbage collection."""
        with suppress(Exception):  # of an __init__ that has failed
            self.part()

    def use_level(self) -> UseLevel:
        """0 if unused, 1 if a connection was opened, 2 if one was checked out."""
        if self.holds or self._stats:
            return 2
        return 1 if self.connects else 0

    # -- written by the adapter, in the application's threads ------------------------

    def end(self, hold: Checkout, now: float, collected: bool) -> None:
        """Record the end of a hold.

        ``holder.hold_count`` is decremented last. If this is interrupted by an
        exception, the caller must decrement it.
        """
        notify = self.observers.ended
        if notify is not None:
            notify(self, hold, now, collected)
        stack = hold.stack
        stats = self._stats.get(stack) or self._stats_of(stack)
        checked_out_at, held = hold.checked_out_at, stats.held
        held.append(now - checked_out_at)
        stats.waited.append(checked_out_at - hold.requested_at)
        usage = hold.usage
        if usage is not None:
            stats.used += not usage.streamed
            stats.in_sql += usage.in_sql
            stats.idle += usage.idle_until(now)
        facts = hold.facts
        if facts is not None:
            facts.last_use = (stack, usage, hold.context, checked_out_at, now)
        if collected:
            stats.collected += 1
            self._leaked(hold, stats)
        if len(held) >= BATCH:
            self._fold(stats)
        if hold.context.labels:
            full = self.labels.ended(hold, now, collected)
            if full:
                self._fold(*full)
        hold.holder.hold_count -= 1

    def end_shared(self, hold: Checkout, now: float, collected: bool) -> None:
        """Record the end of a hold of a shared connection, whatever its key."""
        for key in list(self.holds):
            if self.holds.get(key) is hold and self.holds.pop(key, None) is hold:
                self.end(hold, now, collected)

    def timed_out(self, waited: float) -> None:
        """Count a wait that the pool itself ended, after ``waited`` seconds."""
        self._failed.append(waited)
        self.timeouts += 1

    def given_up(self, waited: float) -> None:
        """Count a wait that the application ended: a cancelled task, an interrupt."""
        self._failed.append(waited)
        self.gave_up += 1

    def requested_another(self, wait: Checkout) -> None:
        """Record a request by a holder that has a connection, of any pool, already."""
        self.nestings.note(wait, self.lending.own())
        self.blamed[id(wait)] = []

    def requested_beyond_capacity(self, wait: Checkout) -> None:
        """Record a request while the pool is at its capacity."""
        self.most_wanted = max(self.most_wanted, len(self.holds) + len(self.waits))
        stacks = self._causes.note(wait, list(self.holds.values()))
        if self.first_full is None:
            self.first_full = stacks

    def waited(self, wait: Checkout, now: float) -> None:
        """Share the time of an ended wait among the holds open at its start."""
        if not self._causes.ended(wait, now, self._stats_of):
            return
        if wait.holder.hold_count:
            for pool in list(self._all_pools.values()):
                pool.holder_waited(wait.requester(), now - wait.requested_at)

    def holder_waited(self, requester: object, seconds: float) -> None:
        """Add to the open holds of ``requester`` its wait for another connection."""
        for hold in itertools.islice(list(self.holds.values()), MAX_BLAMED):
            if hold.requester() == requester:
                self._stats_of(hold.stack).pool_wait += seconds

    def connected(self, connect_s: float, facts: ConnectionFacts) -> None:
        """Count a connection that was opened, and the seconds of the connect."""
        self.connects += 1
        self._created.append(connect_s)
        took_from_another(self, facts, self._all_pools)

    def closed(self, facts: ConnectionFacts | None, now: float) -> None:
        """Count a connection that was closed; its backend may live a little longer."""
        self.closes += 1
        if facts is None:
            return
        facts.closed = True
        if facts.backend_pid is not None:
            self.recently_closed.append((now, facts))

    def found_leaked(self, hold: Checkout) -> None:
        """Count an open hold as leaked, once."""
        self._leaked(hold, self._stats_of(hold.stack))

    def _leaked(self, hold: Checkout, stats: StackStats) -> None:
        if not hold.leaked:
            hold.leaked = True
            self.leaked += 1
            stats.leaked += 1
            for each in self.labels.of(hold.context.labels):
                each.leaked += 1

    def forget(self) -> None:
        """Start over in a forked child: the holds and counts belong to the parent.

        Tables are cleared in place because the hooks refer to them.
        """
        tables = self.holds, self.detached, self.waits, self.blamed, self.inherited
        for table in tables:
            table.clear()
        self._sites.forget()
        self.recently_closed.clear()
        self.labels.forget()
        self.nestings.forget()
        self.slots.forget()
        self.concurrent.forget()
        self._start_counting()  # with a new lock: the parent may have held it

    def _fold(self, *all_stats: StackStats) -> None:
        """Fold the statistics, unless another thread is folding."""
        if self._folding.acquire(blocking=False):
            try:
                self._fold_now(all_stats)
            finally:
                self._folding.release()

    @contextmanager
    def _folded(
        self, all_stats: Iterable[StackStats], patience: float
    ) -> Iterator[None]:
        """Fold; inside, no other thread folds, if the lock was acquired in time."""
        acquired = self._folding.acquire(timeout=patience)
        try:
            if acquired:
                self._fold_now(all_stats)
            yield
        finally:
            if acquired:
                self._folding.release()

    def _fold_now(self, all_stats: Iterable[StackStats]) -> None:
        for stats in all_stats:
            stats.fold()
        for histogram, samples in (
            (self._create, self._created),
            (self._failed_waits, self._failed),
        ):
            ready = len(samples)
            if ready:
                histogram.add(samples[:ready])
                del samples[:ready]

    # -- read by viewers ---------------------------------------------------------------

    def open_holds(self) -> list[Checkout]:
        """Return the open holds, after looking for dropped connections.

        A shared connection may be dropped without an event: its hold ends here.
        """
        self.adopt()
        self.find_dropped()
        if self.shared:
            for hold in list(self.holds.values()):
                if hold.proxy() is None:
                    self.end_shared(hold, time.monotonic(), True)
        return self.recorded_holds()

    def recorded_holds(self) -> list[Checkout]:
        """The open holds as events left them, except those lent to pools over this."""
        holds = [*list(self.holds.values()), *list(self.detached.values())]
        lent = self.lending.lent()
        return [hold for hold in holds if hold not in lent] if lent else holds

    def open_waits(self, now: float) -> list[Checkout]:
        """Requests that have been waiting for some time (``MIN_SHOWN_WAIT_S``)."""
        return [
            wait
            for wait in list(self.waits.values())
            if now - wait.requested_at >= MIN_SHOWN_WAIT_S
        ]

    def mark(self, now: float) -> None:
        """Note the seconds waited so far: see WaitRate."""
        all_stats = self._sites.all()
        self._note_use(self._sites.count(), now)
        ended = sum(each.wait.total + sum(each.waited) for each in all_stats)
        failed = self._failed_waits.total + sum(self._failed)
        self._wait_rate.mark(now, ended + failed + self._waiting(now))

    def _note_use(self, ended: int, now: float) -> None:
        """Note the number of checkouts: ended ones, and all that are open.

        Every reader must count alike, or the pool would seem to be in use. So holds
        that are lent to a pool over this one count, too.
        """
        self.setup.note(ended + len(self.holds) + len(self.detached), now)

    def _waiting(self, now: float) -> float:
        return sum(now - wait.requested_at for wait in list(self.waits.values()))

    def by_site(self) -> BySite:
        """The statistics of each call site."""
        return self._sites.by_site()

    def stats(self, holds: int, waits: int) -> PoolStats:
        """Return the figures of the pool, given the numbers of open holds and waits."""
        from poolwatch.model import Counters, PoolStats  # loaded by the first viewer

        now = time.monotonic()
        holds += len(self.lending)
        all_stats = self._sites.all()
        of_labels = [each for *_, each in self.labels.all()]
        with self._folded([*all_stats, *of_labels], _PATIENCE_S):
            hold_s = merged(stats.hold for stats in all_stats)
            served_s = merged(stats.wait for stats in all_stats)
            wait_s = merged([served_s, self._failed_waits])
            out = [each for each in self.recorded_holds() if not each.adopted]
            served_s.add([each.checked_out_at - each.requested_at for each in out])
            ended = self._sites.count()
            self._note_use(ended, now)
            gauges = self.gauges()
            if not self.switched_off():  # holds are not recorded any more
                self.slots.compare(now, gauges)
            return PoolStats(
                id=self.id,
                name=self.name,
                kind=self.kind,
                extends=self.extends,
                url=self.url,
                size=gauges.size,
                max_overflow=gauges.max_overflow,
                timeout_s=gauges.timeout_s,
                checked_out=holds,
                idle=gauges.idle,
                overflow=gauges.overflow,
                waiting=waits,
                counters=Counters(
                    checkouts=ended + holds,
                    checkins=ended,
                    timeouts=self.timeouts,
                    connects=self.connects,
                    closes=self.closes,
                    invalidated=self.invalidated,
                    collected=self._sites.collected(),
                    leaked=self.leaked,
                ),
                wait_s=wait_s.distribution(),
                hold_s=hold_s.distribution(buckets=True),
                create_s=self._create.distribution(buckets=True),
                served_s=served_s.distribution(buckets=True),
                long_after_s=self.long_after,
                gave_up=self.gave_up,
                waiting_s_per_s=self._wait_rate.per_second(
                    now, wait_s.total + self._waiting(now)
                ),
                most_wanted=self.most_wanted,
                switched_off=self.switched_off(),
                lost_slots=self.slots.lost,
                unrecorded=self.slots.unrecorded(gauges),
                over=tuple(self.lending.over),
                slotless=gauges.former + len(self.detached),
                made_at=self.setup.made_at,
                behind_pooler=self.setup.behind_pooler,
            )

    def figures(self, now: float, open_holds: list[Checkout]) -> AllFigures:
        """Figures per call site, per caller and per label, after those of stats().

        Open holds are included in the average.
        """
        from poolwatch.ledger.site_costs import AllFigures, Figures, open_ages

        ages = open_ages(open_holds, now, self._stats_of, self.labels)
        causing = self._causes.of_open(self.waits.values(), now, self._stats_of)
        figures = Figures(self.id, max(now - self.begun, 1e-9), ages, causing)
        sites, callers = figures.of_all_sites(self._sites.by_site())
        return AllFigures(sites, callers, figures.of_labels(self.labels.all()))
