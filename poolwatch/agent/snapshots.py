"""From the books of this process to a frozen snapshot: the ledger as a Source."""

from __future__ import annotations

import gc
import os
import platform
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from poolwatch.agent.frozen import Freezer
from poolwatch.agent.submitters import Submitter, Submitters
from poolwatch.diagnosis import holds as of_holds
from poolwatch.diagnosis import pools as of_pools
from poolwatch.diagnosis.churn import churned
from poolwatch.diagnosis.common import by_severity
from poolwatch.diagnosis.verdicts import Keeping, Seen, is_unused, judge, suspicious
from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.ledger import Ledger
from poolwatch.ledger.pool import PoolLedger
from poolwatch.ledger.settings import process_name
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
from poolwatch.runtime.gc_pause import undisturbed
from poolwatch.runtime.program import parent, program
from poolwatch.stacks.callers import Request, callers
from poolwatch.stacks.capture import Pairs, Path, resolve
from poolwatch.stacks.classify import doing
from poolwatch.stacks.compare import still_on_stack, taking_frames
from poolwatch.stacks.current import holder_stack, task_stack, thread_stacks
from poolwatch.stacks.holder import Holder
from poolwatch.text.format import duration, place
from poolwatch.text.masking import mask_literals
from poolwatch.version import VERSION

_STARTED = datetime.now(UTC).isoformat(timespec="seconds")


_TRUST_S = 3.0
"""How long the answer to "who keeps it alive" is used again, at least ..."""
_SHARE = 50
"""... and for so many times what it cost: never more than 2 % of a core."""
_LONGEST_S = 1.0
"""A look that has taken longer does not search once more: a viewer waits for it."""
_AGREED = 2
"""Looks in a row that must find a hold leaked before it is logged and counted."""


_NO_SUBMITTER = Submitter((), None)

_GRACE_S = 1.0
"""A server needs a moment to end the session of a connection that was closed."""
_FORGOTTEN_S = 600.0


@dataclass(slots=True)
class _Answer:
    """What searches have found out about one hold."""

    at: float
    """``time.monotonic()`` of the last search."""
    keeping: Keeping
    now: tuple[Frame, ...]
    """Where its holder was at that time."""
    looks: int = 0
    """Looks in a row whose searches found nothing that uses it."""
    confirmed: bool = False
    """A second search of the same look found nothing, either."""


class LedgerSource:
    """Looks at the ledger of the process it runs in."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.forget()
        self._submitters = Submitters()
        self.freezer = Freezer()

    def forget(self) -> None:
        """Begin anew: in a forked child, or when no pool is left."""
        self._answers: dict[int, _Answer] = {}
        """By the number of the hold."""
        self._trust_s = _TRUST_S
        self._asked = float("-inf")
        self._cost_s = 0.0
        """Computing time of the last look's searches."""
        self._left_out: tuple[str, ...] = ()
        self._lets_collect = False
        """A search has found nothing that refers to some connection: it is garbage that
        an idle process does not collect. A young collection, which is what our looks
        hold back, mostly proves it."""

    def snapshot(self) -> Snapshot:
        """Return this process as it is now; reads no database and blocks nobody."""
        return Snapshot((self.process(),))

    def process(self, *, search: bool = True) -> Process:
        """Return the one process of the snapshot.

        Without ``search`` nobody is asked anew who keeps a connection alive: what the
        watchdog has found out is used. That is for the application's own threads, an
        event loop's above all, which must not wait for a search.
        """
        process = undisturbed(lambda: self._process(search))
        if self._lets_collect and gc.isenabled():
            self._lets_collect = False
            gc.collect(1)
        return process

    def _process(self, search: bool) -> Process:
        look = _Look(thread_stacks())
        for book in list(self._ledger.books.values()):
            look.at(book, self._ledger)
        if search:
            self._search(look)
        else:
            look.verify()
        look.submitters = self._submitters.of(look.open(), look.threads)
        look.judge(self._known(look), self.is_agreed)
        look.findings += churned(self._ledger.origins.records(look.now), look.pools)
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
            findings=by_severity(look.findings),
            departed=tuple(look.departed),
            frozen=self.freezer.marks(),
            left_out=self._left_out,
        )
        self.freezer.consider(process)
        return process

    def is_agreed(self, number: int) -> bool:
        """Whether two looks in a row have found a hold leaked: then it is reported."""
        answer = self._answers.get(number)
        return answer is not None and answer.looks >= _AGREED

    def awaits_a_second_look(self) -> bool:
        """Whether the last look found a leak that another one has to agree to."""
        return any(0 < a.looks < _AGREED for a in list(self._answers.values()))

    def _search(self, look: _Look) -> None:
        """Find out who uses the suspects, if the last answers are too old.

        What is found unused is searched for once more: a connection may have moved
        from one frame to another, and both were read at a moment when it was not
        there. Each time the holds are verified afterwards.
        """
        numbers = {draft.checkout.number for draft in look.suspects()}
        for number in list(self._answers):
            if number not in numbers:
                self._answers.pop(number, None)
        if self._is_due(look):
            self._cost_s = 0.0
            self._ask(look, look.suspects())
            unused = [d for d in look.suspects() if self._is_unused(d)]
            twice = bool(unused) and time.monotonic() - look.now < _LONGEST_S
            if twice:
                self._ask(look, unused)
            for draft in look.suspects():
                answer = self._answers.get(draft.checkout.number)
                if answer is not None:
                    answer.looks = answer.looks + 1 if self._is_unused(draft) else 0
                    answer.confirmed = twice
            self._trust_s = max(_TRUST_S, _SHARE * self._cost_s)
            self._asked = look.now
            self._lets_collect = any(
                answer.keeping.words is None and answer.keeping.complete
                for answer in self._answers.values()
            )
        look.verify()

    def _ask(self, look: _Look, suspects: list[_Draft]) -> None:
        import poolwatch.diagnosis.references.search  # noqa: F401 - loading it is no part of the cost

        began = time.thread_time()
        found, self._left_out = _ask(suspects)
        self._cost_s += time.thread_time() - began
        look.verify()
        for draft in suspects:
            number = draft.checkout.number
            before = self._answers.get(number)
            if draft.moved:
                self._answers.pop(number, None)
            elif number in found:
                looks = before.looks if before is not None else 0
                self._answers[number] = _Answer(
                    look.now, found[number], draft.now, looks
                )

    def _is_due(self, look: _Look) -> bool:
        """Whether to search now: for old answers if the share of a core allows it.

        The look that is to agree with a first one comes at once, and once only.
        """
        if any(self._is_to_be_agreed(draft) for draft in look.suspects()):
            return True
        affordable = look.now - self._asked >= self._trust_s - _TRUST_S
        return affordable and any(
            (answer := self._answers.get(draft.checkout.number)) is None
            or look.now - answer.at > self._trust_s
            for draft in look.suspects()
        )

    def _is_to_be_agreed(self, draft: _Draft) -> bool:
        answer = self._answers.get(draft.checkout.number)
        return (
            answer is not None
            and answer.looks < _AGREED
            and self._is_unused(draft)  # perhaps found before it was suspicious
        )

    def _is_unused(self, draft: _Draft) -> bool:
        answer = self._answers.get(draft.checkout.number)
        if answer is None or not suspicious(draft.seen):
            return False
        return is_unused(answer.keeping)

    def _known(self, look: _Look) -> dict[int, Keeping]:
        """The answers that hold for this look.

        That nothing uses a connection takes two searches, and it is true of the stack
        at which it was found out, until a second look has agreed.
        """
        known = {}
        for draft in look.drafts():
            answer = self._answers.get(draft.checkout.number)
            if answer is None or draft.moved:
                continue
            certain = (
                answer.looks >= _AGREED
                or not self._is_unused(draft)
                or (answer.confirmed and _is_where_it_was(draft, answer))
            )
            keeping = (
                answer.keeping if certain else replace(answer.keeping, pending=True)
            )
            known[draft.checkout.number] = keeping
        return known


def _is_where_it_was(draft: _Draft, answer: _Answer) -> bool:
    """Whether the holder's stack is that of the search, but for libraries and lines."""
    if answer.now == draft.now:
        return True
    one, other = taking_frames(answer.now), taking_frames(draft.now)
    return [(f.file, f.function) for f in one] == [(f.file, f.function) for f in other]


def _ask(drafts: list[_Draft]) -> tuple[dict[int, Keeping], tuple[str, ...]]:
    from poolwatch.diagnosis.references.hidden import may_hide
    from poolwatch.diagnosis.references.search import (
        keepers_of,  # only a suspicion needs it
    )

    suspects = {str(draft.checkout.number): draft.checkout for draft in drafts}
    proxies = {number: each.proxy for number, each in suspects.items()}
    takers = {number: each.taker() for number, each in suspects.items()}
    result = keepers_of(proxies, takers)
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
            unseen=result.unseen,
            at=keeper.frame if keeper is not None else None,
            direct=keeper is not None and keeper.direct,
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
    moved: bool = False
    """The code that took it has returned, or come back, while it was looked at."""


class _Look:
    """One look at all pools, at one moment."""

    def __init__(self, threads: dict[int, Pairs]) -> None:
        self.now = time.monotonic()
        self.threads = threads
        self._stacks: dict[Holder, tuple[Frame, ...]] = {}
        self._drafts: list[tuple[PoolLedger, list[_Draft], list[Checkout]]] = []
        self.pools: list[PoolStats] = []
        self.holds: list[Hold] = []
        self.waits: list[Wait] = []
        self.sites: list[SiteStats] = []
        self.callers: list[SiteStats] = []
        self.submitters: dict[int, Submitter] = {}
        """Who waits for the work of its thread, by the number of a hold or wait."""
        self._named: dict[int, Frame] = {}
        """The caller that tells it apart, by the number of a hold or wait."""
        self.findings: list[Finding] = []
        self.departed: list[Departed] = []

    def at(self, book: PoolLedger, ledger: Ledger) -> None:
        """Take down what is out and who waits on one pool."""
        out, asked = book.open_holds(), book.open_waits(self.now)
        for each in (*out, *asked):
            if not each.number:
                each.number = next(ledger.numbers)
        detached = {id(each) for each in list(book.detached.values())}
        drafts = [self._draft(book, each, id(each) in detached) for each in out]
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

    def drafts(self) -> list[_Draft]:
        """The holds of all pools."""
        return [draft for _, drafts, _ in self._drafts for draft in drafts]

    def suspects(self) -> list[_Draft]:
        """Holds of which it matters who keeps them alive."""
        return [
            draft
            for draft in self.drafts()
            if suspicious(draft.seen) or draft.one_of_several
            if not draft.seen.dropped
        ]

    def verify(self) -> None:
        """Leave out what has ended since it was taken down.

        Stacks, holds, waits and references are read one after the other. They belong
        together only if the holds and waits are the same at the end, and the code that
        took a suspect has neither returned nor come back meanwhile.
        """
        self.threads = thread_stacks()
        self._stacks.clear()
        for at, (book, drafts, asked) in enumerate(self._drafts):
            out = {id(each) for each in book.out()}
            waiting = {id(each) for each in list(book.waits.values())}
            self._drafts[at] = (
                book,
                [each for each in drafts if id(each.checkout) in out],
                [each for each in asked if id(each) in waiting],
            )
        for draft in self.suspects():
            if draft.seen.held_s >= draft.seen.long_after and not draft.again:
                now = self._now(draft.checkout)
                if now != draft.now:
                    still = still_on_stack(draft.stack, now)
                    draft.moved |= still != draft.seen.still_there

    def judge(
        self, keeping: dict[int, Keeping], is_agreed: Callable[[int], bool]
    ) -> None:
        """Turn what was taken down into records, with verdicts and findings.

        A leak is counted if it is proven, or if ``is_agreed`` says so of its number.
        """
        for book, drafts, asked in self._drafts:
            self._name_callers(book, drafts, asked)
            judged = [
                self._hold(book, draft, keeping.get(draft.checkout.number))
                for draft in drafts
            ]
            holds = [hold for hold, _ in judged]
            out = [draft.checkout for draft in drafts]
            for checkout, hold in zip(out, holds, strict=True):
                if hold.verdict == "leaked" and (
                    checkout.is_dropped() or is_agreed(checkout.number)
                ):
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
            self.findings += of_holds.fork_shared(
                stats,
                _inherited(out, holds),
                [use.record(self.now) for use in list(book.inherited.values())],
            )
            if not book.shared:  # one connection for all: nobody can wait for another
                nesting = _nesting(drafts, asked)
                mine = [
                    (draft.checkout, hold)
                    for draft, hold in zip(drafts, holds, strict=True)
                    if _in_its_hands(
                        draft, hold, keeping.get(draft.checkout.number), nesting
                    )
                ]
                by_holder = _by_holder(mine, zip(asked, waits, strict=True))
                nested = of_pools.nested(stats, by_holder)
                self.findings += nested
                self.findings += of_pools.nested_before(
                    stats,
                    book.nestings.records(self.now),
                    nested,
                )
                if not nested:
                    self.findings += of_pools.undersized(stats, holds, waits)

    def _name_callers(
        self, book: PoolLedger, drafts: list[_Draft], asked: list[Checkout]
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

    def _draft(self, book: PoolLedger, checkout: Checkout, detached: bool) -> _Draft:
        now = self._now(checkout)
        stack = checkout.path.frames(now)
        held_s = max(0.0, self.now - checkout.taken)
        over = held_s >= book.long_after
        usage = checkout.usage
        seen = Seen(
            held_s=held_s,
            long_after=book.long_after,
            ended_owner=checkout.ended_owner(),
            long_hold=checkout.context.long_hold,
            detached=detached,
            statement_s=usage.running_s(self.now) if usage is not None else None,
            taken_by=len(taking_frames(stack)) if over else 0,
            still_there=still_on_stack(stack, now) if over else 0,
            doing=doing(now) if over else None,
            keeping=None,
            unused_s=usage.unused_s(self.now) if usage else None,
            used=usage.path.frames() if over and usage and usage.path else (),
            by_others=usage is not None and usage.by_others,
            dropped=checkout.is_dropped(),
        )
        return _Draft(checkout, now, stack, seen)

    def _hold(
        self, book: PoolLedger, draft: _Draft, keeping: Keeping | None
    ) -> tuple[Hold, str | None]:
        checkout, seen = draft.checkout, draft.seen
        judgement = judge(seen if keeping is None else replace(seen, keeping=keeping))
        facts, usage = checkout.facts, checkout.usage
        statement = checkout.statement()
        used = _used(usage.path, draft) if usage and usage.path else ()
        unused_s = usage.unused_s(self.now) if usage else None
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
            labels=checkout.context.labels,
            site=checkout.path.site(),
            stack=draft.stack + submitter.stack,
            now=draft.now,
            statement=None if statement is None else mask_literals(statement),
            in_sql_s=usage.in_sql_until(self.now) if usage else None,
            in_transaction_idle_s=usage.idle_until(self.now) if usage else None,
            verdict=judgement.verdict,
            evidence=evidence,
            server=None,
            connection=facts.record(self.now) if facts else None,
            used=used,
            unused_s=unused_s,
            caller=self._named.get(checkout.number),
        )
        return hold, judgement.kind

    def _wait(self, book: PoolLedger, checkout: Checkout) -> Wait:
        submitter = self._submitter(checkout)
        return Wait(
            id=f"w{checkout.number}",
            pool=book.id,
            waited_s=max(0.0, self.now - checkout.asked),
            thread=checkout.holder.name,
            task=checkout.task.name if checkout.task else submitter.task,
            labels=checkout.context.labels,
            site=checkout.path.site(),
            stack=checkout.path.frames(self._now(checkout)) + submitter.stack,
            caller=self._named.get(checkout.number),
        )

    def _now(self, checkout: Checkout) -> tuple[Frame, ...]:
        if checkout.task is not None:
            thread = self.threads.get(checkout.holder.thread_ident, ())
            return resolve(task_stack(checkout.task, thread))
        holder = checkout.holder
        if holder not in self._stacks:
            self._stacks[holder] = resolve(holder_stack(holder, self.threads))
        return self._stacks[holder]


def _used(path: Path, draft: _Draft) -> tuple[Frame, ...]:
    """Where it was last used, completed by what the other two stacks show."""
    used = path.frames(draft.now)
    if draft.stack and draft.stack[-1] in used:
        return used
    return path.frames(draft.stack)


def _nesting(drafts: list[_Draft], asked: list[Checkout]) -> set[Checkout]:
    """Open holds that were noted as nested, or as what a request is nested in."""
    out = {draft.checkout for draft in drafts}
    found = set()
    for request in (*out, *asked):
        outer = out.intersection(request.within)
        if outer:
            found |= {request, *outer}
    return found


def _in_its_hands(
    draft: _Draft, hold: Hold, keeping: Keeping | None, nesting: set[Checkout]
) -> bool:
    """Whether the holder is also the one that uses it: not leaked, not handed over."""
    usage = draft.checkout.usage
    if hold.verdict == "leaked" or (usage and usage.by_others):
        return False
    if draft.checkout in nesting:
        return keeping is None or keeping.in_use_by_taker is not False
    if of_pools.still_there(hold) and not draft.again:
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
        if checkout.facts and checkout.facts.process != os.getpid()
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
