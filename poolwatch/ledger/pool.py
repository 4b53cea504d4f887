"""The books of one pool: open holds and waits, and what has ended.

The application's threads write them, inside its own calls, without a lock: single dict
and array operations are atomic, and the durations of a hold that has ended are only
appended to its call site's tally. A thread that finds enough durations, and the lock of
the fold free, folds them into histograms. No thread of the application waits for that
lock. So a garbage collection in the middle of a fold, which may end holds, does not
block itself either.
"""

from __future__ import annotations

import itertools
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from poolwatch.ledger.checkout import Checkout, ConnectionFacts, Gauges
from poolwatch.ledger.histogram import Histogram, merged
from poolwatch.ledger.nesting import InUse, Nestings
from poolwatch.ledger.observers import MOST_UNSEEN, Observers
from poolwatch.ledger.ondemand import OnDemand
from poolwatch.ledger.site_stats import BATCH, Tally
from poolwatch.model import OTHER_SITES, Frame
from poolwatch.stacks.callers import Stack, near_stack

if TYPE_CHECKING:
    from poolwatch.ledger.inherited import InheritedPath
    from poolwatch.ledger.wait_rate import WaitRate
    from poolwatch.model import Collected, Outside, PoolStats, SiteStats, Use
    from poolwatch.stacks.capture import Path

MOST_SITES = 128
"""Call sites kept apart per pool; further ones are counted together."""
_MOST_STACKS = 2 * MOST_SITES
"""Call sites with their callers that are kept apart."""
_PATIENCE_S = 0.05
"""How long a viewer waits for a fold under way before it reads all the same."""
_DEPARTED = 32
_MOST_BLAMED = 64
BRIEF = 0.001
"""Seconds. Younger waits are not shown: they are connections being handed over."""


def _nothing() -> None:
    """There is nothing to look for."""


def _seconds() -> array[float]:
    return array("d")


class PoolBook:
    """The books of one pool."""

    server_connect: Callable[[], Any] | None = None
    """Opens a connection to this pool's PostgreSQL, outside the pool; None if it is on
    no PostgreSQL."""

    # A suite may make a pool for each of its tests: what few need is made on demand.
    detached: OnDemand[dict[int, Checkout]] = OnDemand(dict)
    """Open holds whose connection was taken out of the pool for good."""
    waits: OnDemand[dict[int, Checkout]] = OnDemand(dict)
    connections: OnDemand[dict[int, ConnectionFacts]] = OnDemand(dict)
    blamed: OnDemand[dict[int, list[Path]]] = OnDemand(dict)
    """By wait: the paths of those who held a connection when it began."""
    inherited: OnDemand[dict[Path, InheritedPath]] = OnDemand(dict)
    """Where connections were taken that had been opened before a fork."""
    departed: OnDemand[deque[tuple[float, ConnectionFacts]]] = OnDemand(
        partial(deque, maxlen=_DEPARTED)
    )
    """When connections were closed of late, and what was known of them."""
    _create = OnDemand(Histogram)
    _failed_waits = OnDemand(Histogram)
    _created = OnDemand(_seconds)
    _failed = OnDemand(_seconds)
    _folding = OnDemand(threading.Lock)
    _by_site: OnDemand[dict[Frame | None, dict[Stack, Tally]]] = OnDemand(dict)
    """By call site and stack. Under None are the holds that ended unwatched: their call
    sites are not known."""

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
        beside: Mapping[str, PoolBook],
        in_use: InUse,
    ) -> None:
        self.id = pool_id
        self._beside = beside
        """The books of all pools, these included."""
        self.observers = observers
        """Those of all pools: usually nobody but viewers. For these, what has ended is
        told apart by call site."""
        self.nestings = Nestings(in_use)
        self.name = name
        self.kind = kind
        self.url = url
        self.long_after = long_after
        self.gauges = gauges
        self.shared = False
        """One connection may be lent several times; then holds are keyed by proxy, and
        one that was dropped may end without any event."""
        self.look: Callable[[], None] = _nothing
        """Has the adapter look for what no event tells: connections that were dropped
        where the pool keeps what it has lent."""
        self.server_view = True
        self.begun = time.monotonic()
        self.holds: dict[int, Checkout] = {}
        """Open holds. The key is the adapter's: it must find the hold again at its
        return."""
        self.connects = 0
        self.closes = 0
        self.timeouts = 0
        self.invalidated = 0
        self.lost_slots = 0
        """Connections that were dropped and that the pool will never replace."""
        self.gave_up = 0
        """Waits that the application itself has ended."""
        self.most_wanted = 0
        """Connections out or asked for at once, at the worst moment beyond capacity."""
        self.switched_off: Callable[[], bool] = bool
        self.leaked = 0
        """Open holds that were found leaked; ended ones are counted by their tally."""
        self._by_path: dict[Path, Tally] = {}
        self.unseen: list[float] = []
        """Seconds held and seconds waited before, by turns, of holds that ended while
        nobody could look: nobody will ask at which call site. Both are appended at
        once, to be folded later on."""

    @property
    def book(self) -> PoolBook:
        """Itself. Others are asked for theirs: see checkout.Lender."""
        return self

    def use(self) -> Use:
        """Whether it has opened a connection (1), or one was taken from it (2)."""
        if self.holds or self._by_path:
            return 2
        return 1 if self.connects else 0

    @cached_property
    def _wait_rate(self) -> WaitRate:
        from poolwatch.ledger.wait_rate import WaitRate  # loaded by the first viewer

        return WaitRate(self.begun)

    # -- written by the adapter, in the application's threads ------------------------

    def end(self, hold: Checkout, now: float, collected: bool) -> None:
        """Close the books of one hold.

        It is counted out last: if this is cut short, that is left to be done.
        """
        observers = self.observers
        if observers.ended is not None:
            observers.ended(self, hold, now, collected)
        if collected and observers.lost is not None:
            observers.lost(self, hold, now)
        account = hold.account
        if account is not None:
            account.out.pop(hold, None)
        if not observers.watched and not collected:
            self._note_unseen(hold, now)
        else:
            self._note_seen(hold, now, collected)
        hold.holder.out -= 1

    def enter_lost(self, hold: Checkout, now: float) -> None:
        """Count a hold that the collector has ended, and that has left all else."""
        self._note_seen(hold, now, True)

    def _note_seen(self, hold: Checkout, now: float, collected: bool) -> None:
        path = hold.path
        tally = self._by_path.get(path) or self._tally(path)
        taken, held = hold.taken, tally.held
        held.append(now - taken)
        tally.waited.append(taken - hold.asked)
        usage = hold.usage
        if usage is not None and usage.timed:
            tally.used += not usage.streamed
            tally.in_sql += usage.in_sql
            tally.idle += usage.idle_until(now)
        if collected:
            tally.collected += 1
            self._leaked(hold, tally)
        if len(held) >= BATCH:
            self._fold(tally)

    def _note_unseen(self, hold: Checkout, now: float) -> None:
        unseen = self.unseen
        unseen += (now - hold.taken, hold.taken - hold.asked)
        if len(unseen) >= MOST_UNSEEN:
            self.fold_unseen()

    def end_shared(self, hold: Checkout, now: float, collected: bool) -> None:
        """Close the books of a hold that is keyed by its proxy, wherever it stands."""
        for key in list(self.holds):
            if self.holds.get(key) is hold and self.holds.pop(key, None) is hold:
                self.end(hold, now, collected)

    def timed_out(self, waited: float) -> None:
        """Count a wait that the pool itself ended, after so many seconds."""
        self._failed.append(waited)
        self.timeouts += 1

    def given_up(self, waited: float) -> None:
        """Count a wait that the application ended: a cancelled task, an interrupt."""
        self._failed.append(waited)
        self.gave_up += 1

    def wanted_again(self, wait: Checkout) -> None:
        """A thread asks that has connections out already, of this pool or another."""
        self.nestings.note(wait, self.holds)
        self.blamed[id(wait)] = []

    def wanted_more(self, wait: Checkout) -> None:
        """Somebody asks while as many are out as there can be."""
        self.most_wanted = max(self.most_wanted, len(self.holds) + len(self.waits))
        holders = itertools.islice(list(self.holds.values()), _MOST_BLAMED)
        self.blamed[id(wait)] = [hold.path for hold in holders]

    def waited(self, wait: Checkout, now: float) -> None:
        """Share out a wait that is over among the holds of that time."""
        paths = self.blamed.pop(id(wait), None)
        if paths is None or now - wait.asked < BRIEF:
            return
        for path in paths:
            tally = self._by_path.get(path) or self._tally(path)
            tally.caused += (now - wait.asked) / len(paths)
        if wait.holder.out:
            for book in list(self._beside.values()):
                book.holder_waited(wait.owner(), now - wait.asked)

    def holder_waited(self, owner: object, seconds: float) -> None:
        """Note that a holder has waited for a connection, of whichever pool."""
        for hold in itertools.islice(list(self.holds.values()), _MOST_BLAMED):
            if hold.owner() == owner:
                tally = self._by_path.get(hold.path) or self._tally(hold.path)
                tally.pool_wait += seconds

    def connected(self, took: float) -> None:
        """Count a connection that was just opened, and the seconds it took."""
        self.connects += 1
        self._created.append(took)

    def closed(self, facts: ConnectionFacts | None, now: float) -> None:
        """Count a connection that was closed; the server may not know yet."""
        self.closes += 1
        if facts is not None and facts.backend_pid is not None:
            self.departed.append((now, facts))

    def found_leaked(self, hold: Checkout) -> None:
        """Count an open hold as leaked, once."""
        self._leaked(hold, self._by_path.get(hold.path) or self._tally(hold.path))

    def _leaked(self, hold: Checkout, tally: Tally) -> None:
        if not getattr(hold, "leaked", False):
            hold.leaked = True
            self.leaked += 1
            tally.leaked += 1

    def forget(self) -> None:
        """In a forked child: what is out belongs to the parent, and so do the counts.

        Tables are emptied in place: the hooks hold on to them.
        """
        for table in (
            self.holds,
            self.detached,
            self.waits,
            self.blamed,
            self._by_path,
            self.inherited,
        ):
            table.clear()
        self._by_site = {}
        self.departed.clear()
        del self._created[:], self._failed[:], self.unseen[:]
        self._folding = threading.Lock()  # a thread of the parent may have held it
        self._create, self._failed_waits = Histogram(), Histogram()
        self.connects = self.closes = self.invalidated = self.leaked = 0
        self.timeouts = self.gave_up = self.most_wanted = self.lost_slots = 0
        self.nestings.forget()
        self.begun = time.monotonic()
        self.__dict__.pop("_wait_rate", None)

    def fold_unseen(self) -> None:
        """Fold what ended while nobody could look."""
        self._fold(self._unsorted())

    def _unsorted(self) -> Tally:
        return self._by_site.setdefault(None, {}).setdefault((), Tally())

    def _tallies(self) -> list[Tally]:
        return [each for stacks in self._by_stack().values() for each in stacks]

    def _by_stack(self) -> dict[Frame | None, list[Tally]]:
        """The tallies of each call site, one for each stack."""
        return {
            site: list(stacks.values()) for site, stacks in list(self._by_site.items())
        }

    def _fold(self, *tallies: Tally) -> None:
        """Fold tallies, or leave it to others if they are at it."""
        if self._folding.acquire(blocking=False):
            try:
                self._fold_now(tallies)
            finally:
                self._folding.release()

    @contextmanager
    def _folded(self, tallies: Iterable[Tally], patience: float) -> Iterator[None]:
        """Fold; inside, the tallies stay as they are, if the lock could be had."""
        mine = self._folding.acquire(timeout=patience)
        try:
            if mine:
                self._fold_now(tallies)
            yield
        finally:
            if mine:
                self._folding.release()

    def _fold_now(self, tallies: Iterable[Tally]) -> None:
        pairs = self.unseen[:]
        if pairs:
            del self.unseen[: len(pairs)]
            unsorted = self._unsorted()
            unsorted.held.extend(pairs[::2])
            unsorted.waited.extend(pairs[1::2])
            unsorted.fold()
        for tally in tallies:
            tally.fold()
        for histogram, samples in (
            (self._create, self._created),
            (self._failed_waits, self._failed),
        ):
            ready = len(samples)
            if ready:
                histogram.add(samples[:ready])
                del samples[:ready]

    def _tally(self, path: Path) -> Tally:
        """The tally of a path met for the first time (or for the first in a while)."""
        if len(self._by_path) >= 4 * MOST_SITES:
            self._by_path.clear()
        site, stack = path.site(), near_stack(path)
        most = MOST_SITES + (None in self._by_site)
        if site not in self._by_site and len(self._by_site) >= most:
            site, stack = OTHER_SITES, (OTHER_SITES,)
        stacks = self._by_site.setdefault(site, {})
        if stack not in stacks and len(self._tallies()) >= _MOST_STACKS:
            stack = (*stack[:1], OTHER_SITES)
        tally = stacks.get(stack) or stacks.setdefault(stack, Tally(stack))
        tally.paths = [*tally.paths[-3:], path]
        return self._by_path.setdefault(path, tally)

    # -- read by viewers ---------------------------------------------------------------

    def open_holds(self) -> list[Checkout]:
        """Holds that are out now.

        A shared connection can be dropped without any event: its hold ends here.
        """
        self.look()
        if self.shared:
            for hold in list(self.holds.values()):
                if hold.proxy() is None:
                    self.end_shared(hold, time.monotonic(), True)
        return self.out()

    def out(self) -> list[Checkout]:
        """Open holds by what events have told, without a look at the connections."""
        return [*list(self.holds.values()), *list(self.detached.values())]

    def open_waits(self, now: float) -> list[Checkout]:
        """Requests that have not been served for a moment."""
        return [wait for wait in list(self.waits.values()) if now - wait.asked >= BRIEF]

    def mark(self, now: float) -> None:
        """Note what has been waited so far: see WaitRate."""
        tallies = self._tallies()
        ended = sum(each.wait.total + sum(each.waited) for each in tallies)
        ended += sum(self.unseen[1::2])
        failed = self._failed_waits.total + sum(self._failed)
        self._wait_rate.mark(now, ended + failed + self._waiting(now))

    def _waiting(self, now: float) -> float:
        return sum(now - wait.asked for wait in list(self.waits.values()))

    def mostly_outside(self) -> list[Outside]:
        """Call sites whose held time is mostly not in SQL."""
        from poolwatch.ledger.site_costs import (
            mostly_outside,  # loaded by the first viewer
        )

        return mostly_outside(self._by_stack())

    def collected_at(self) -> list[Collected]:
        """Call sites whose connections the garbage collector returned, and how many."""
        from poolwatch.ledger.site_costs import collected

        return collected(self._by_stack())

    def stats(self, holds: int, waits: int) -> PoolStats:
        """Figures of the pool, for a snapshot with so many holds and waits."""
        from poolwatch.model import Counters, PoolStats  # loaded by the first viewer

        now = time.monotonic()
        if self.unseen:
            self._unsorted()
        tallies = self._tallies()
        with self._folded(tallies, _PATIENCE_S):
            hold_s = merged(tally.hold for tally in tallies)
            wait_s = merged([*(tally.wait for tally in tallies), self._failed_waits])
            ended = sum(tally.count for tally in tallies)
            gauges = self.gauges()
            return PoolStats(
                id=self.id,
                name=self.name,
                kind=self.kind,
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
                    collected=sum(tally.collected for tally in tallies),
                    leaked=self.leaked,
                ),
                wait_s=wait_s.distribution(),
                hold_s=hold_s.distribution(),
                create_s=self._create.distribution(),
                long_after_s=self.long_after,
                gave_up=self.gave_up,
                waiting_s_per_s=self._wait_rate.per_second(
                    now, wait_s.total + self._waiting(now)
                ),
                most_wanted=self.most_wanted,
                switched_off=self.switched_off(),
                lost_slots=self.lost_slots,
            )

    def stacks(self) -> dict[Frame, list[Stack]]:
        """The stacks that led to each call site so far, as far as they are exact."""
        return {
            site: [tally.stack for tally in tallies]
            for site, tallies in self._by_stack().items()
            if site is not None
        }

    def sites(
        self, now: float, open_holds: list[Checkout]
    ) -> tuple[list[SiteStats], list[SiteStats]]:
        """Figures per call site, and per caller of those that are shared.

        The holds that are out are included in the average.
        """
        from poolwatch.ledger.site_costs import Figures

        out: dict[Tally, list[float]] = {}
        for hold in open_holds:
            tally = self._by_path.get(hold.path) or self._tally(hold.path)
            out.setdefault(tally, []).append(now - hold.taken)
        elapsed = max(now - self.begun, 1e-9)
        figures = Figures(self.id, elapsed, out, self._causing(now))
        return figures.of_all(self._by_stack())

    def _causing(self, now: float) -> Counter[Tally]:
        """Like Tally.caused, of the waits that are not over yet."""
        causing: Counter[Tally] = Counter()
        for wait in list(self.waits.values()):
            paths = self.blamed.get(id(wait), ())
            for path in paths:
                tally = self._by_path.get(path) or self._tally(path)
                causing[tally] += (now - wait.asked) / len(paths)  # type: ignore[assignment]
        return causing
