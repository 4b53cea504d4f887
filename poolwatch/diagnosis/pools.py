"""Findings about a whole pool: its size, and how well it is used."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from poolwatch.diagnosis.common import distinct_sites, doing_now, ids, still_running
from poolwatch.diagnosis.configuration import made
from poolwatch.diagnosis.evidence import FailedCall, MissingSlot
from poolwatch.diagnosis.pool_options import options_of
from poolwatch.model import (
    Finding,
    Frame,
    Hold,
    MostlyOutsideSql,
    PoolSetup,
    PoolStats,
    Wait,
)
from poolwatch.text.format import (
    call_site,
    duration,
    lasts,
    place,
    plural,
    short_time,
)

_NOTICEABLE_WAIT_S = 0.05
_ENOUGH_HOLDS = 10
"""Ended holds needed to know how long holds of a pool usually last."""
_ENOUGH_CHECKOUTS = 30
"""Checkouts needed to know whether connections are reused."""
_NEARLY_ALL = 0.8
_MOSTLY = 0.5
_MAX_CAUSES = 3
_MAX_SITES = 3
"""Most call sites that a sentence names; the holds of the others are counted."""
_MAX_STACKS = 8
"""Most different stacks that are classified for one call site."""
_NOTICEABLE_COST_S = 0.05
_NOTICEABLE_SHARE = 0.02
"""Of the held time: with less, connecting hardly matters."""
_ENOUGH_S = 3.0
"""Time needed to know that connecting goes on: not only at the start."""
_LOOK_FIRST = (
    "Before making the pool larger, look at what the holders are doing: poolwatch ps "
    "shows it. A larger pool helps only if all are quick."
)


def exhausted(
    pool: PoolStats, holds: Sequence[Hold], waits: Sequence[Wait], *, lent_idle: int = 0
) -> list[Finding]:
    """``exhausted``: requests wait and no connection is free, by the pool's count.

    ``lent_idle``: how many connections are idle in a pool over this one.
    """
    capacity = pool.capacity
    out = len(holds) + lent_idle + pool.unrecorded
    if not waits or capacity is None or out - pool.slotless < capacity:
        return []
    holders = [_holders(holds)]
    if lent_idle:
        holders.append(f"a pool over this one, idle ({lent_idle})")
    if pool.unrecorded:
        holders.append(
            f"{plural(pool.unrecorded, 'checkout')} from before the pool was "
            "instrumented, or by a call that was not seen"
        )
    proof = "held by " + " and ".join(filter(None, holders))
    return [
        Finding(
            kind="exhausted",
            severity="critical",
            pool=pool.id,
            text=exhausted_text([pool], holds, waits, out),
            proof=proof if out else "no connection is held: every slot was lost",
            remedy="Return every connection: the pool never replaces a lost one. "
            f"{_get_back(pool)}"
            if pool.lost_slots
            else _LOOK_FIRST,
            holds=ids(holds),
            waits=ids(waits),
            sites=distinct_sites(*(hold.site for hold in holds)),
        )
    ]


def exhausted_text(
    pools: Sequence[PoolStats],
    holds: Sequence[Hold],
    waits: Sequence[Wait],
    out: int,
    where: str = "",
) -> str:
    """Say that a pool is empty, who waits, and who has its connections.

    ``pools``: the pool, or the pools of that name in several processes, which ``where``
    names. ``out``: the connections that are out, also by what was not recorded.
    """
    capacity = sum(pool.capacity or 0 for pool in pools)
    oldest = lasts(max(waits, key=lambda wait: wait.known_s))
    limits = {pool.timeout_s for pool in pools}
    (limit,) = limits if len(limits) == 1 else (None,)
    most = f" of {duration(limit)}" if limit else ""
    text = (
        f"pool {pools[0].name!r} is empty{where}: {out} of {capacity} out, "
        f"{len(waits)} {'waits' if len(waits) == 1 else 'wait'} (oldest {oldest}{most})"
    )
    if lost := sum(pool.lost_slots for pool in pools):
        text += f", {plural(lost, 'slot')} lost"
    if timeouts := sum(pool.counters.timeouts for pool in pools):
        text += f", {timeouts} timed out so far"
    return f"{text}. {_held_where(holds)}" if holds else text


def _held_where(holds: Sequence[Hold]) -> str:
    """``6 at exh.py:6 (asleep at :7), 4 leaked at exh.py:9``, the most first."""
    groups: dict[tuple[Frame | None, Frame | None, bool], list[Hold]]
    groups = defaultdict(list)
    for hold in holds:
        groups[hold.site, hold.caller, hold.verdict == "leaked"].append(hold)
    ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
    parts = []
    for (*_, is_leaked), group in ranked[:_MAX_SITES]:
        leaked, now = (" leaked", "") if is_leaked else ("", _all_doing(group))
        parts.append(f"{len(group)}{leaked} at {call_site(group[0])}{now}")
    rest = sum(len(group) for _, group in ranked[_MAX_SITES:])
    return ", ".join(parts) + (f", {rest} elsewhere" if rest else "")


def _all_doing(holds: Sequence[Hold]) -> str:
    """What all of these holders do now, in brackets; nothing if they differ."""
    stacks = {hold.now for hold in holds}
    if len(stacks) > _MAX_STACKS or not all(map(still_running, holds)):
        return ""
    doing = {doing_now(holds[0].site, stack) for stack in stacks}
    (words,) = doing if len(doing) == 1 else ("",)
    return f" ({words})" if words else ""


def timed_out(pool: PoolStats, holds: Sequence[Hold], count: int) -> Finding:
    """``exhausted``: requests have timed out, but none waits any more.

    ``count``: how many have since the last look of a viewer.
    """
    timeouts = pool.counters.timeouts
    held = f"held now by {_holders(holds)}" if holds else "no connection is held now"
    return Finding(
        kind="exhausted",
        severity="critical",
        pool=pool.id,
        text=f"pool {pool.name!r} was exhausted: {plural(count, 'request')} for a "
        "connection timed out",
        proof=f"the pool's count of timeouts rose from {timeouts - count} to "
        f"{timeouts}; {held}",
        remedy=_LOOK_FIRST,
        holds=ids(holds),
        sites=distinct_sites(*(hold.site for hold in holds)),
    )


def _holders(holds: Sequence[Hold]) -> str:
    """The call sites with the most holds, each with their number."""
    by_site = Counter(call_site(hold) for hold in holds).most_common(_MAX_SITES)
    return ", ".join(f"{site} ({n})" for site, n in by_site)


def lost_slot(pool: PoolStats, missing: Sequence[MissingSlot]) -> list[Finding]:
    """``lost_slot``: the pool counts more connections as out than there are holds.

    Slots of dropped connections are left out: ``leaked.collected`` reports these.
    """
    if not missing or pool.slots is None:
        return []
    certain = [
        slot.failed[0] for slot in missing if len(set(map(_cause, slot.failed))) == 1
    ]
    failed = Counter(_cause(each) for slot in missing for each in slot.failed)
    causes = ", ".join(
        f"{cause} ({times})" if times > 1 else cause
        for cause, times in failed.most_common(_MAX_CAUSES)
    )
    count = plural(len(missing), "connection")
    oldest = max(slot.since_s for slot in missing)
    return [
        Finding(
            kind="lost_slot",
            severity="critical",
            pool=pool.id,
            text=f"pool {pool.name!r} has lost {len(missing)} of its "
            f"{plural(pool.slots, 'slot')}: it has counted {count} as checked out for "
            f"{duration(oldest)} that nobody holds"
            + (f", since {_cause(certain[0])}" if certain else ""),
            proof=f"in two readings the pool counts {count} more as checked out than "
            "are held, requested or being returned"
            + (f"; what failed when the count rose: {causes}" if causes else ""),
            remedy=_lost_remedy(certain) + _get_back(pool),
            sites=distinct_sites(*(each.site for each in certain)),
        )
    ]


def _cause(failed: FailedCall) -> str:
    if failed.error is None:
        where = place(failed.site)
        return f"the return of a connection checked out at {where} was not completed"
    return f"a checkout at {place(failed.site)} ended with {failed.error}"


def _lost_remedy(certain: Sequence[FailedCall]) -> str:
    if certain and all(each.error is None for each in certain):
        return (
            "Look at what runs when a connection goes back: a checkin listener that "
            "raises keeps it from the pool. "
        )
    if certain:
        return (
            "The exception came when the pool had already counted the connection. If "
            "a listener or a pool class of your own raised it, return the connection "
            "there. If it was a timeout, a cancellation or a signal, keep it from "
            "ending a checkout half-way. Use the newest release of the pool's library. "
        )
    return "Look for code that gets connections from the pool past its checkout. "


def _get_back(pool: PoolStats) -> str:
    if options_of(pool.extends or pool.kind).made_by == "create_engine":
        return (
            "To get lost slots back, restart the process, or call engine.dispose() if "
            "the pool is an engine's."
        )
    return "Recreate the pool or restart the process to get lost slots back."


def undersized(
    pool: PoolStats,
    holds: Sequence[Hold],
    waits: Sequence[Wait],
    outside: Sequence[MostlyOutsideSql] = (),
) -> list[Finding]:
    """``undersized``: requests wait although no hold is leaked or long.

    A pool whose connections are mostly held for other work than statements is not too
    small: more connections would be held in the same way.
    """
    capacity = pool.capacity
    longest = max((wait.known_s for wait in waits), default=0.0)
    out = len(holds) - pool.slotless
    if capacity is None or out < capacity or longest < _NOTICEABLE_WAIT_S:
        return []
    missing = pool.counters.leaked or pool.lost_slots or pool.unrecorded
    if missing or any(hold.verdict != "ok" for hold in holds):
        return []  # without these faults, the pool may be large enough
    usual = pool.hold_s.p99
    if pool.hold_s.count < _ENOUGH_HOLDS or usual is None:
        return []
    if max(hold.known_s for hold in holds) > 2 * max(usual, _NOTICEABLE_WAIT_S):
        return []  # the requests wait for these holds; the size is not the cause
    if _share_in_sql(holds) < _MOSTLY or _any_at(holds, outside):
        return []
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


def _share_in_sql(holds: Sequence[Hold]) -> float:
    """The share of the held time that went to statements; 1 if it is not known."""
    known = [hold for hold in holds if hold.in_sql_s is not None]
    if len(known) < len(holds):
        return 1.0
    held = sum(hold.known_s for hold in known)
    return sum(hold.in_sql_s or 0.0 for hold in known) / held if held else 1.0


def _any_at(holds: Sequence[Hold], outside: Sequence[MostlyOutsideSql]) -> bool:
    sites = {each.site for each in outside}
    return any(hold.site in sites for hold in holds)


def unpooled(pool: PoolStats, setup: PoolSetup | None = None) -> list[Finding]:
    """``unpooled``: nearly every checkout opens a connection that is closed again.

    A pool that keeps no connections is meant to work like that: then it is a piece of
    information, once the cost is known and no trifle.
    """
    counters, opened = pool.counters, pool.create_s
    by_design = "Null" in pool.kind
    if pool.over or counters.checkouts < _ENOUGH_CHECKOUTS:
        return []
    if opened.sum < _NOTICEABLE_COST_S:
        return []
    if counters.connects < _NEARLY_ALL * counters.checkouts or not opened.count:
        return []
    if counters.closes < _NEARLY_ALL * counters.connects:
        return []  # the pool is growing: these connections will be reused
    if by_design and not _costs(pool, setup):
        return []
    each = opened.sum / opened.count
    nearly = "" if by_design else "nearly "
    return [
        Finding(
            kind="unpooled",
            severity="info" if by_design else "warning",
            pool=pool.id,
            text=f"{made(pool)} opens a connection for {nearly}every checkout: "
            f"{duration(opened.sum)} spent connecting so far, {short_time(each)} "
            "each time",
            proof=f"{plural(counters.checkouts, 'checkout')}, "
            f"{plural(counters.connects, 'connection')} opened, {counters.closes} "
            "closed",
            remedy=_unpooled_remedy(pool),
            sites=distinct_sites(pool.made_at),
        )
    ]


def _costs(pool: PoolStats, setup: PoolSetup | None) -> bool:
    """Whether connecting takes a part of the time that a pool would save.

    A function of the application may get its connections from another pool: then a
    slow one is a wait.
    """
    if setup is None or setup.own_creator or setup.age_s < _ENOUGH_S:
        return False
    return pool.create_s.sum >= _NOTICEABLE_SHARE * pool.hold_s.sum


def _unpooled_remedy(pool: PoolStats) -> str:
    if "Null" in pool.kind:
        return (
            "That is as it should be if a pooler such as PgBouncer is in between, in "
            "serverless functions and in processes that fork. Elsewhere a pool that "
            "keeps connections (SQLAlchemy's default, psycopg's ConnectionPool) saves "
            "that time."
        )
    if pool.counters.invalidated >= _NEARLY_ALL * pool.counters.closes:
        return (
            "Find out why the connections are invalidated: they break while checked "
            "out, or they are returned with close=True."
        )
    options = options_of(pool.extends or pool.kind)
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
