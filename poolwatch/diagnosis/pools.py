"""Findings about a whole pool: its size, and how well it is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from poolwatch.diagnosis.common import distinct_sites, ids
from poolwatch.diagnosis.pool_options import options_of
from poolwatch.model import Finding, Hold, PoolStats, Wait
from poolwatch.text.format import call_site, duration, plural, short_time

_NOTICEABLE_WAIT_S = 0.05
_ENOUGH_HOLDS = 10
"""Ended holds needed to know how long holds of a pool usually last."""
_ENOUGH_CHECKOUTS = 30
"""Checkouts needed to know whether connections are reused."""
_NEARLY_ALL = 0.8
_NOTICEABLE_COST_S = 0.05


def exhausted(
    pool: PoolStats, holds: Sequence[Hold], waits: Sequence[Wait]
) -> list[Finding]:
    """``exhausted``: requests wait and no connection is free."""
    capacity = pool.capacity
    if not waits or capacity is None or len(holds) < capacity:
        return []
    by_site = Counter(call_site(hold) for hold in holds).most_common(3)
    held = ", ".join(f"{site} ({n})" for site, n in by_site)
    lost = plural(pool.lost_slots, "slot") if pool.lost_slots else ""
    oldest = max(wait.waited_s for wait in waits)
    return [
        Finding(
            kind="exhausted",
            severity="critical",
            pool=pool.id,
            text=f"pool {pool.name!r} is exhausted: {len(holds)} of "
            f"{capacity} connections out, "
            + (f"{lost} lost, " if lost else "")
            + f"{plural(len(waits), 'request')} waiting, the longest for "
            f"{duration(oldest)}",
            proof=f"held by {held}"
            if held
            else "no connection is held: every slot was lost",
            remedy="Return every connection: the pool never replaces a dropped one. "
            "Recreate the pool to get lost slots back."
            if lost
            else "Look at what the holders are doing before making the pool larger.",
            holds=ids(holds),
            waits=ids(waits),
            sites=distinct_sites(*(hold.site for hold in holds)),
        )
    ]


def undersized(
    pool: PoolStats, holds: Sequence[Hold], waits: Sequence[Wait]
) -> list[Finding]:
    """``undersized``: requests wait although no hold is leaked or long."""
    capacity = pool.capacity
    longest = max((wait.waited_s for wait in waits), default=0.0)
    if capacity is None or len(holds) < capacity or longest < _NOTICEABLE_WAIT_S:
        return []
    if any(hold.verdict != "ok" for hold in holds) or pool.counters.leaked:
        return []
    usual = pool.hold_s.p99
    if pool.hold_s.count < _ENOUGH_HOLDS or usual is None:
        return []
    if max(hold.held_s for hold in holds) > 2 * max(usual, _NOTICEABLE_WAIT_S):
        return []  # the requests wait for these holds; the size is not the cause
    enough = max(len(holds) + len(waits), pool.most_wanted)
    return [
        Finding(
            kind="undersized",
            severity="warning",
            pool=pool.id,
            text=f"pool {pool.name!r} is too small for its load: "
            f"{plural(len(waits), 'request')} waiting, the longest for "
            f"{duration(longest)}, and no hold is leaked or long",
            proof=f"{len(holds)} of {capacity} connections out; 99 % of holds last "
            f"less than {duration(usual)}",
            remedy=f"A pool of {enough} connections would have served every request "
            "without a wait, even at the busiest time so far; or shorten the holds.",
            holds=ids(holds),
            waits=ids(waits),
        )
    ]


def unpooled(pool: PoolStats) -> list[Finding]:
    """``unpooled``: nearly every checkout opens a connection that is closed again.

    NullPool is left out, because it is meant to work like that.
    """
    counters, opened = pool.counters, pool.create_s
    if "Null" in pool.kind or counters.checkouts < _ENOUGH_CHECKOUTS:
        return []
    if counters.connects < _NEARLY_ALL * counters.checkouts:
        return []
    if counters.closes < _NEARLY_ALL * counters.connects:
        return []  # the pool is growing: these connections will be reused
    if opened.sum < _NOTICEABLE_COST_S or not opened.count:
        return []
    each = opened.sum / opened.count
    return [
        Finding(
            kind="unpooled",
            severity="warning",
            pool=pool.id,
            text=f"pool {pool.name!r} opens a connection for nearly every checkout: "
            f"{duration(opened.sum)} spent connecting so far, {short_time(each)} "
            "each time",
            proof=f"{plural(counters.checkouts, 'checkout')}, "
            f"{plural(counters.connects, 'connection')} opened, {counters.closes} "
            "closed",
            remedy=_unpooled_remedy(pool),
        )
    ]


def _unpooled_remedy(pool: PoolStats) -> str:
    if pool.counters.invalidated >= _NEARLY_ALL * pool.counters.closes:
        return (
            "Find out why the connections are invalidated: they break while checked "
            "out, or they are returned with close=True."
        )
    options = options_of(pool.kind)
    keeps_all = options.size == "pool_size" and not pool.max_overflow
    if options.keep_options is None or keeps_all:
        return (
            "Find out what closes connections: a recycle or lifetime option, or code "
            "that disposes of the pool."
        )
    return (
        f"{options.line(options.keep_options)}: {options.closing_rule}. Also find "
        "out whether a recycle or lifetime option closes connections."
    )
