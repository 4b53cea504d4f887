"""One reading of the ledger: the open holds and waits of all pools, with evidence."""

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
from poolwatch.model import ClosedConnection, Frame
from poolwatch.stacks.capture import resolve
from poolwatch.stacks.classify import activity_of
from poolwatch.stacks.compare import count_and_pair, still_on_stack, user_frames
from poolwatch.stacks.current import (
    holder_frames,
    holder_stack,
    task_frames,
    task_stack,
    thread_stacks,
)
from poolwatch.stacks.holder import Holder

_GRACE_S = 1.0
"""Time for the server to end the session of a closed connection."""
_DEPARTED_S = 600.0
"""Time for which a closed connection is compared with the server's sessions."""


_MAX_EXAMINED = 100
"""Most holds for which the variables on the stack are read."""


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
        self._examined = 0
        """Holds for which the variables on the stack have been read."""

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
        self.departed += [
            ClosedConnection(pool.id, pid, self.now - closed, facts.record(self.now))
            for closed, facts in list(pool.recently_closed)
            if (pid := facts.backend_pid) is not None
            if _GRACE_S < self.now - closed < _DEPARTED_S
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
            left, both = count_and_pair(evidence.stack, now)
            evidence.frames_left = left
            self._compare_calls(hold, evidence, both)
            evidence.activity = activity_of(now)
            evidence.used = usage.stack.frames() if usage and usage.stack else ()
        return evidence

    def _compare_calls(
        self, hold: Checkout, evidence: HoldEvidence, both: list[tuple[int, int]]
    ) -> None:
        """Note a later call of the function that checked out, and a stopped loop."""
        from poolwatch.diagnosis.references import calls, loops  # for a long hold only

        running = None if hold.task is None else hold.task.task()
        if running is not None and not running.done():
            loop = loops.loop_of(running)
            evidence.loop_stopped = loop is not None and loops.is_stopped(loop)
        if evidence.loop_stopped:
            evidence.frames_left = 0
        if not 0 < evidence.frames_at_checkout == evidence.frames_left:
            return
        stacks = calls.Stacks(hold.stack.near(), evidence.stack, evidence.now, both)
        if not stacks.are_of_one_thread():
            return
        again = stacks.callers_moved_on()
        if not again and self._examined < _MAX_EXAMINED:
            self._examined += 1
            task = hold.task
            frames = task_frames(task) if task else holder_frames(hold.holder)
            again = stacks.variables_differ(frames, hold.proxy())
        if again:
            evidence.called_again = True
            evidence.frames_left = 0

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
