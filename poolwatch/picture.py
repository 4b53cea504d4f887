"""From the books of this process to a frozen snapshot: the ledger as a Source."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path as FilePath

from poolwatch import diagnosis
from poolwatch.callsites import Pairs, resolve
from poolwatch.holders import Holder, thread_stacks
from poolwatch.ledger import Checkout, Ledger, PoolBook
from poolwatch.masking import mask_literals
from poolwatch.model import (
    Finding,
    Frame,
    Hold,
    PoolStats,
    Process,
    SiteStats,
    Snapshot,
    Wait,
)
from poolwatch.settings import process_name
from poolwatch.version import VERSION

_STARTED = datetime.now(UTC).isoformat(timespec="seconds")


class LedgerSource:
    """Looks at the ledger of the process it runs in."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def snapshot(self) -> Snapshot:
        """Return this process as it is now; reads no database and blocks nobody."""
        return Snapshot((self.process(),))

    def process(self) -> Process:
        """Return the one process of the snapshot."""
        look = _Look(thread_stacks())
        for book in list(self._ledger.books.values()):
            look.at(book, self._ledger)
        return Process(
            pid=os.getpid(),
            host=platform.node(),
            program=program(),
            name=process_name(),
            python=platform.python_version(),
            poolwatch=VERSION,
            started_at=_STARTED,
            pools=tuple(look.pools),
            holds=tuple(sorted(look.holds, key=lambda hold: -hold.held_s)),
            waits=tuple(sorted(look.waits, key=lambda wait: -wait.waited_s)),
            sites=tuple(look.sites),
            findings=diagnosis.by_gravity(look.findings),
        )


class _Look:
    """One look at all pools, at one moment."""

    def __init__(self, threads: dict[int, Pairs]) -> None:
        self.now = time.monotonic()
        self.threads = threads
        self._stacks: dict[Holder, tuple[Frame, ...]] = {}
        self.pools: list[PoolStats] = []
        self.holds: list[Hold] = []
        self.waits: list[Wait] = []
        self.sites: list[SiteStats] = []
        self.findings: list[Finding] = []

    def at(self, book: PoolBook, ledger: Ledger) -> None:
        out, asked = book.open_holds(), book.open_waits(self.now)
        for each in (*out, *asked):
            if not hasattr(each, "number"):
                each.number = next(ledger.numbers)
        holds = [self._hold(book, each) for each in out]
        waits = [self._wait(book, each) for each in asked]
        for checkout, hold in zip(out, holds, strict=True):
            if hold.verdict == "leaked":
                book.found_leaked(checkout)
        stats, sites = book.stats(len(holds), len(waits)), book.sites(self.now, out)
        self.pools.append(stats)
        self.holds += holds
        self.waits += waits
        self.sites += sites
        self.findings += diagnosis.long_holds(holds)
        self.findings += diagnosis.collected(sites)
        self.findings += diagnosis.exhausted(stats, holds, waits)
        self.findings += diagnosis.nested(stats, _by_holder(out, holds, asked, waits))

    def _hold(self, book: PoolBook, checkout: Checkout) -> Hold:
        usage, ambience = checkout.usage, checkout.ambience
        facts = checkout.connection
        held_s = max(0.0, self.now - checkout.taken)
        judged, evidence = diagnosis.verdict(
            held_s=held_s,
            long_after=book.long_after,
            owner_ended=checkout.ended_owner(),
            long_hold=ambience.long_hold,
            detached=checkout in book.detached.values(),
        )
        now = self._now(checkout)
        statement = usage.statement if usage else None
        return Hold(
            id=f"h{checkout.number}",
            pool=book.id,
            backend_pid=facts.backend_pid if facts else None,
            held_s=held_s,
            waited_s=checkout.taken - checkout.asked,
            thread=checkout.holder.name,
            task=checkout.task.name if checkout.task else None,
            labels=ambience.labels,
            site=checkout.path.site(),
            stack=checkout.path.frames(now),
            now=now,
            statement=None if statement is None else mask_literals(statement),
            in_sql_s=usage.in_sql_until(self.now) if usage else None,
            in_transaction_idle_s=None,
            verdict=judged,
            evidence=evidence,
            server=None,
            connection=facts.record(self.now) if facts else None,
        )

    def _wait(self, book: PoolBook, checkout: Checkout) -> Wait:
        return Wait(
            id=f"w{checkout.number}",
            pool=book.id,
            waited_s=max(0.0, self.now - checkout.asked),
            thread=checkout.holder.name,
            task=checkout.task.name if checkout.task else None,
            labels=checkout.ambience.labels,
            site=checkout.path.site(),
            stack=checkout.path.frames(self._now(checkout)),
        )

    def _now(self, checkout: Checkout) -> tuple[Frame, ...]:
        if checkout.task is not None:
            return resolve(checkout.task.stack())
        holder = checkout.holder
        if holder not in self._stacks:
            ended = holder.has_ended()  # then its ident may be another thread's by now
            pairs = () if ended else self.threads.get(holder.ident, ())
            self._stacks[holder] = resolve(pairs)
        return self._stacks[holder]


def _by_holder(
    out: list[Checkout], holds: list[Hold], asked: list[Checkout], waits: list[Wait]
) -> dict[object, tuple[list[Hold], list[Wait]]]:
    groups: dict[object, tuple[list[Hold], list[Wait]]] = defaultdict(lambda: ([], []))
    for checkout, hold in zip(out, holds, strict=True):
        groups[checkout.owner()][0].append(hold)
    for checkout, wait in zip(asked, waits, strict=True):
        groups[checkout.owner()][1].append(wait)
    return groups


def program() -> str:
    """What runs here, as short as people would say it."""
    if sys.argv and sys.argv[0] not in ("", "-c", "-m"):
        path = FilePath(sys.argv[0])
        return path.parent.name if path.name == "__main__.py" else path.name
    return FilePath(sys.executable).name
