"""The watchdog: logs each leak once, without any viewer.

It runs in the agent's thread, every second. In an application without leaks it reads a
few numbers and goes back to sleep. It takes a snapshot only if a hold is over its
threshold, or if the thread or task that took it has ended.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from poolwatch.agent.snapshots import LedgerSource
from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.inherited import InheritedPath
from poolwatch.ledger.ledger import Ledger
from poolwatch.ledger.nesting import Nesting
from poolwatch.ledger.pool import PoolLedger
from poolwatch.model import Frame, Hold
from poolwatch.runtime.guard import log
from poolwatch.text.format import duration, one_line, place, plural, whence

PERIOD_S = 1.0
_AGAIN_S = 5.0
"""Seconds after which the same suspects are examined again, at the earliest."""
_SHARE = 50
"""They are also left alone for this many times what that cost: 2 % of a core."""
_MOST_REPORTED = 1000
_LINES = 12
"""Frames of a stack in the log."""


@dataclass(frozen=True, slots=True)
class _Reported:
    pool: str
    site: Frame | None
    taken: float


class Watchdog:
    """Reports each leak once, and once more if the connection comes back."""

    def __init__(self, source: LedgerSource, ledger: Ledger) -> None:
        self._source = source
        self._ledger = ledger
        self._reported: dict[int, _Reported] = {}
        self._collected: dict[tuple[str, Frame], int] = {}
        self._nestings: set[tuple[str, Frame | None, Frame | None]] = set()
        self._shared: set[tuple[str, Frame | None]] = set()
        self._seen: frozenset[int] = frozenset()
        self._again = 0.0
        self._next_freeze = 0.0

    def tick(self) -> None:
        """Check all pools once."""
        now = time.monotonic()
        books = list(self._ledger.books.values())
        self._returned(books, now)
        self._dropped(books)
        for book in books:
            book.find_dropped()
            book.mark(now)
            self._nested(book)
            self._fork_shared(book)
        if now >= self._next_freeze and any(self._in_trouble(b, now) for b in books):
            began = time.thread_time()
            self._source.process()  # which freezes the incident
            self._next_freeze = now + _SHARE * (time.thread_time() - began)
        suspects = frozenset(
            id(hold)
            for book in books
            for hold in book.out()
            if _is_suspicious(hold, book, now)
            if hold.number not in self._reported
        )
        if suspects and (suspects != self._seen or now >= self._again):
            began = time.thread_time()
            self._leaked(now)
            cost = time.thread_time() - began
            unclear = self._source.awaits_confirmation()
            pause = 0.0 if unclear else max(_AGAIN_S, _SHARE * cost)
            self._seen, self._again = suspects, now + pause

    def _in_trouble(self, book: PoolLedger, now: float) -> bool:
        """Whether requests wait here, and an incident snapshot of that is missing."""
        has = self._source.freezer.has
        if has(book.id, "exhausted") and has(book.id, "pool_deadlock"):
            return False
        return bool(book.open_waits(now))

    def _leaked(self, now: float) -> None:
        """Report new leaks, once they are counted."""
        process = self._source.process()
        names = {pool.id: pool.name for pool in process.pools}
        groups: dict[tuple[str, Frame | None], list[Hold]] = defaultdict(list)
        counted = {
            hold.number
            for book in list(self._ledger.books.values())
            for hold in book.out()
            if hold.leaked
        }
        for hold in process.holds:
            number = int(hold.id[1:])
            if hold.verdict != "leaked" or number not in counted:
                continue
            if number in self._reported:
                continue
            self._reported[number] = _Reported(hold.pool, hold.site, now - hold.held_s)
            groups[hold.pool, hold.site].append(hold)
        for (pool, _), holds in groups.items():
            log().warning("%s", _leak(holds, names.get(pool, "?")))

    def _returned(self, books: list[PoolLedger], now: float) -> None:
        if not self._reported:
            return
        out = {hold.number for book in books for hold in book.out()}
        groups: dict[tuple[str, Frame | None], list[_Reported]] = defaultdict(list)
        for number in [each for each in self._reported if each not in out]:
            gone = self._reported.pop(number)
            groups[gone.pool, gone.site].append(gone)
        for (_, site), returned in groups.items():
            log().info(
                "%s leaked at %s returned after %s",
                "the connection"
                if len(returned) == 1
                else f"{len(returned)} connections",
                place(site),
                duration(now - min(gone.taken for gone in returned)),
            )

    def _nested(self, book: PoolLedger) -> None:
        """Log each pair of call sites once, with both stacks."""
        for nesting in list(book.nestings.seen.values()):
            if nesting.logged:
                continue
            nesting.logged = True
            pair = book.id, nesting.outer.site(), nesting.inner.site()
            if pair not in self._nestings and len(self._nestings) < _MOST_REPORTED:
                self._nestings.add(pair)
                log().info("%s", _nested(nesting, book.name))

    def _fork_shared(self, book: PoolLedger) -> None:
        """Log each call site once that takes connections of the parent process."""
        for use in list(book.inherited.values()):
            if use.logged:
                continue
            use.logged = True
            site = book.id, use.path.site()
            if site not in self._shared and len(self._shared) < _MOST_REPORTED:
                self._shared.add(site)
                log().warning("%s", _fork_shared(use, book.name))

    def _dropped(self, books: list[PoolLedger]) -> None:
        for book in books:
            for each in book.collected_at():
                site, count = each.site, each.count
                new = count - self._collected.get((book.id, site), 0)
                if new <= 0:
                    continue
                if len(self._collected) >= _MOST_REPORTED:
                    self._collected.clear()
                self._collected[book.id, site] = count
                log().warning(
                    "leak on pool %s: %d connection(s) taken at %s %s",
                    one_line(repr(book.name)),
                    new,
                    whence(site, *each.callers),
                    _end_of(book),
                )


def _end_of(book: PoolLedger) -> str:
    """What happened to connections that were dropped."""
    if book.lost_slots:
        lost = plural(book.lost_slots, "slot")
        return f"were dropped: the pool does not replace them, {lost} lost so far"
    return "came back only by garbage collection: nobody called close()"


def _is_suspicious(hold: Checkout, book: PoolLedger, now: float) -> bool:
    if hold.is_dropped():
        return True
    if hold.context.long_hold:
        return False
    return now - hold.taken >= book.long_after or hold.ended_owner() is not None


def _leak(holds: Sequence[Hold], pool: str) -> str:
    """The log entry for the new leaks of one call site; describes the oldest."""
    hold = max(holds, key=lambda each: each.held_s)
    function = f" in {hold.site.function}" if hold.site else ""
    if len(holds) > 1:
        function += f" (and {len(holds) - 1} more there)"
    where = whence(hold.site, *(each.caller for each in holds))
    lines = [
        one_line(
            f"leak on pool {pool!r}: connection taken at {where}{function}, "
            f"{duration(hold.held_s)} ago, is still out"
        ),
        *(f"  {one_line(each)}" for each in hold.evidence),
        *_stack("taken here", hold.stack),
    ]
    if hold.used and hold.used[0] != hold.stack[0]:
        lines += _stack("last used here", hold.used)
    return "\n  ".join(lines)


def _nested(nesting: Nesting, pool: str) -> str:
    outer, inner = nesting.callers
    lines = [
        one_line(
            f"nested on pool {pool!r}: {nesting.who} takes a connection at "
            f"{whence(nesting.inner.site(), inner)} while it holds one taken at "
            f"{whence(nesting.outer.site(), outer)}; as many such callers as the pool "
            "has connections lock each other out"
        ),
        *_stack("the first", nesting.outer.frames()),
        *_stack("the second", nesting.inner.frames()),
    ]
    return "\n  ".join(lines)


def _fork_shared(use: InheritedPath, pool: str) -> str:
    lines = [
        one_line(
            f"fork_shared on pool {pool!r}: a connection that was opened before the "
            f"process forked is taken at {place(use.path.site())}; parent and child "
            "share one session of the server"
        ),
        *_stack("taken here", use.path.frames()),
    ]
    return "\n  ".join(lines)


def _stack(title: str, stack: Sequence[Frame]) -> list[str]:
    return [
        f"  {title}:",
        *(
            "  "
            + one_line(f'File "{frame.file}", line {frame.line}, in {frame.function}')
            for frame in stack[:_LINES]
        ),
    ]
