"""Asserts that no connection is out at one point in time."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from poolwatch.adapters.registry import unsupported_message
from poolwatch.agent.instrument import agent
from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.pool import PoolLedger
from poolwatch.ledger.settings import disabled
from poolwatch.runtime.gc_pause import collect
from poolwatch.testing import evidence
from poolwatch.testing.leak import PoolLeakError
from poolwatch.testing.report import describe
from poolwatch.text.format import plural


class _Nothing:
    """The result: an async test may await it."""

    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield


def assert_nothing_out(target: Any, allow: int) -> _Nothing:
    """Raise PoolLeakError if more than ``allow`` connections are out now.

    ``target`` is an engine or pool; with None, all pools count. Declared long holds do
    not count, and neither do pools in which all code shares one connection.
    """
    if allow < 0:
        raise ValueError(f"allow must be a number of connections >= 0, not {allow!r}")
    if disabled():
        return _Nothing()
    pool = _id_of(target)
    if len(_out(pool)) > allow:
        collect()  # returns connections that are only dropped
    out = _out(pool)
    if len(out) > allow:
        leaks = evidence.from_open_holds(out, time.monotonic())
        verb = "is" if len(out) == 1 else "are"
        head = f"{plural(len(out), 'connection')} {verb} out at this point"
        raise PoolLeakError(describe(leaks, head=head), leaks)
    return _Nothing()


def _id_of(target: Any) -> str | None:
    """The id of a pool, or None for all pools; an error if they are not recorded."""
    pools = agent.pools
    if target is None:
        if pools is not None and pools.watches_all:
            return None
    elif pools is not None:
        if not pools.accepts(target):
            raise TypeError(unsupported_message(target))
        known = pools.id_of(target)
        if known is not None:
            return known
    raise ValueError(
        "the connections that are out are not recorded: run pytest without "
        "--pool-leaks=off, or call poolwatch.instrument() before"
    )


def _out(pool_id: str | None) -> list[tuple[PoolLedger, Checkout]]:
    """The open holds, the oldest first."""
    out = [
        (pool, hold)
        for pool in list(agent.ledger.pools.values())
        if not pool.shared and pool_id in (None, pool.id)
        for hold in pool.open_holds()
        if not hold.context.long_hold
    ]
    return sorted(out, key=lambda pair: pair[1].checked_out_at)
