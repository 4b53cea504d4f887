"""The books of one process: open holds and waits of every pool, and what has ended.

This is the only mutable state. It is written from the application's threads, inside
its own calls, so it takes no lock there: single dict and array operations are atomic,
and the durations of a hold that has ended are only appended to its call site's tally.
They are folded into histograms in batches, by whoever finds enough of them and the fold
lock free. Nobody waits for that lock in the application, which also keeps a garbage
collection in the middle of a fold (it may end holds) from blocking itself.
"""

from __future__ import annotations

import itertools
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poolwatch.histogram import Histogram, merged
from poolwatch.labels import Ambience
from poolwatch.model import (
    Connection,
    Counters,
    Frame,
    PoolStats,
    SiteStats,
)

if TYPE_CHECKING:
    from poolwatch.callsites import Path
    from poolwatch.holders import Holder, TaskRef

BATCH = 64
"""Ended holds of a call site that may queue up before they are folded."""
MOST_SITES = 128
"""Call sites kept apart per pool; further ones are counted together."""
_PATIENCE_S = 0.05
"""How long a viewer waits for a fold under way before it reads all the same."""
_DEPARTED = 32
_ENOUGH_HOLDS = 10
_BRIEF_HOLD_S = 0.02
"""Below this, on average, a call site is not said to hold across anything."""
_MOSTLY_OUTSIDE = 0.25
"""Share of the held time in SQL below which the rest is mostly something else."""
BRIEF = 0.001
"""Seconds. Younger waits are not shown: they are connections being handed over."""

OTHER_SITES = Frame("(other call sites)", 0, "")


class Checkout:
    """One request for a connection, and the hold it turns into.

    One is made at every checkout: nothing is stored before it is needed.
    """

    __slots__ = (
        "ambience",
        "asked",
        "collected",
        "connection",
        "ended",
        "holder",
        "leaked",
        "number",
        "path",
        "proxy",
        "taken",
        "task",
        "usage",
    )

    path: Path
    holder: Holder
    ambience: Ambience
    task: TaskRef | None
    asked: float
    """``time.monotonic()`` of the request."""
    taken: float
    ended: float
    proxy: Callable[[], Any]
    """Weak reference to the connection proxy that the application holds."""
    connection: ConnectionFacts | None
    collected: bool
    leaked: bool
    """Already counted as leaked."""
    number: int
    """Given when somebody first looks."""
    usage: Usage | None

    def __init__(
        self,
        path: Path,
        holder: Holder,
        ambience: Ambience,
        task: TaskRef | None,
        asked: float,
    ) -> None:
        self.path = path
        self.holder = holder
        self.ambience = ambience
        self.task = task
        self.asked = asked
        self.usage = None

    def owner(self) -> object:
        """The one that holds or waits: equal for two requests of one task or thread."""
        return self.holder if self.task is None else self.task

    def taker(self) -> tuple[int | None, Callable[[], Any] | None]:
        """The ident of the thread, None if it has ended, and the task, by weakref."""
        ident = None if self.holder.has_ended() else self.holder.ident
        return ident, self.task.reference if self.task is not None else None

    def ended_owner(self) -> str | None:
        """Who took it, in words, if that thread or task has ended.

        None if somebody else has used the connection: then it was handed over.
        """
        if self.task is not None:
            ended, who = self.task.has_ended(), f"task {self.task.name}"
        else:
            ended, who = self.holder.has_ended(), f"thread {self.holder.name}"
        if not ended or (self.usage is not None and self.usage.by_others):
            return None
        return who


class Usage:
    """What was done with a held connection."""

    __slots__ = ("began", "by_others", "in_sql", "statement")

    def __init__(self) -> None:
        self.by_others = False
        """A thread or task that did not take the connection has used it."""
        self.statement: str | None = None
        self.began: float | None = None
        """When the statement that is running now was sent, else None."""
        self.in_sql = 0.0

    def running_s(self, now: float) -> float | None:
        """How long the statement has been running that runs now; None if none does."""
        began = self.began
        return None if began is None else max(0.0, now - began)

    def in_sql_until(self, now: float) -> float:
        """Seconds spent in statements, the running one included."""
        began = self.began
        return self.in_sql + (0.0 if began is None else now - began)


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """What was learned of a DBAPI connection when it was opened or first met."""

    backend_pid: int | None
    opened: float
    """``time.monotonic()`` at the end of the connect call."""
    connect_s: float | None
    address: str | None
    client_port: int | None
    process: int
    """Pid of the process that opened it."""

    def record(self, now: float) -> Connection:
        """The form that viewers get."""
        return Connection(
            age_s=now - self.opened,
            connect_s=self.connect_s,
            address=self.address,
            client_port=self.client_port,
        )


@dataclass(frozen=True, slots=True)
class Gauges:
    """What the pool itself says of its present state."""

    size: int | None = None
    max_overflow: int | None = None
    timeout_s: float | None = None
    idle: int | None = None
    overflow: int | None = None


class Tally:
    """What one call site has done to one pool."""

    __slots__ = (
        "collected",
        "folds",
        "held",
        "hold",
        "in_sql",
        "paths",
        "used",
        "wait",
        "waited",
    )

    def __init__(self) -> None:
        self.held = array("d")
        """Seconds of ended holds that are not folded yet, and beside them ..."""
        self.waited = array("d")
        """... the seconds each had waited before."""
        self.hold = Histogram()
        self.wait = Histogram()
        self.collected = 0
        self.used = 0
        """Ended holds through which statements were seen, and ..."""
        self.in_sql = 0.0
        """... the seconds they spent in those."""
        self.paths: list[Path] = []
        self.folds = 0

    @property
    def count(self) -> int:
        """Holds that have ended."""
        return self.hold.count + len(self.held)

    def fold(self) -> None:
        """Move what was appended into the histograms; one thread at a time."""
        ready = min(len(self.held), len(self.waited))
        if not ready:
            return
        self.hold.add(self.held[:ready])
        self.wait.add(self.waited[:ready])
        del self.held[:ready], self.waited[:ready]
        self.folds += 1
        if self.folds & (self.folds - 1) == 0:  # ever more rarely
            for path in self.paths:
                path.look_again()


class PoolBook:
    """The books of one pool."""

    def __init__(
        self,
        pool_id: str,
        *,
        name: str,
        kind: str,
        url: str | None,
        long_after: float,
        gauges: Callable[[], Gauges],
    ) -> None:
        self.id = pool_id
        self.name = name
        self.kind = kind
        self.url = url
        self.long_after = long_after
        self.gauges = gauges
        self.shared = False
        """One connection may be lent several times; then holds are keyed by proxy, and
        one that was dropped may end without any event."""
        self.server_view = True
        self.server_connect: Callable[[], Any] | None = None
        """Opens a connection to this pool's PostgreSQL, outside the pool; None if it
        is on no PostgreSQL."""
        self.begun = time.monotonic()
        self.holds: dict[int, Checkout] = {}
        """Open holds. The key is the adapter's: it must find the hold again at its
        return."""
        self.detached: dict[int, Checkout] = {}
        """Open holds whose connection was taken out of the pool for good."""
        self.waits: dict[int, Checkout] = {}
        self.connections: dict[int, ConnectionFacts] = {}
        self._create = Histogram()
        self.connects = 0
        self.closes = 0
        self.invalidated = 0
        self.departed: deque[tuple[float, ConnectionFacts]] = deque(maxlen=_DEPARTED)
        """When connections were closed of late, and what was known of them."""
        self.leaked = 0
        """Open holds that were found leaked; ended ones are counted by their tally."""
        self._created = array("d")
        self._failed = array("d")
        self._folding = threading.Lock()
        self._by_path: dict[Path, Tally] = {}
        self._by_site: dict[Frame | None, Tally] = {}
        self._failed_waits = Histogram()

    # -- written by the adapter, in the application's threads ------------------------

    def end(self, hold: Checkout, now: float, collected: bool) -> None:
        """Close the books of one hold."""
        tally = self._by_path.get(hold.path) or self._tally(hold.path)
        taken = hold.taken
        tally.held.append(now - taken)
        tally.waited.append(taken - hold.asked)
        usage = hold.usage
        if usage is not None:
            tally.used += 1
            tally.in_sql += usage.in_sql
        if collected:
            tally.collected += 1
            if not getattr(hold, "leaked", False):
                self.leaked += 1
        if len(tally.held) >= BATCH:
            self._fold(tally)

    def end_shared(self, hold: Checkout, now: float, collected: bool) -> None:
        """Close the books of a hold that is keyed by its proxy, wherever it stands."""
        for key in list(self.holds):
            if self.holds.get(key) is hold and self.holds.pop(key, None) is hold:
                self.end(hold, now, collected)

    def timed_out(self, wait: Checkout, now: float) -> None:
        """Count a wait that the pool itself ended."""
        self._failed.append(now - wait.asked)

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
        if not getattr(hold, "leaked", False):
            hold.leaked = True
            self.leaked += 1

    def forget(self) -> None:
        """In a forked child: what is out belongs to the parent, and so do the counts.

        Tables are emptied in place: the hooks hold on to them.
        """
        for table in (self.holds, self.detached, self.waits, self._by_path):
            table.clear()
        self._by_site.clear()
        self.departed.clear()
        del self._created[:], self._failed[:]
        self._folding = threading.Lock()  # a thread of the parent may have held it
        self._create, self._failed_waits = Histogram(), Histogram()
        self.connects = self.closes = self.invalidated = self.leaked = 0
        self.begun = time.monotonic()

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
        site = path.site()
        if site not in self._by_site and len(self._by_site) >= MOST_SITES:
            site = OTHER_SITES
        tally = self._by_site.setdefault(site, Tally())
        tally.paths = [*tally.paths[-3:], path]
        return self._by_path.setdefault(path, tally)

    # -- read by viewers ---------------------------------------------------------------

    def open_holds(self) -> list[Checkout]:
        """Holds that are out now.

        A shared connection can be dropped without any event: its hold ends here.
        """
        if self.shared:
            for hold in list(self.holds.values()):
                if hold.proxy() is None:
                    self.end_shared(hold, time.monotonic(), True)
        return [*self.holds.values(), *self.detached.values()]

    def open_waits(self, now: float) -> list[Checkout]:
        """Requests that have not been served for a moment."""
        return [wait for wait in list(self.waits.values()) if now - wait.asked >= BRIEF]

    def mostly_outside(self) -> list[tuple[Frame, int, float, float]]:
        """Call sites whose held time is mostly not in SQL.

        With the number of holds, the seconds they lasted, and those of them in SQL.
        """
        found = []
        for site, tally in list(self._by_site.items()):
            held, ended = tally.hold.total, tally.hold.count
            if site is None or ended < _ENOUGH_HOLDS or held < ended * _BRIEF_HOLD_S:
                continue
            if tally.used >= ended and tally.in_sql < held * _MOSTLY_OUTSIDE:
                found.append((site, ended, held, tally.in_sql))
        return found

    def collected_at(self) -> list[tuple[Frame, int]]:
        """Call sites whose connections the garbage collector returned, and how many."""
        return [
            (site, tally.collected)
            for site, tally in list(self._by_site.items())
            if tally.collected and site is not None
        ]

    def stats(self, holds: int, waits: int) -> PoolStats:
        """Figures of the pool, for a snapshot with so many holds and waits."""
        tallies = list(self._by_site.values())
        with self._folded(tallies, _PATIENCE_S):
            hold_s = merged(tally.hold for tally in tallies)
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
                    timeouts=self._failed_waits.count + len(self._failed),
                    connects=self.connects,
                    closes=self.closes,
                    invalidated=self.invalidated,
                    collected=sum(tally.collected for tally in tallies),
                    leaked=self.leaked,
                ),
                wait_s=merged(
                    [*(t.wait for t in tallies), self._failed_waits]
                ).distribution(),
                hold_s=hold_s.distribution(),
                create_s=self._create.distribution(),
                long_after_s=self.long_after,
            )

    def sites(self, now: float, open_holds: list[Checkout]) -> list[SiteStats]:
        """Figures per call site, the holds that are out included in the average."""
        out: dict[Frame | None, list[float]] = {}
        for hold in open_holds:
            out.setdefault(hold.path.site(), []).append(now - hold.taken)
        elapsed = max(now - self.begun, 1e-9)
        sites = []
        for site in {**self._by_site, **dict.fromkeys(out)}:
            if site is None:
                continue
            tally = self._by_site.get(site) or Tally()
            ages = out.get(site, [])
            sites.append(
                SiteStats(
                    pool=self.id,
                    site=site,
                    count=tally.count + len(ages),
                    connections=(tally.hold.total + sum(ages)) / elapsed,
                    hold_s=tally.hold.distribution(),
                    wait_s=tally.wait.distribution(),
                    leaked=tally.collected,
                )
            )
        return sorted(sites, key=lambda each: each.connections, reverse=True)


class Ledger:
    """All books of this process."""

    def __init__(self) -> None:
        self.books: dict[str, PoolBook] = {}
        self._numbers = itertools.count(1)
        self.numbers = itertools.count(1)
        """Numbers holds and waits; ``next()`` on it is atomic."""

    def open(self, **about: Any) -> PoolBook:
        """Begin the books of a pool; takes what PoolBook takes but the id."""
        pool_id = f"p{next(self._numbers)}"
        book = self.books[pool_id] = PoolBook(pool_id, **about)
        return book

    def close(self, book: PoolBook) -> None:
        """Forget a pool."""
        self.books.pop(book.id, None)

    def forget_parent(self) -> None:
        """Begin anew in a forked child."""
        for book in self.books.values():
            book.forget()
