"""From the books of this process to a frozen snapshot: the ledger as a Source."""

from __future__ import annotations

import os
import platform
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from poolwatch.book import PoolBook
from poolwatch.callers import Request, callers
from poolwatch.callsites import Pairs, Path, resolve
from poolwatch.checkout import Checkout
from poolwatch.collector import undisturbed
from poolwatch.diagnosis import holds as of_holds
from poolwatch.diagnosis import pools as of_pools
from poolwatch.diagnosis.churn import churned
from poolwatch.diagnosis.common import by_gravity
from poolwatch.doing import doing
from poolwatch.freezing import Freezer
from poolwatch.holders import Holder
from poolwatch.ledger import Ledger
from poolwatch.masking import mask_literals
from poolwatch.model import (
    Departed,
    Finding,
    Frame,
    Hold,
    PoolStats,
    Process,
    SiteStats,
    Snapshot,
    Wait,
)
from poolwatch.onstack import still_on_stack, taking_frames
from poolwatch.program import parent, program
from poolwatch.running import task_stack, thread_stacks
from poolwatch.settings import process_name
from poolwatch.submitters import Submitter, Submitters
from poolwatch.text import duration, place
from poolwatch.verdicts import Keeping, Seen, judge, suspicious
from poolwatch.version import VERSION

_STARTED = datetime.now(UTC).isoformat(timespec="seconds")


_TRUST_S = 3.0
"""How long the answer to "who keeps it alive" is used again, at least ..."""
_SHARE = 50
"""... and for so many times what it cost: never more than 2 % of a core."""


_GRACE_S = 1.0
"""A server needs a moment to end the session of a connection that was closed."""
_FORGOTTEN_S = 600.0


class LedgerSource:
    """Looks at the ledger of the process it runs in."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._kept: dict[int, tuple[float, Keeping]] = {}
        """By the number of the hold: when somebody asked, and the answer."""
        self._trust_s = _TRUST_S
        self._asked = float("-inf")
        self._left_out: tuple[str, ...] = ()
        self._submitters = Submitters()
        self.freezer = Freezer()

    def snapshot(self) -> Snapshot:
        """Return this process as it is now; reads no database and blocks nobody."""
        return Snapshot((self.process(),))

    def process(self, *, search: bool = True) -> Process:
        """Return the one process of the snapshot.

        Without ``search`` nobody is asked anew who keeps a connection alive: what the
        watchdog has found out is used. That is for the application's own threads, an
        event loop's above all, which must not wait for a search.
        """
        return undisturbed(lambda: self._process(search))

    def _process(self, search: bool) -> Process:
        look = _Look(thread_stacks())
        for book in list(self._ledger.books.values()):
            look.at(book, self._ledger)
        look.submitters = self._submitters.of(look.open(), look.threads)
        look.judge(self._keeping(look.suspects()) if search else self._known())
        look.findings += churned(self._ledger.makings.made(look.now), look.pools)
        process = Process(
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
            callers=tuple(look.callers),
            parent=parent(),
            findings=by_gravity(look.findings),
            departed=tuple(look.departed),
            frozen=self.freezer.marks(),
            left_out=self._left_out,
        )
        self.freezer.consider(process)
        return process

    def _keeping(self, suspects: list[_Draft]) -> dict[int, Keeping]:
        """Who keeps these holds alive, asked anew only when the answers are old."""
        now = time.monotonic()
        numbers = {draft.checkout.number for draft in suspects}
        for number in list(self._kept):
            if number not in numbers:
                self._kept.pop(number, None)
        affordable = now - self._asked >= self._trust_s - _TRUST_S
        old = any(now - self._kept.get(n, _NEVER)[0] > self._trust_s for n in numbers)
        if old and affordable:
            began = time.thread_time()
            found, self._left_out = _ask(suspects)
            cost = time.thread_time() - began
            self._trust_s, self._asked = max(_TRUST_S, _SHARE * cost), now
            self._kept.update({number: (now, told) for number, told in found.items()})
        return self._known()

    def _known(self) -> dict[int, Keeping]:
        return {number: told for number, (_, told) in list(self._kept.items())}


_NEVER = (float("-inf"), None)
_NO_SUBMITTER = Submitter((), None)


def _ask(drafts: list[_Draft]) -> tuple[dict[int, Keeping], tuple[str, ...]]:
    from poolwatch.keepers import keepers  # only a suspicion needs it
    from poolwatch.keeping.scopes import may_hide

    suspects = {str(draft.checkout.number): draft.checkout for draft in drafts}
    proxies = {number: each.proxy for number, each in suspects.items()}
    takers = {number: each.taker() for number, each in suspects.items()}
    result = keepers(proxies, taker=takers)
    if not result.all_frames:  # deep stacks, large objects: worth a second, longer look
        result = keepers(proxies, taker=takers, budget_s=0.3, nodes=2_000_000)
    told = {}
    for draft in drafts:
        number = draft.checkout.number
        keeper = result.found.get(str(number))
        ambient = keeper is None or keeper.kind in ("thread-local", "context variable")
        told[number] = Keeping(
            in_use=keeper is not None and keeper.in_hand and keeper.near,
            words=" -> ".join(keeper.path) if keeper is not None else None,
            in_use_by_taker=keeper.same_holder if keeper is not None else None,
            complete=result.all_frames,
            at=keeper.frame if keeper is not None else None,
            hidden=ambient and may_hide(draft.stack, draft.now),
        )
    return told, (result.left_out,) if result.left_out else ()


@dataclass(slots=True)
class _Draft:
    """A hold before it is judged."""

    checkout: Checkout
    now: tuple[Frame, ...]
    stack: tuple[Frame, ...]
    seen: Seen
    one_of_several: bool = False
    """Its holder has other holds or waits on the same pool."""
    again: bool = False
    """Its function has taken more since."""


class _Look:
    """One look at all pools, at one moment."""

    def __init__(self, threads: dict[int, Pairs]) -> None:
        self.now = time.monotonic()
        self.threads = threads
        self._stacks: dict[Holder, tuple[Frame, ...]] = {}
        self._drafts: list[tuple[PoolBook, list[_Draft], list[Checkout]]] = []
        self.pools: list[PoolStats] = []
        self.holds: list[Hold] = []
        self.waits: list[Wait] = []
        self.sites: list[SiteStats] = []
        self.callers: list[SiteStats] = []
        self.submitters: dict[int, Submitter] = {}
        """By the number of a hold or wait: who waits for the work of its thread."""
        self._named: dict[int, Frame] = {}
        """By the number of a hold or wait: the caller that tells it apart."""
        self.findings: list[Finding] = []
        self.departed: list[Departed] = []

    def at(self, book: PoolBook, ledger: Ledger) -> None:
        """Take down what is out and who waits on one pool."""
        out, asked = book.open_holds(), book.open_waits(self.now)
        for each in (*out, *asked):
            if not hasattr(each, "number"):
                each.number = next(ledger.numbers)
        drafts = [self._draft(book, each) for each in out]
        requests = Counter(each.owner() for each in (*out, *asked))
        for draft in drafts:
            draft.one_of_several = requests[draft.checkout.owner()] > 1
        for draft in _again(drafts, asked):
            draft.again = True
            draft.seen = replace(draft.seen, still_there=0)
        self._drafts.append((book, drafts, asked))
        self.departed += [
            Departed(book.id, pid, self.now - closed, facts.record(self.now))
            for closed, facts in list(book.departed)
            if (pid := facts.backend_pid) is not None
            if _GRACE_S < self.now - closed < _FORGOTTEN_S
        ]

    def suspects(self) -> list[_Draft]:
        """Holds of which it matters who keeps them alive."""
        return [
            draft
            for _, drafts, _ in self._drafts
            for draft in drafts
            if suspicious(draft.seen) or draft.one_of_several
            if not draft.seen.dropped
        ]

    def judge(self, keeping: dict[int, Keeping]) -> None:
        """Turn what was taken down into records, with verdicts and findings."""
        for book, drafts, asked in self._drafts:
            self._name_callers(book, drafts, asked)
            judged = [
                self._hold(book, draft, keeping.get(draft.checkout.number))
                for draft in drafts
            ]
            holds = [hold for hold, _ in judged]
            out = [draft.checkout for draft in drafts]
            for checkout, hold in zip(out, holds, strict=True):
                if hold.verdict == "leaked":
                    book.found_leaked(checkout)
            waits = [self._wait(book, each) for each in asked]
            stats = book.stats(len(holds), len(waits))
            sites, by_caller = book.sites(self.now, out)
            self.pools.append(stats)
            self.holds += holds
            self.waits += waits
            self.sites += sites
            self.callers += by_caller
            self.findings += of_holds.of_holds(judged)
            self.findings += of_holds.collected(stats, book.collected_at())
            self.findings += of_pools.exhausted(stats, holds, waits)
            self.findings += of_pools.unpooled(stats)
            self.findings += of_holds.mostly_outside(stats, book.mostly_outside())
            self.findings += of_holds.fork_shared(stats, _inherited(out, holds))
            if not book.shared:  # one connection for all: nobody can wait for another
                mine = [
                    (draft.checkout, hold)
                    for draft, hold in zip(drafts, holds, strict=True)
                    if _in_its_hands(
                        draft.checkout,
                        hold,
                        keeping.get(draft.checkout.number),
                        draft.again,
                    )
                ]
                by_holder = _by_holder(mine, zip(asked, waits, strict=True))
                nested = of_pools.nested(stats, by_holder)
                self.findings += nested
                self.findings += of_pools.nested_before(
                    stats, list(book.nestings.seen.values()), self.now, nested
                )
                if not nested:
                    self.findings += of_pools.undersized(stats, holds, waits)

    def _name_callers(
        self, book: PoolBook, drafts: list[_Draft], asked: list[Checkout]
    ) -> None:
        stacks = [(draft.checkout, draft.stack) for draft in drafts]
        stacks += [(each, each.path.frames(self._now(each))) for each in asked]
        requests = {
            each.number: Request(site, stack, self._submitter(each).stack)
            for each, stack in stacks
            if (site := each.path.site()) is not None
        }
        self._named |= callers(requests, book.stacks())

    def open(self) -> list[Checkout]:
        """All holds and waits, the newest of a call site last."""
        every = [
            each
            for _, drafts, asked in self._drafts
            for each in (*(draft.checkout for draft in drafts), *asked)
        ]
        return sorted(every, key=lambda each: each.asked)

    def _submitter(self, checkout: Checkout) -> Submitter:
        return self.submitters.get(checkout.number, _NO_SUBMITTER)

    def _draft(self, book: PoolBook, checkout: Checkout) -> _Draft:
        now = self._now(checkout)
        stack = checkout.path.frames(now)
        held_s = max(0.0, self.now - checkout.taken)
        over = held_s >= book.long_after
        usage = checkout.usage
        seen = Seen(
            held_s=held_s,
            long_after=book.long_after,
            ended_owner=checkout.ended_owner(),
            long_hold=checkout.ambience.long_hold,
            detached=checkout in book.detached.values(),
            statement_s=usage.running_s(self.now) if usage is not None else None,
            taken_by=len(taking_frames(stack)) if over else 0,
            still_there=still_on_stack(stack, now) if over else 0,
            doing=doing(now) if over else None,
            keeping=None,
            unused_s=usage.unused_s(self.now) if usage and usage.timed else None,
            by_others=usage is not None and usage.by_others,
            dropped=checkout.is_dropped(),
        )
        return _Draft(checkout, now, stack, seen)

    def _hold(
        self, book: PoolBook, draft: _Draft, keeping: Keeping | None
    ) -> tuple[Hold, str | None]:
        checkout, seen = draft.checkout, draft.seen
        judgement = judge(seen if keeping is None else replace(seen, keeping=keeping))
        facts, usage = checkout.connection, checkout.usage
        statement = checkout.statement()
        used = _used(usage.path, draft) if usage and usage.path else ()
        timed = usage is not None and usage.timed
        unused_s = usage.unused_s(self.now) if timed and usage else None
        evidence = judgement.evidence
        if judgement.verdict != "ok" and usage and usage.path and unused_s:
            where = place(usage.path.site())
            evidence = (*evidence, f"last used at {where}, {duration(unused_s)} ago")
        submitter = self._submitter(checkout)
        hold = Hold(
            id=f"h{checkout.number}",
            pool=book.id,
            backend_pid=facts.backend_pid if facts else None,
            held_s=seen.held_s,
            waited_s=checkout.taken - checkout.asked,
            thread=checkout.holder.name,
            task=checkout.task.name if checkout.task else submitter.task,
            labels=checkout.ambience.labels,
            site=checkout.path.site(),
            stack=draft.stack + submitter.stack,
            now=draft.now,
            statement=None if statement is None else mask_literals(statement),
            in_sql_s=usage.in_sql_until(self.now) if timed and usage else None,
            in_transaction_idle_s=usage.idle_until(self.now)
            if timed and usage
            else None,
            verdict=judgement.verdict,
            evidence=evidence,
            server=None,
            connection=facts.record(self.now) if facts else None,
            used=used,
            unused_s=unused_s,
            caller=self._named.get(checkout.number),
        )
        return hold, judgement.kind

    def _wait(self, book: PoolBook, checkout: Checkout) -> Wait:
        submitter = self._submitter(checkout)
        return Wait(
            id=f"w{checkout.number}",
            pool=book.id,
            waited_s=max(0.0, self.now - checkout.asked),
            thread=checkout.holder.name,
            task=checkout.task.name if checkout.task else submitter.task,
            labels=checkout.ambience.labels,
            site=checkout.path.site(),
            stack=checkout.path.frames(self._now(checkout)) + submitter.stack,
            caller=self._named.get(checkout.number),
        )

    def _now(self, checkout: Checkout) -> tuple[Frame, ...]:
        if checkout.task is not None:
            thread = self.threads.get(checkout.holder.ident, ())
            return resolve(task_stack(checkout.task, thread))
        holder = checkout.holder
        if holder not in self._stacks:
            ended = holder.has_ended()  # then its ident may be another thread's by now
            pairs = () if ended else self.threads.get(holder.ident, ())
            self._stacks[holder] = resolve(pairs)
        return self._stacks[holder]


def _used(path: Path, draft: _Draft) -> tuple[Frame, ...]:
    """Where it was last used, completed by what the other two stacks show."""
    used = path.frames(draft.now)
    if draft.stack and draft.stack[-1] in used:
        return used
    return path.frames(draft.stack)


def _in_its_hands(
    checkout: Checkout, hold: Hold, keeping: Keeping | None, again: bool
) -> bool:
    """Whether who took it is also who uses it: not leaked, not handed over."""
    if hold.verdict == "leaked" or (checkout.usage and checkout.usage.by_others):
        return False
    if of_pools.still_there(hold) and not again:
        if keeping is not None and keeping.words is not None and not keeping.in_use:
            return False
        return keeping is None or keeping.in_use_by_taker is not False
    if keeping is None or keeping.in_use_by_taker is False:
        return False
    return keeping.in_use or keeping.hidden


def _again(drafts: list[_Draft], asked: list[Checkout]) -> Iterator[_Draft]:
    """Those whose function has asked for more since, in a later call or turn of a loop.

    That call is on the stack, and the one that took these is not: who has them cannot
    be told by the stack.
    """
    by_place: defaultdict[object, list[_Draft]] = defaultdict(list)
    moments: defaultdict[object, list[float]] = defaultdict(list)
    for draft in drafts:
        if draft.one_of_several:
            mine = draft.checkout
            by_place[_place_of(mine)].append(draft)
            moments[_place_of(mine)].append(mine.taken)
    for wait in asked:
        moments[_place_of(wait)].append(wait.asked)
    for at, group in by_place.items():
        site = group[0].checkout.path.site()
        if site is None or len(moments[at]) == 1:
            continue
        name = site.file, site.function
        calls = sum((frame.file, frame.function) == name for frame in group[0].now)
        in_turn = sorted(moments[at])
        for draft in group:
            later = len(in_turn) - bisect_right(in_turn, draft.checkout.taken)
            if later >= calls > 0:
                yield draft


def _place_of(checkout: Checkout) -> object:
    return checkout.owner(), checkout.path.site()


def _inherited(out: list[Checkout], holds: list[Hold]) -> list[Hold]:
    """Holds of connections that were opened before a fork."""
    return [
        hold
        for checkout, hold in zip(out, holds, strict=True)
        if checkout.connection and checkout.connection.process != os.getpid()
    ]


def _by_holder(
    mine: list[tuple[Checkout, Hold]], waiting: Iterable[tuple[Checkout, Wait]]
) -> dict[object, tuple[list[Hold], list[Wait]]]:
    groups: dict[object, tuple[list[Hold], list[Wait]]] = defaultdict(lambda: ([], []))
    for checkout, hold in mine:
        groups[checkout.owner()][0].append(hold)
    for checkout, wait in waiting:
        groups[checkout.owner()][1].append(wait)
    return groups
