"""One reading of the ledger: the open holds and waits of all pools, with evidence."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from poolwatch.agent.submitters import NO_SUBMITTER, Submitter
from poolwatch.diagnosis.evidence import HoldEvidence
from poolwatch.diagnosis.verdicts import suspicious
from poolwatch.ledger.checkout import Checkout, ConnectionFacts
from poolwatch.ledger.pool import PoolLedger
from poolwatch.ledger.pool_over_pool import sessions_of
from poolwatch.ledger.slots import Failed
from poolwatch.model import ClosedConnection, Frame
from poolwatch.stacks.capture import resolve
from poolwatch.stacks.classify import activity_of
from poolwatch.stacks.compare import still_on_stack, user_frames
from poolwatch.stacks.current import holder_stack, task_stack, thread_stacks
from poolwatch.stacks.holder import Holder

_GRACE_S = 1.0
"""Time for the server to end the session of a closed connection."""
_CLOSING_S = 2.5
"""Time for the application to close a connection of a failed request."""
_DEPARTED_S = 600.0
"""Time for which a closed connection is compared with the server's sessions."""


@dataclass(slots=True)
class OpenRequests:
    """The open holds and waits of one pool."""

    pool: PoolLedger
    holds: dict[Checkout, HoldEvidence]
    waits: list[Checkout]

    def leave_out_ended(self) -> None:
        """Drop the holds and waits that have ended since they were read."""
        out = set(self.pool.recorded_holds())
        waiting = frozenset(tuple(self.pool.waits.values()))  # other threads change it
        self.holds = {
            hold: evidence for hold, evidence in self.holds.items() if hold in out
        }
        self.waits = [wait for wait in self.waits if wait in waiting]

    def mark_nested(self) -> None:
        """Mark the inner and outer holds of the nested requests in the ledger."""
        for request in (*self.holds, *self.waits):
            outer = [hold for hold in request.within if hold in self.holds]
            for each in (request, *outer) if outer else ():
                if each in self.holds:
                    self.holds[each].nested = True


class LedgerReading:
    """All pools of the ledger, read at one time without changing the application."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self._threads = thread_stacks()
        self.pools: list[OpenRequests] = []
        self.departed: list[ClosedConnection] = []
        self.submitters: dict[int, Submitter] = {}
        """By request number: the code that waits for the request's worker thread."""
        self._stacks: dict[Holder, tuple[Frame, ...]] = {}

    def read(self, pool: PoolLedger, numbers: Iterator[int]) -> None:
        """Add one pool; requests without a number get the next of ``numbers``."""
        open_holds, waits = pool.open_holds(), pool.open_waits(self.now)
        for each in (*open_holds, *waits):
            if not each.number:
                each.number = next(numbers)
        holds = {each: self._evidence(pool, each) for each in open_holds}
        for each in list(pool.detached.values()):
            if each in holds:
                holds[each].detached = True
        requests = Counter([each.requester() for each in (*open_holds, *waits)])
        for evidence in holds.values():
            evidence.one_of_several = requests[evidence.owner] > 1
        for evidence in _requested_again(holds, waits):
            evidence.called_again = True
            evidence.frames_left = 0
        self.pools.append(OpenRequests(pool, holds, waits))

    def read_closed(self, pools: Sequence[PoolLedger]) -> None:
        """Add the connections that are closed, or in no pool, to :attr:`departed`.

        One that any pool has is neither: the pool over it may have closed it.
        """
        if not any(pool.recently_closed or pool.slots.stranded for pool in pools):
            return
        sessions = {each for pool in pools for each in sessions_of(pool)}
        for pool in pools:
            gone: list[tuple[float, float, ConnectionFacts, Failed | None]] = [
                (closed, _GRACE_S, facts, None)
                for closed, facts in list(pool.recently_closed)
            ]
            gone += [
                (failed.at, _CLOSING_S, facts, failed)
                for failed, facts in list(pool.slots.stranded)
            ]
            self.departed += [
                ClosedConnection(
                    pool.id,
                    pid,
                    self.now - since,
                    facts.record(self.now),
                    failed and failed.error,
                    failed and failed.stack.site(),
                )
                for since, grace, facts, failed in gone
                if (pid := facts.backend_pid) is not None
                if grace < self.now - since < _DEPARTED_S
                if facts.session not in sessions
            ]

    def leave_out_outer_waits(self) -> None:
        """Drop the waits of a pool that takes its connections from another pool, where
        the same request waits: it is one wait.
        """
        waiting = {
            (requests.pool.id, wait.requester())
            for requests in self.pools
            for wait in requests.waits
        }
        for requests in self.pools:
            requests.waits = [
                wait
                for wait in requests.waits
                if not any(
                    (inner, wait.requester()) in waiting
                    for inner in requests.pool.lending.over
                )
            ]

    def _evidence(self, pool: PoolLedger, hold: Checkout) -> HoldEvidence:
        now = self.stack_now(hold)
        usage = hold.usage
        evidence = HoldEvidence(
            held_s=max(0.0, self.now - hold.checked_out_at),
            long_after=pool.long_after,
            ended_owner=hold.ended_owner(),
            long_hold=hold.context.long_hold,
            dropped=hold.is_dropped(),
            stack=hold.stack.frames(now),
            now=now,
            site=hold.stack.site(),
            owner=hold.requester(),
        )
        if usage is not None:
            evidence.statement_s = usage.running_s(self.now)
            evidence.unused_s = usage.unused_s(self.now)
            evidence.by_others = usage.by_others
        if evidence.held_s >= evidence.long_after:
            evidence.frames_at_checkout = len(user_frames(evidence.stack))
            evidence.frames_left = still_on_stack(evidence.stack, now)
            evidence.activity = activity_of(now)
            evidence.used = usage.stack.frames() if usage and usage.stack else ()
        return evidence

    def holds(self) -> list[tuple[Checkout, HoldEvidence]]:
        """Return the holds of all pools."""
        return [each for pool in self.pools for each in pool.holds.items()]

    def suspects(self) -> dict[Checkout, HoldEvidence]:
        """Return the holds whose reference paths must be searched."""
        return {
            hold: evidence
            for hold, evidence in self.holds()
            if (evidence.one_of_several or suspicious(evidence))
            and not evidence.dropped
        }

    def requests(self) -> list[Checkout]:
        """Return all holds and waits in the order of their requests."""
        requests = [each for pool in self.pools for each in (*pool.holds, *pool.waits)]
        return sorted(requests, key=lambda each: each.requested_at)

    def verify(self) -> None:
        """Drop holds and waits that have ended since they were read.

        Stacks, holds, waits and references are read one after the other. They are
        consistent only if the holds and waits are unchanged at the end, and if the
        code that checked out a suspect has neither returned nor been called again
        meanwhile.
        """
        self._stacks.clear()
        if any(pool.waits for pool in self.pools) or any(
            evidence.held_s >= evidence.long_after for _, evidence in self.holds()
        ):
            self._threads = thread_stacks()
        for pool in self.pools:
            pool.leave_out_ended()
        for hold, evidence in self.suspects().items():
            if evidence.held_s >= evidence.long_after and not evidence.called_again:
                now = self.stack_now(hold)
                if now != evidence.now:
                    still = still_on_stack(evidence.stack, now)
                    evidence.stack_changed |= still != evidence.frames_left

    def submitter(self, request: Checkout) -> Submitter:
        """Return the code that waits for a request's worker thread."""
        return self.submitters.get(request.number, NO_SUBMITTER)

    def stack_now(self, request: Checkout) -> tuple[Frame, ...]:
        """Return the current stack of a request's holder; empty if it has ended."""
        holder = request.holder
        if request.task is not None:
            thread = self._threads.get(holder.thread_ident, ())
            return resolve(task_stack(request.task, thread))
        if holder not in self._stacks:
            self._stacks[holder] = resolve(holder_stack(holder, self._threads))
        return self._stacks[holder]


def _requested_again(
    holds: dict[Checkout, HoldEvidence], waits: Iterable[Checkout]
) -> Iterator[HoldEvidence]:
    """Yield the holds whose function has requested another connection since.

    The frames of that function on the stack belong to the later calls, so the stack
    does not show who uses the earlier holds.
    """
    holds_at: defaultdict[object, list[Checkout]] = defaultdict(list)
    times_at: defaultdict[object, list[float]] = defaultdict(list)
    for hold, evidence in holds.items():
        if evidence.one_of_several:
            holds_at[evidence.owner, evidence.site].append(hold)
            times_at[evidence.owner, evidence.site].append(hold.checked_out_at)
    for wait in waits:
        times_at[wait.requester(), wait.stack.site()].append(wait.requested_at)
    for place, group in holds_at.items():
        site, now = holds[group[0]].site, holds[group[0]].now
        if site is None or len(times_at[place]) == 1:
            continue
        file, _, function = site
        calls = len([f for f in now if f.function == function and f.file == file])
        times = sorted(times_at[place])
        for hold in group:
            later = len(times) - bisect_right(times, hold.checked_out_at)
            if later >= calls > 0:
                yield holds[hold]
