"""Builds the records of a snapshot from one reading of the ledger."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from poolwatch.agent.circumstances import (
    add_circumstances,
    of_collected,
    sees_statements,
)
from poolwatch.agent.ledger_reading import LedgerReading, OpenRequests
from poolwatch.diagnosis.evidence import (
    Blocked,
    FailedCall,
    HoldEvidence,
    JudgedHold,
    MissingSlot,
    OpenWait,
    PoolEvidence,
)
from poolwatch.diagnosis.verdicts import judge
from poolwatch.diagnosis.wait_graph import Node
from poolwatch.ledger import site_costs
from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.pool import PoolLedger
from poolwatch.ledger.site_costs import AllFigures
from poolwatch.ledger.slots import LostSlot
from poolwatch.model import Frame, Hold, LockRequest, NestedRequests, Wait
from poolwatch.stacks.callers import Request, callers
from poolwatch.stacks.capture import CapturedStack
from poolwatch.text.format import duration, place


class PoolRecords(NamedTuple):
    """The records of one pool in a snapshot."""

    evidence: PoolEvidence
    figures: AllFigures


def pool_records(
    reading: LedgerReading,
    requests: OpenRequests,
    is_confirmed: Callable[[Checkout], bool],
    blocked: Mapping[Node, Blocked],
    *,
    read_code: bool,
) -> PoolRecords:
    """Judge the holds of one pool, count its leaks, and return its records.

    A leak is counted if the connection was dropped, or if ``is_confirmed`` is true.
    ``blocked`` is what the threads and tasks of the process wait for. Without
    ``read_code`` no source is parsed: remedies are those for any circumstances.
    """
    pool = requests.pool
    requests.mark_nested()
    caller_of = _callers(reading, requests)
    judged = [
        _judged(reading, pool, hold, evidence, caller_of.get(hold.number))
        for hold, evidence in requests.holds.items()
    ]
    if read_code:
        add_circumstances(pool, zip(requests.holds, judged, strict=True))
    for checkout, each in zip(requests.holds, judged, strict=True):
        if each.hold.verdict == "leaked":
            checkout.call_leaked(reading.now)
            if each.evidence.dropped or is_confirmed(checkout):
                pool.found_leaked(checkout)
    waits = [
        OpenWait(
            _wait(reading, pool.id, each, caller_of.get(each.number)), each.requester()
        )
        for each in requests.waits
    ]
    by_site = pool.by_site()
    collected = site_costs.collected(by_site)
    stats = pool.stats(len(judged), len(waits))
    figures = pool.figures(reading.now, list(requests.holds))
    pool_evidence = PoolEvidence(
        stats=stats,
        holds=judged,
        waits=waits,
        collected=collected,
        collected_in={
            each.site: of_collected(pool, each) for each in collected if read_code
        },
        outside=site_costs.mostly_outside(by_site, per_thread=pool.per_thread),
        inherited=[use.record(reading.now) for use in list(pool.inherited.values())],
        nested=() if pool.shared else list(_nested(pool, reading.now)),
        missing=[missing_slot(reading.now, slot) for slot in list(pool.slots.missing)],
        concurrent=pool.concurrent.records(reading.now),
        shared=pool.shared,
        setup=pool.setup.record(pool.begun, reading.now),
        blocked=blocked,
        per_thread=pool.per_thread,
    )
    return PoolRecords(pool_evidence, figures)


def with_lent(
    reading: LedgerReading, pools: Sequence[PoolRecords]
) -> list[PoolRecords]:
    """Add to each pool the holds of the pools over it that have its connections."""
    by_session = {
        checkout.facts.session: judged.hold
        for requests, records in zip(reading.pools, pools, strict=True)
        if records.evidence.stats.over
        for checkout, judged in zip(requests.holds, records.evidence.holds, strict=True)
        if checkout.facts is not None
    }
    return [
        _with_lent(requests.pool, records, by_session)
        if requests.pool.lending
        else records
        for requests, records in zip(reading.pools, pools, strict=True)
    ]


def _with_lent(
    pool: PoolLedger, records: PoolRecords, by_session: Mapping[Any, Hold]
) -> PoolRecords:
    sessions = [each.facts.session for each in pool.lending.lent() if each.facts]
    lent = [by_session[each] for each in sessions if each in by_session]
    evidence = replace(records.evidence, lent=lent, lent_idle=len(sessions) - len(lent))
    return records._replace(evidence=evidence)


def missing_slot(now: float, slot: LostSlot) -> MissingSlot:
    """Return the evidence of one lost slot."""
    return MissingSlot(
        now - slot.since,
        tuple(
            [
                FailedCall(each.stack.site(), each.error, now - each.at)
                for each in slot.failed
            ]
        ),
    )


def _nested(pool: PoolLedger, now: float) -> Iterator[NestedRequests]:
    for nesting in list(pool.nestings.seen.values()):
        unused = nesting.outer_unused and sees_statements(pool, nesting.outer)
        yield nesting.record(now)._replace(outer_unused=unused)


def _callers(reading: LedgerReading, requests: OpenRequests) -> dict[int, Frame]:
    """Return by request number the caller that tells the request apart."""
    stacks = [
        (hold, evidence.site, evidence.stack)
        for hold, evidence in requests.holds.items()
    ]
    stacks += [
        (wait, wait.stack.site(), wait.stack.frames(reading.stack_now(wait)))
        for wait in requests.waits
    ]
    by_number = {
        each.number: Request(site, stack, reading.submitter(each).stack)
        for each, site, stack in stacks
        if site is not None
    }
    return callers(by_number, site_costs.stacks(requests.pool.by_site()))


def _judged(
    reading: LedgerReading,
    pool: PoolLedger,
    checkout: Checkout,
    evidence: HoldEvidence,
    caller: Frame | None,
) -> JudgedHold:
    facts, usage, adopted = checkout.facts, checkout.usage, checkout.adopted
    evidence.inherited = facts is not None and facts.process != os.getpid()
    if usage is None and evidence.one_of_several:
        evidence.no_statement = sees_statements(pool, checkout.stack)
    judgement = judge(evidence)
    reasons = judgement.reasons
    if judgement.verdict != "ok" and usage and usage.stack and evidence.unused_s:
        where = place(usage.stack.site())
        reasons = (*reasons, f"last used at {where}, {duration(evidence.unused_s)} ago")
    submitter = reading.submitter(checkout)
    hold = Hold(
        id=f"h{checkout.number}",
        pool=pool.id,
        backend_pid=facts.backend_pid if facts else None,
        held_s=None if adopted else evidence.held_s,
        waited_s=None if adopted else checkout.checked_out_at - checkout.requested_at,
        thread=None if adopted else checkout.holder.name,
        task=checkout.task.name if checkout.task else submitter.task,
        labels=reading.labels(checkout),
        site=evidence.site,
        stack=evidence.stack + submitter.stack,
        now=evidence.now,
        statement=checkout.masked_statement(pool.server_connect),
        in_sql_s=usage.in_sql_until(reading.now) if usage else None,
        in_transaction_idle_s=usage.idle_until(reading.now) if usage else None,
        verdict=judgement.verdict,
        evidence=reasons,
        server=None,
        connection=facts.record(reading.now) if facts else None,
        used=_used(usage.stack, evidence) if usage and usage.stack else (),
        unused_s=evidence.unused_s,
        caller=caller,
        earlier_lock=_earlier_lock(checkout, reading.now),
        adopted_s=evidence.held_s if adopted else None,
        user=evidence.user,
        used_at=evidence.used_at,
    )
    return JudgedHold(hold, judgement.kind, evidence)


def _earlier_lock(checkout: Checkout, now: float) -> LockRequest | None:
    """The session-level lock that an earlier user of the connection requested last."""
    lock = checkout.facts.lock_statement if checkout.facts else None
    if lock is None or lock.sent_at >= checkout.checked_out_at:
        return None
    return lock.record(now)


def _wait(
    reading: LedgerReading, pool: str, checkout: Checkout, caller: Frame | None
) -> Wait:
    submitter = reading.submitter(checkout)
    waited_s = max(0.0, reading.now - checkout.requested_at)
    return Wait(
        id=f"w{checkout.number}",
        pool=pool,
        waited_s=None if checkout.adopted else waited_s,
        thread=checkout.holder.name,
        task=checkout.task.name if checkout.task else submitter.task,
        labels=reading.labels(checkout),
        site=checkout.stack.site(),
        stack=checkout.stack.frames(reading.stack_now(checkout)) + submitter.stack,
        caller=caller,
        adopted_s=waited_s if checkout.adopted else None,
    )


def _used(captured: CapturedStack, evidence: HoldEvidence) -> tuple[Frame, ...]:
    """Return the stack of the last use, completed from the holder's other stacks."""
    used = captured.frames(evidence.now)
    if evidence.stack and evidence.stack[-1] in used:
        return used
    return captured.frames(evidence.stack)
