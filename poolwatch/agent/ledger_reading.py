"""One reading of the ledger: the open holds and waits of all pools, with evidence."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from poolwatch.adapters.connection_facts import has_listeners
from poolwatch.agent.idle_connections import idle_connections, returned_connections
from poolwatch.agent.poolers import note_pooler
from poolwatch.agent.submitters import NO_SUBMITTER, Submitter
from poolwatch.diagnosis.evidence import HoldEvidence
from poolwatch.diagnosis.verdicts import suspicious
from poolwatch.ledger.checkout import Checkout, ConnectionFacts, FrameworkWork
from poolwatch.ledger.ledger import TestRun
from poolwatch.ledger.pool import PoolLedger
from poolwatch.ledger.pool_over_pool import sessions_of
from poolwatch.ledger.slots import Failed
from poolwatch.model import ClosedConnection, Frame, IdleConnection
from poolwatch.stacks.capture import resolve
from poolwatch.stacks.classify import Kind, activity_of
from poolwatch.stacks.compare import count_and_pair, still_on_stack, user_frames
from poolwatch.stacks.current import (
    holder_frames,
    holder_stack,
    task_frames,
    task_stack,
    thread_stacks,
)
from poolwatch.stacks.holder import Holder, TaskRef
from poolwatch.text.naming import task_name

_GRACE_S = 1.0
"""Time for the server to end the session of a closed connection."""
_CLOSING_S = 2.5
"""Time for the application to close a connection of a failed request."""
_DEPARTED_S = 600.0
"""Time for which a closed connection is compared with the server's sessions."""
_BUSY: frozenset[Kind] = frozenset({"http", "network", "sleep", "file", "process"})
"""Activities that do not depend on a connection of the pool."""
_STANDSTILL_S = 1.0
"""Time in which a pool that is not deadlocked lends, uses or gets back a connection."""


_MAX_EXAMINED = 100
"""Most holds for which the variables on the stack are read."""


@dataclass(slots=True)
class OpenRequests:
    """The open holds and waits of one pool."""

    pool: PoolLedger
    holds: dict[Checkout, HoldEvidence]
    waits: list[Checkout]

    def mark_standstill(self, now: float) -> None:
        """Mark the holds of a pool in which nothing has moved for a while."""
        standstill = self._is_at_standstill(now)
        for evidence in self.holds.values():
            evidence.at_standstill = standstill

    def _is_at_standstill(self, now: float) -> bool:
        """Whether all connections are out, requests wait, and no hold has moved."""
        if not any(now - wait.requested_at >= _STANDSTILL_S for wait in self.waits):
            return False
        gauges = self.pool.gauges()
        size, overflow = gauges.size, gauges.max_overflow
        if size is None or overflow is None or overflow < 0 or self.pool.shared:
            return False
        out = [each for each in self.holds.values() if not each.detached]
        if len(out) < size + overflow - self.pool.slots.lost:
            return False
        if any(map(has_moved, out)):
            return False
        waiting = {wait.holder for wait in self.waits}
        return not any(
            _is_busy(hold, evidence)
            for hold, evidence in self.holds.items()
            if hold.holder not in waiting
        )

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

    def __init__(self, test_run: TestRun | None = None) -> None:
        self.now = time.monotonic()
        self._test_run = test_run
        self._threads = thread_stacks()
        self.pools: list[OpenRequests] = []
        self.departed: list[ClosedConnection] = []
        self.idle: list[IdleConnection] = []
        self.submitters: dict[int, Submitter] = {}
        """By request number: the code that waits for the request's worker thread."""
        self._stacks: dict[Holder, tuple[Frame, ...]] = {}
        self._examined = 0
        """Holds for which the variables on the stack have been read."""

    def read(self, pool: PoolLedger, numbers: Iterator[int]) -> None:
        """Add one pool; requests without a number get the next of ``numbers``."""
        note_pooler(pool)
        open_holds = pool.open_holds()
        self.idle += idle_connections(pool, open_holds, self.now)
        waits = pool.open_waits(self.now)
        for each in (*open_holds, *waits):
            if not each.number:
                each.number = next(numbers)
        holds = {each: self._evidence(pool, each) for each in open_holds}
        for each in list(pool.detached.values()):
            if each in holds:
                holds[each].detached = True
        requesters = Counter([each.requester() for each in (*open_holds, *waits)])
        for evidence in holds.values():
            evidence.one_of_several = requesters[evidence.owner] > 1
        for evidence in _requested_again(holds, waits):
            evidence.called_again = True
            evidence.frames_left = 0
        requests = OpenRequests(pool, holds, waits)
        requests.mark_standstill(self.now)
        self.pools.append(requests)

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
            adopted=hold.adopted,
            stack=() if hold.adopted else hold.stack.frames(now),
            now=now,
            site=hold.stack.site(),
            owner=hold.requester(),
        )
        if usage is not None:
            evidence.statement_s = usage.running_s(self.now)
            evidence.unused_s = usage.unused_s(self.now)
            evidence.by_others = usage.by_others and not hold.adopted
        if evidence.ended_owner or evidence.held_s >= evidence.long_after:
            evidence.known_use = _known_use(hold, evidence)
        if hold.work is not None:
            evidence.framework = "persistent" if hold.work.is_over else "thread"
            evidence.kept = _kept(hold.work, self._holder_stack(hold.holder))
            evidence.own_connection = pool.per_thread and _is_idle(hold)
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

    def follow_users(self) -> None:
        """Give each adopted hold the stack of the user of its connection."""
        for hold, evidence in self.holds():
            search = evidence.search if hold.adopted else None
            path = None if search is None else search.path
            if path is None or not path.in_use or path.user is None:
                evidence.user = None if path is None else f"kept by {path.steps[0]}"
                continue
            thread = self._threads.get(path.user.thread or 0, ())
            task = None if path.user.task is None else path.user.task()
            stack = thread if task is None else task_stack(TaskRef(task), thread)
            evidence.now = resolve(stack)
            evidence.user = f"used by {task_name(path.user.name)}"
            evidence.used_at = path.frame
            evidence.activity = activity_of(evidence.now)

    def holds(self) -> list[tuple[Checkout, HoldEvidence]]:
        """Return the holds of all pools."""
        return [each for pool in self.pools for each in pool.holds.items()]

    def suspects(self) -> dict[Checkout, HoldEvidence]:
        """Return the holds whose reference paths must be searched."""
        return {
            hold: evidence
            for hold, evidence in self.holds()
            if (evidence.adopted or evidence.one_of_several or suspicious(evidence))
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
            before = list(pool.holds)
            pool.leave_out_ended()
            ended = [hold.facts for hold in before if hold not in pool.holds]
            self.idle += returned_connections(pool.pool, ended, self.now)
        for hold, evidence in self.suspects().items():
            if evidence.held_s >= evidence.long_after and not evidence.called_again:
                now = self.stack_now(hold)
                if now != evidence.now:
                    still = still_on_stack(evidence.stack, now)
                    evidence.stack_changed |= still != evidence.frames_left

    def labels(self, request: Checkout) -> Mapping[str, str]:
        """The application's labels and, in a test run, the test or fixture."""
        labels = request.context.labels
        if self._test_run is None:
            return labels
        return {**self._test_run.labels_of(request), **labels}

    def submitter(self, request: Checkout) -> Submitter:
        """Return the code that waits for a request's worker thread."""
        submitter = self.submitters.get(request.number, NO_SUBMITTER)
        stack = submitter.stack
        if stack and request.stack.site() in stack:  # the recorded stack has it already
            return submitter._replace(stack=())
        return submitter

    def stack_now(self, request: Checkout) -> tuple[Frame, ...]:
        """Return the current stack of a request's holder; empty if it has ended."""
        holder = request.holder
        if request.task is not None:
            thread = self._threads.get(holder.thread_ident, ())
            return resolve(task_stack(request.task, thread))
        now, work = self._holder_stack(holder), request.work
        if work is None or work.task is None or user_frames(now) or holder.has_ended():
            return now
        # the thread does nothing for the task, or runs code of libraries for it
        return resolve(task_stack(work.task)) or now

    def _holder_stack(self, holder: Holder) -> tuple[Frame, ...]:
        if holder not in self._stacks:
            self._stacks[holder] = resolve(holder_stack(holder, self._threads))
        return self._stacks[holder]


def _known_use(hold: Checkout, evidence: HoldEvidence) -> str | None:
    if has_listeners(hold.proxy()):
        return "asyncpg calls a listener for its notifications"
    if hold.was_used_since() and not evidence.ended_owner:
        return "used again after it was called leaked"
    return None


def _is_busy(hold: Checkout, evidence: HoldEvidence) -> bool:
    """Whether the call that checked it out evidently does something that will end.

    The line of a task tells less: its event loop may have been stopped.
    """
    if hold.task is not None or evidence.called_again or evidence.site is None:
        return False
    if not any(_same_function(frame, evidence.site) for frame in evidence.now):
        return False
    activity = activity_of(evidence.now)
    return activity is not None and activity.kind in _BUSY


def _same_function(one: Frame, other: Frame) -> bool:
    return (one.function, one.file) == (other.function, other.file)


def has_moved(hold: HoldEvidence) -> bool:
    """Whether the connection was checked out or used lately, or runs a statement."""
    if hold.statement_s is not None or hold.held_s < _STANDSTILL_S:
        return True
    return hold.unused_s is not None and hold.unused_s < _STANDSTILL_S


def _kept(work: FrameworkWork, now: tuple[Frame, ...]) -> str | None:
    """Say for what a framework keeps a connection; None if nothing can use it again."""
    if work.is_request:
        return "in use by the request that its thread serves"
    if work.is_shared:
        return "in use by the thread that runs all such code of the process"
    if user_frames(now, launcher=True):
        return "in use by the code that its thread runs"
    return None


def _is_idle(hold: Checkout) -> bool:
    """Whether a hold is outside of requests, statements and transactions."""
    usage, work = hold.usage, hold.work
    between = usage is None or (usage.began is None and usage.idle_since is None)
    return between and work is not None and not work.is_request


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
