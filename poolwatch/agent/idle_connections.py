"""The connections that lie in their pools, with the last user of each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import islice

from poolwatch.ledger.checkout import Checkout, ConnectionFacts, LastUse
from poolwatch.ledger.pool import PoolLedger
from poolwatch.model import IdleConnection
from poolwatch.stacks.capture import UNKNOWN_STACK

_MAX_IDLE = 128
"""Idle connections that are listed per pool."""
_LISTEN = re.compile(r"\s*listen\b", re.IGNORECASE)


def idle_connections(
    pool: PoolLedger, holds: Iterable[Checkout], now: float
) -> list[IdleConnection]:
    """Return the connections of a pool that none of its open ``holds`` has.

    ``now``: as ``time.monotonic()`` has it.
    """
    return returned_connections(pool, _returned(pool, holds), now)


def returned_connections(
    pool: PoolLedger, returned: Iterable[ConnectionFacts | None], now: float
) -> list[IdleConnection]:
    """Return those whose backend is known; of closed ones none."""
    return [
        _record(pool.id, facts, LastUse._make(facts.last_use), now)
        for facts in returned
        if facts is not None
        and facts.last_use is not None
        and facts.backend_pid is not None
        and not facts.closed
    ]


def idle_pids(pools: Iterable[PoolLedger]) -> tuple[set[int], set[int]]:
    """Pids of the idle connections' backends, and of those that may be listening.

    All rows of the latter are of interest; of the others only those with locks or an
    open transaction.
    """
    idle, listening = set(), set()
    for pool in pools:
        for facts in _returned(pool, pool.recorded_holds()):
            if facts.backend_pid is not None and facts.last_use is not None:
                idle.add(facts.backend_pid)
                if _is_listening(LastUse._make(facts.last_use)):
                    listening.add(facts.backend_pid)
    return idle, listening


def _returned(pool: PoolLedger, holds: Iterable[Checkout]) -> list[ConnectionFacts]:
    """Connections of this process that were returned and not checked out again.

    Connections that were never returned are left out: they may have been checked out
    before the pool was instrumented. So are those that a request which failed later may
    have got: the pool may count one of them as checked out.
    """
    if pool.switched_off():
        return []  # checkouts are no longer recorded
    own_pid = os.getpid()
    held = {id(hold.facts) for hold in holds}
    failed_at = max((each.at for each in list(pool.slots.failed)), default=0.0)
    returned = (
        facts
        for facts in list(pool.connections.values())
        if facts.last_use is not None
        and LastUse._make(facts.last_use).stack is not UNKNOWN_STACK
        and not facts.closed
        and facts.backend_pid is not None
        and facts.process == own_pid
        and id(facts) not in held
        and LastUse._make(facts.last_use).returned_at > failed_at
    )
    return list(islice(returned, _MAX_IDLE))


def _record(
    pool_id: str, facts: ConnectionFacts, last: LastUse, now: float
) -> IdleConnection:
    lock = facts.lock_statement
    contexts = [last.context] if lock is None else [last.context, lock.context]
    return IdleConnection(
        pool=pool_id,
        backend_pid=facts.backend_pid or 0,
        connection=facts.record(now),
        site=last.stack.site(),
        used=last.usage.stack.site() if last.usage and last.usage.stack else None,
        held_s=last.returned_at - last.checked_out_at,
        returned_s=max(0.0, now - last.returned_at),
        listening=_is_listening(last),
        declared=any(context.long_hold is not None for context in contexts),
        lock=None if lock is None else lock.record(now),
    )


def _is_listening(last: LastUse) -> bool:
    statement = last.usage.statement if last.usage else None
    return statement is not None and _LISTEN.match(statement) is not None
