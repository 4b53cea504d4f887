"""The open holds and waits of all pools at one moment, and what is known of them."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from poolwatch.agent.submitters import NO_SUBMITTER, Submitter
from poolwatch.diagnosis.evidence import HoldEvidence
from poolwatch.diagnosis.verdicts import suspicious
from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.pool import PoolLedger
from poolwatch.model import Departed, Frame
from poolwatch.stacks.capture import resolve
from poolwatch.stacks.classify import activity_of
from poolwatch.stacks.compare import still_on_stack, taking_frames
from poolwatch.stacks.current import holder_stack, task_stack, thread_stacks
from poolwatch.stacks.holder import Holder

_GRACE_S = 1.0
"""A server needs a moment to end the session of a connection that was closed."""
_FORGOTTEN_S = 600.0
"""How long a closed connection is compared with the server's sessions."""


@dataclass(slots=True)
class OpenRequests:
    """The open holds and waits of one pool."""

    book: PoolLedger
    holds: dict[Checkout, HoldEvidence]
    waits: list[Checkout]

    def leave_out_ended(self) -> None:
        """Drop the holds and waits that have ended since they were read."""
        out = set(self.book.out())
        waiting = frozenset(tuple(self.book.waits.values()))  # others write to it
        self.holds = {hold: seen for hold, seen in self.holds.items() if hold in out}
        self.waits = [wait for wait in self.waits if wait in waiting]

    def mark_nested(self) -> None:
        """Mark the holds that the ledger has noted as nested, or as the outer one."""
        for request in (*self.holds, *self.waits):
            outer = [hold for hold in request.within if hold in self.holds]
            for each in (request, *outer) if outer else ():
                if each in self.holds:
                    self.holds[each].nested = True


class Moment:
    """All pools at one moment. Reads them; changes nothing of the application's."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self._threads = thread_stacks()
        self.pools: list[OpenRequests] = []
        self.departed: list[Departed] = []
        self.submitters: dict[int, Submitter] = {}
        """Who waits for the work of a request's thread, by the request's number."""
        self._stacks: dict[Holder, tuple[Frame, ...]] = {}

    def read(self, book: PoolLedger, numbers: Iterator[int]) -> None:
        """Add one pool; ``numbers`` are given to requests that have none yet."""
        out, waits = book.open_holds(), book.open_waits(self.now)
        for each in (*out, *waits):
            if not each.number:
                each.number = next(numbers)
        holds = {each: self._evidence(book, each) for each in out}
        for each in list(book.detached.values()):
            if each in holds:
                holds[each].detached = True
        requests = Counter([each.owner() for each in (*out, *waits)])
        for seen in holds.values():
            seen.one_of_several = requests[seen.owner] > 1
        for seen in _taken_again(holds, waits):
            seen.called_again = True
            seen.frames_left = 0
        self.pools.append(OpenRequests(book, holds, waits))
        self.departed += [
            Departed(book.id, pid, self.now - closed, facts.record(self.now))
            for closed, facts in list(book.departed)
            if (pid := facts.backend_pid) is not None
            if _GRACE_S < self.now - closed < _FORGOTTEN_S
        ]

    def _evidence(self, book: PoolLedger, hold: Checkout) -> HoldEvidence:
        now = self.stack_now(hold)
        usage = hold.usage
        seen = HoldEvidence(
            held_s=max(0.0, self.now - hold.taken),
            long_after=book.long_after,
            ended_owner=hold.ended_owner(),
            long_hold=hold.context.long_hold,
            dropped=hold.is_dropped(),
            stack=hold.path.frames(now),
            now=now,
            site=hold.path.site(),
            owner=hold.owner(),
        )
        if usage is not None:
            seen.statement_s = usage.running_s(self.now)
            seen.unused_s = usage.unused_s(self.now)
            seen.by_others = usage.by_others
        if seen.held_s >= seen.long_after:
            seen.frames_at_checkout = len(taking_frames(seen.stack))
            seen.frames_left = still_on_stack(seen.stack, now)
            seen.activity = activity_of(now)
            seen.used = usage.path.frames() if usage and usage.path else ()
        return seen

    def holds(self) -> list[tuple[Checkout, HoldEvidence]]:
        """The holds of all pools."""
        return [each for pool in self.pools for each in pool.holds.items()]

    def suspects(self) -> dict[Checkout, HoldEvidence]:
        """The holds whose reference paths matter."""
        return {
            hold: seen
            for hold, seen in self.holds()
            if (seen.one_of_several or suspicious(seen)) and not seen.dropped
        }

    def requests(self) -> list[Checkout]:
        """All holds and waits, the newest of a call site last."""
        every = [each for pool in self.pools for each in (*pool.holds, *pool.waits)]
        return sorted(every, key=lambda each: each.asked)

    def verify(self) -> None:
        """Leave out what has ended since it was read.

        Stacks, holds, waits and references are read one after the other. They belong
        together only if the holds and waits are the same at the end, and if the code
        that took a suspect has neither returned nor come back meanwhile.
        """
        self._stacks.clear()
        if any(pool.waits for pool in self.pools) or any(
            seen.held_s >= seen.long_after for _, seen in self.holds()
        ):
            self._threads = thread_stacks()
        for pool in self.pools:
            pool.leave_out_ended()
        for hold, seen in self.suspects().items():
            if seen.held_s >= seen.long_after and not seen.called_again:
                now = self.stack_now(hold)
                if now != seen.now:
                    still = still_on_stack(seen.stack, now)
                    seen.stack_changed |= still != seen.frames_left

    def submitter(self, request: Checkout) -> Submitter:
        """The code that waits for the work of a request's thread."""
        return self.submitters.get(request.number, NO_SUBMITTER)

    def stack_now(self, request: Checkout) -> tuple[Frame, ...]:
        """The stack of a request's holder; empty if it has ended."""
        holder = request.holder
        if request.task is not None:
            thread = self._threads.get(holder.thread_ident, ())
            return resolve(task_stack(request.task, thread))
        if holder not in self._stacks:
            self._stacks[holder] = resolve(holder_stack(holder, self._threads))
        return self._stacks[holder]


def _taken_again(
    holds: dict[Checkout, HoldEvidence], waits: Iterable[Checkout]
) -> Iterator[HoldEvidence]:
    """Holds whose function has asked for more since, in a later call or loop turn.

    That later call is on the stack, and the call that took these is not: the stack
    does not tell who has them.
    """
    by_place: defaultdict[object, list[Checkout]] = defaultdict(list)
    moments: defaultdict[object, list[float]] = defaultdict(list)
    for hold, seen in holds.items():
        if seen.one_of_several:
            place = seen.owner, seen.site
            by_place[place].append(hold)
            moments[place].append(hold.taken)
    for wait in waits:
        moments[wait.owner(), wait.path.site()].append(wait.asked)
    for at, group in by_place.items():
        site, now = holds[group[0]].site, holds[group[0]].now
        if site is None or len(moments[at]) == 1:
            continue
        file, _, function = site
        calls = len([f for f in now if f.function == function and f.file == file])
        in_turn = sorted(moments[at])
        for hold in group:
            later = len(in_turn) - bisect_right(in_turn, hold.taken)
            if later >= calls > 0:
                yield holds[hold]
