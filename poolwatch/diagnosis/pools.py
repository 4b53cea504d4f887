"""Findings about a pool: who waits for whom, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from poolwatch.diagnosis.common import ids, places
from poolwatch.diagnosis.pool_options import options_of
from poolwatch.model import Finding, Frame, Hold, NestedRequests, PoolStats, Wait
from poolwatch.text.format import duration, plural, short_time, taken_at, whence
from poolwatch.text.naming import task_name

_NOTICEABLE_WAIT_S = 0.05
_RECENT_S = 300.0
"""What was noted longer ago is no news."""
_SHARE_IT = (
    "Pass the connection that is already held to the inner code; as many such callers "
    "as the pool has connections lock each other out."
)
_ENOUGH_HOLDS = 10
"""Ended holds that show how long holds of this pool usually last."""
_ENOUGH_CHECKOUTS = 30
"""Checkouts that show whether connections are used again."""
_NEARLY_ALL = 0.8
_NOTICEABLE_COST_S = 0.05


def exhausted(
    pool: PoolStats, holds: Sequence[Hold], waits: Sequence[Wait]
) -> list[Finding]:
    """``exhausted``: somebody waits and nothing is free; says who holds what."""
    capacity = pool.capacity
    if not waits or capacity is None or len(holds) < capacity:
        return []
    by_site = Counter(taken_at(hold) for hold in holds).most_common(3)
    held = ", ".join(f"{site} ({n})" for site, n in by_site)
    lost = plural(pool.lost_slots, "slot") if pool.lost_slots else ""
    oldest = max(wait.waited_s for wait in waits)
    return [
        Finding(
            kind="exhausted",
            severity="critical",
            pool=pool.id,
            text=f"pool {pool.name!r} is empty: {len(holds)} of {capacity} out, "
            + (f"{lost} lost, " if lost else "")
            + f"{plural(len(waits), 'wait')}, the oldest for {duration(oldest)}",
            proof=f"held by {held}"
            if held
            else "nobody holds one: every slot was lost",
            remedy="Look at what was dropped: the pool never replaces it."
            if lost
            else "Look at the holders before making the pool larger.",
            holds=ids(holds),
            waits=ids(waits),
            sites=places(*(hold.site for hold in holds)),
        )
    ]


def undersized(
    pool: PoolStats, holds: Sequence[Hold], waits: Sequence[Wait]
) -> list[Finding]:
    """``undersized``: honest work waits; says how many connections would do for it."""
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
        return []  # it waits for these holds, not for want of connections
    enough = max(len(holds) + len(waits), pool.most_wanted)
    return [
        Finding(
            kind="undersized",
            severity="warning",
            pool=pool.id,
            text=f"pool {pool.name!r} is too small for its work: "
            f"{plural(len(waits), 'request')} wait, the longest for "
            f"{duration(longest)}, and no hold is leaked or long",
            proof=f"{len(holds)} of {capacity} out; 99 % of all holds last less than "
            f"{duration(usual)}",
            remedy=f"A pool of {enough} would have served everybody, at the worst "
            "moment so far too; or let the holders be quicker.",
            holds=ids(holds),
            waits=ids(waits),
        )
    ]


def unpooled(pool: PoolStats) -> list[Finding]:
    """``unpooled``: nearly every checkout opens a connection, and it is closed again.

    Says what that has cost. A pool that keeps none by its very name was chosen for it.
    """
    counters, opened = pool.counters, pool.create_s
    if "Null" in pool.kind or counters.checkouts < _ENOUGH_CHECKOUTS:
        return []
    if counters.connects < _NEARLY_ALL * counters.checkouts:
        return []
    if counters.closes < _NEARLY_ALL * counters.connects:
        return []  # it is growing to its size: these will be used again
    if opened.sum < _NOTICEABLE_COST_S or not opened.count:
        return []
    each = opened.sum / opened.count
    return [
        Finding(
            kind="unpooled",
            severity="warning",
            pool=pool.id,
            text=f"pool {pool.name!r} opens a connection for nearly every checkout: "
            f"that has cost {duration(opened.sum)} so far, {short_time(each)} each "
            "time",
            proof=f"{plural(counters.checkouts, 'checkout')}, "
            f"{plural(counters.connects, 'connection')} opened, {counters.closes} "
            "closed",
            remedy=_keep_them(pool),
        )
    ]


def _keep_them(pool: PoolStats) -> str:
    if pool.counters.invalidated >= _NEARLY_ALL * pool.counters.closes:
        return (
            "Find out who invalidates them: connections that come back broken, or a "
            "return that says close=True."
        )
    options = options_of(pool.kind)
    keeps_all = options.size == "pool_size" and not pool.max_overflow
    if options.keep is None or keeps_all:
        return "Look at what recycles connections, and at what empties the pool."
    return (
        f"{options.line(options.keep)}: {options.kept}. Look at what recycles "
        "connections, too."
    )


def nested(
    pool: PoolStats, holders: Mapping[object, tuple[Sequence[Hold], Sequence[Wait]]]
) -> list[Finding]:
    """``nested`` and ``pool_deadlock``.

    ``holders`` groups the holds and waits of this pool by the thread or task they
    belong to, and use.
    """
    pairs: dict[tuple[Frame | None, Frame | None, bool], list[_Nested]]
    pairs = defaultdict(list)
    stuck: list[Hold] = []
    wanted: list[Wait] = []
    for holds, waits in holders.values():
        if not holds or len(holds) + len(waits) < 2:
            continue
        if waits:
            stuck += holds
            wanted += waits
        each = _Nested.of(holds, waits)
        pairs[each.outer.site, each.inner.site, bool(waits)].append(each)
    findings = [_nested(pool, group) for group in pairs.values()]
    capacity = pool.capacity
    if stuck and capacity is not None and len(stuck) == pool.checked_out >= capacity:
        findings.insert(0, _deadlock(pool, stuck, wanted, capacity))
    return findings


def nested_before(
    pool: PoolStats, nestings: Iterable[NestedRequests], shown: Sequence[Finding]
) -> list[Finding]:
    """``nested``, as it was noted when it happened: over before anybody looked.

    Without those that are ``shown`` anyway, because they last.
    """
    lasting = {finding.sites for finding in shown}
    by_sites: dict[tuple[Frame, ...], list[NestedRequests]] = defaultdict(list)
    for each in nestings:
        sites = places(each.outer, each.inner)
        if sites not in lasting and each.ago_s < _RECENT_S:
            by_sites[sites].append(each)
    return [_nested_before(pool, sites, group) for sites, group in by_sites.items()]


def _nested_before(
    pool: PoolStats, sites: tuple[Frame, ...], group: Sequence[NestedRequests]
) -> Finding:
    latest = min(group, key=lambda each: each.ago_s)
    times = sum(each.times for each in group)
    depth = max(each.depth for each in group)
    outer, inner = zip(*(each.callers for each in group), strict=True)
    return Finding(
        kind="nested",
        severity="info",
        pool=pool.id,
        text=f"{whence(latest.inner, *inner)} takes a connection while its "
        f"caller holds one taken at {whence(latest.outer, *outer)}",
        proof=f"seen as it happened, {plural(times, 'time')}, last "
        f"{duration(latest.ago_s)} ago by {latest.who}; up to {depth} connections "
        "wanted at once by one holder",
        remedy=_SHARE_IT,
        sites=sites,
    )


def still_there(hold: Hold) -> bool:
    """Whether the function that took the hold is still on its holder's stack."""
    site = hold.site
    if site is None:
        return False
    file, function = site.file, site.function
    for frame in hold.now:  # noqa: SIM110 - a generator takes twice as long, a thousand times
        if frame.function == function and frame.file == file:
            return True
    return False


class _Nested(NamedTuple):
    """One holder with two requests on one pool, or more."""

    outer: Hold
    inner: Hold | Wait
    holds: Sequence[Hold]
    waits: Sequence[Wait]

    @classmethod
    def of(cls, holds: Sequence[Hold], waits: Sequence[Wait]) -> _Nested:
        outer = max(holds, key=lambda hold: hold.held_s)
        inner = waits[0] if waits else min(holds, key=lambda hold: hold.held_s)
        return cls(outer, inner, holds, waits)

    @property
    def who(self) -> str:
        outer = self.outer
        if outer.task:
            return f"task {task_name(outer.task)}"
        return f"thread {outer.thread}"


def _nested(pool: PoolStats, group: Sequence[_Nested]) -> Finding:
    """All holders that nest at one pair of lines."""
    first = max(group, key=lambda each: each.outer.held_s)
    outer, inner = first.outer, first.inner
    who, hold, has = first.who, "holds a connection", "has taken another one"
    if len(group) > 1:
        who += f" and {plural(len(group) - 1, 'other holder')}"
        hold, has = "hold a connection each", "have taken another one"
    if first.waits:
        has = f"wait{'s' if len(group) == 1 else ''} for another one"
    return Finding(
        kind="nested",
        severity="critical" if first.waits else "warning",
        pool=pool.id,
        text=f"{who} {hold} taken at {taken_at(outer)} and {has} at {taken_at(inner)}",
        proof=f"one holder, two requests on pool {pool.name!r}"
        + (f": {len(group)} times" if len(group) > 1 else ""),
        remedy=_SHARE_IT,
        holds=tuple([key for each in group for key in ids(each.holds)]),
        waits=tuple([key for each in group for key in ids(each.waits)]),
        sites=places(outer.site, inner.site),
    )


def _counted(requests: Iterable[Hold | Wait]) -> str:
    """The places of these, and how many there are at each."""
    return ", ".join(
        f"{at} ({n})" for at, n in Counter(map(taken_at, requests)).items()
    )


def _deadlock(
    pool: PoolStats, stuck: Sequence[Hold], wanted: Sequence[Wait], capacity: int
) -> Finding:
    return Finding(
        kind="pool_deadlock",
        severity="critical",
        pool=pool.id,
        text=f"pool {pool.name!r} is deadlocked: each of its {capacity} connections is "
        "held by a thread or task that waits for another one",
        proof=f"taken at {_counted(stuck)}, all waiting at {_counted(wanted)}; no "
        "other holder can return one",
        remedy=f"Pass the held connection to the inner code; a pool of {capacity + 1} "
        "is the smallest in which these holders can move.",
        holds=ids(stuck),
        waits=ids(wanted),
        sites=places(*(hold.site for hold in stuck), *(wait.site for wait in wanted)),
    )
