"""Compares what a QueuePool counts as checked out with the recorded holds."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

from sqlalchemy.pool import Pool, QueuePool

from poolwatch.ledger.checkout import Checkout, Gauges
from poolwatch.ledger.pool import PoolLedger
from poolwatch.ledger.slots import Failed

_STEADY_S = 0.25
"""How long a hold is seen without a proxy before its return counts as failed."""


def gauges_of(
    pool: QueuePool,
    holds: Mapping[int, Checkout],
    waits: Collection[object],
    returning: Collection[object],
    records: Mapping[int, Any],
) -> Gauges:
    """The current figures of a pool.

    ``holds``, by the id of their record, may be of former pools, too. ``waits`` are the
    requests in progress, ``returning`` the records that are being put back or closed,
    and ``records`` weak references to all records.
    """
    unheld, unseen = None, 0
    idle = _idle(pool)
    held = list(holds.values())
    former = sum(_is_of_former(pool, hold) for hold in held)
    with suppress(Exception):  # a queue or a pool class of the application
        checked_out = pool.size() - idle + pool._overflow
        most = checked_out - (len(held) - former)
        on_their_way = max(0, len(waits) - _waiting_in_queue(pool)) + len(returning)
        unseen = _unseen(holds, records)
        unheld = (most - on_their_way - unseen, most)
    timeout = pool.timeout()
    return Gauges(
        size=pool.size(),
        max_overflow=pool._max_overflow,
        timeout_s=None if timeout is None else float(timeout),  # it may wait for ever
        idle=idle,
        overflow=max(0, pool.overflow()),
        unheld=unheld,
        unseen=unseen,
        former=former,
    )


def _idle(pool: QueuePool) -> int:
    """The connections in the pool's queue, read without its lock.

    An interrupt may have left it locked for good, and then a viewer must see who waits.
    """
    queue: Any = pool._pool
    connections = getattr(queue, "queue", None)
    return pool.checkedin() if connections is None else len(connections)


def _is_of_former(pool: QueuePool, hold: Checkout) -> bool:
    """Whether it was lent by the pool before the last ``dispose()``."""
    proxy = hold.proxy()
    return proxy is not None and proxy._pool is not pool


def _waiting_in_queue(pool: QueuePool) -> int:
    """How many requests wait in the pool's queue, and so have no slot."""
    queue: Any = pool._pool
    condition = getattr(queue, "not_empty", None)
    if condition is not None:
        return len(condition._waiters)
    asyncio_queue = queue.__dict__.get("_queue")  # made at its first use
    getters = () if asyncio_queue is None else list(asyncio_queue._getters)
    return sum(not getter.done() for getter in getters)


def capacity_of(pool: Pool) -> int:
    """The maximum number of connections that the pool lends at once."""
    with suppress(Exception):  # a pool class of the application
        if isinstance(pool, QueuePool) and pool._max_overflow >= 0 and pool.size():
            return pool.size() + pool._max_overflow
    return sys.maxsize


def _unseen(holds: Mapping[int, Checkout], records: Mapping[int, Any]) -> int:
    """How many records have a living proxy, but no hold: their checkout was not seen,
    as that by a bound method from before the pool was instrumented.
    """
    unheld = [each() for key, each in list(records.items()) if key not in holds]
    proxies = [each.fairy_ref for each in unheld if each is not None]
    return sum(proxy is not None and proxy() is not None for proxy in proxies)


class FailedReturns:
    """Ends the holds whose return has failed.

    The pool has forgotten the holder (``fairy_ref`` is None, the proxy is gone), but
    did not get the connection back: a ``checkin`` listener raised, for example.
    """

    def __init__(self, ledger: PoolLedger, records: Mapping[int, Any]) -> None:
        """``records``: weak references to the pool's connection records, by id."""
        self._ledger = ledger
        self._records = records
        self._since: dict[Checkout, float] = {}
        """When such a hold was first seen: its return may still be in progress."""

    def check(self) -> None:
        """Look for such holds, and end those that stay like that."""
        now = monotonic()
        holds = {hold: key for key, hold in list(self._ledger.holds.items())}
        since_when = self._since = {
            hold: self._since.get(hold, now)
            for hold, key in holds.items()
            if hold.proxy() is None and self._is_forgotten(key)
        }
        for hold, since in since_when.items():
            # its return, or another viewer, may have ended it meanwhile
            if now - since >= _STEADY_S and self._took_out(holds[hold], hold):
                self._ledger.slots.failed.append(Failed(now, hold.stack, None))
                self._ledger.end(hold, now, False)

    def _took_out(self, key: int, hold: Checkout) -> bool:
        """Whether this removed the hold, and nobody else did."""
        table = self._ledger.holds
        return table.get(key) is hold and table.pop(key, None) is hold

    def _is_forgotten(self, key: int) -> bool:
        reference = self._records.get(key)
        record = None if reference is None else reference()
        return record is None or record.fairy_ref is None
