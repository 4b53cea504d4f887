"""Findings about nested requests: one holder wants several connections at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from poolwatch.diagnosis.common import distinct_sites, ids, still_running
from poolwatch.diagnosis.evidence import JudgedHold, OpenWait
from poolwatch.model import Finding, Frame, Hold, NestedRequests, PoolStats, Wait
from poolwatch.text.format import call_site, duration, plural, site_and_callers
from poolwatch.text.naming import task_name

_RECENT_S = 300.0
"""Seconds for which ended nested requests are reported."""
_SHARE_IT = (
    "Pass the connection that is already held to the inner code: once such "
    "callers hold every connection of the pool, they deadlock. A larger pool only "
    "makes that rarer."
)
_OPEN_IT_LATER = (
    "No statement was seen on the outer connection before the inner one was requested: "
    "check out the outer one after the inner code, or not at all. Once such callers "
    "hold every connection of the pool, they deadlock."
)


def nested_now(
    pool: PoolStats, holds: Iterable[JudgedHold], waits: Iterable[OpenWait]
) -> list[Finding]:
    """``nested``, of requests that are open now."""
    groups: dict[tuple[Frame | None, Frame | None, bool], list[_Nested]]
    groups = defaultdict(list)
    holds = list(holds)
    unused = {each.hold.id for each in holds if each.evidence.no_statement}
    for held, waiting in _by_owner(holds, waits):
        each = _Nested.of(held, waiting, unused)
        groups[each.outer.site, each.inner.site, bool(waiting)].append(each)
    return [_nested(pool, group) for group in groups.values()]


def nested_before(
    pool: PoolStats, noted: Iterable[NestedRequests], shown: Sequence[Finding]
) -> list[Finding]:
    """``nested``, for requests that the ledger has noted and that have ended.

    Leaves out the call sites in ``shown``, the findings of :func:`nested_now`.
    """
    lasting = {finding.sites for finding in shown}
    by_sites: dict[tuple[Frame, ...], list[NestedRequests]] = defaultdict(list)
    for each in noted:
        sites = distinct_sites(each.outer, each.inner)
        if sites not in lasting and each.ago_s < _RECENT_S:
            by_sites[sites].append(each)
    return [_nested_before(pool, sites, group) for sites, group in by_sites.items()]


def _by_owner(
    holds: Iterable[JudgedHold], waits: Iterable[OpenWait]
) -> list[tuple[list[Hold], list[Wait]]]:
    """The requests of each thread or task that has a hold and another hold or wait."""
    groups: dict[object, tuple[list[Hold], list[Wait]]] = defaultdict(lambda: ([], []))
    for each in holds:
        if each.evidence.one_of_several and used_by_holder(each):
            groups[each.evidence.owner][0].append(each.hold)
    for wait, owner in waits:
        groups[owner][1].append(wait)
    return [
        (held, waiting)
        for held, waiting in groups.values()
        if held and len(held) + len(waiting) > 1
    ]


def used_by_holder(judged: JudgedHold) -> bool:
    """Whether the holder itself uses the connection: neither leaked nor handed over."""
    hold, _, evidence = judged
    search = evidence.search
    if hold.verdict == "leaked" or evidence.by_others:
        return False
    if search is not None and search.used_by_holder is False:
        return False
    if evidence.nested:
        return True
    if still_running(hold) and not evidence.called_again:
        return search is None or search.path is None or search.in_use
    return search is not None and (search.in_use or search.hidden)


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
        text=f"{site_and_callers(latest.inner, *inner)} checks out a connection "
        f"while its caller holds one checked out at "
        f"{site_and_callers(latest.outer, *outer)}",
        proof=f"recorded {plural(times, 'time')}, last "
        f"{duration(latest.ago_s)} ago by {latest.who}; up to {depth} connections "
        "requested at once by one holder",
        remedy=_OPEN_IT_LATER
        if all(each.outer_unused for each in group)
        else _SHARE_IT,
        sites=sites,
    )


class _Nested(NamedTuple):
    """Two or more requests of one holder on one pool."""

    outer: Hold
    inner: Hold | Wait
    holds: Sequence[Hold]
    waits: Sequence[Wait]
    outer_unused: bool

    @classmethod
    def of(
        cls, holds: Sequence[Hold], waits: Sequence[Wait], unused: Container[str]
    ) -> _Nested:
        outer = max(holds, key=lambda hold: hold.known_s)
        inner = waits[0] if waits else min(holds, key=lambda hold: hold.known_s)
        return cls(outer, inner, holds, waits, outer.id in unused)

    @property
    def who(self) -> str:
        outer = self.outer
        if outer.task:
            return f"task {task_name(outer.task)}"
        return f"thread {outer.thread}"


def _nested(pool: PoolStats, group: Sequence[_Nested]) -> Finding:
    """One finding for all holders that nest at one pair of call sites."""
    first = max(group, key=lambda each: each.outer.known_s)
    outer, inner = first.outer, first.inner
    who, hold, has = first.who, "holds a connection", "has checked out another one"
    if len(group) > 1:
        who += f" and {plural(len(group) - 1, 'other holder')}"
        hold, has = "each hold a connection", "have checked out another one"
    if first.waits:
        has = f"wait{'s' if len(group) == 1 else ''} for another one"
    return Finding(
        kind="nested",
        severity="critical" if first.waits else "warning",
        pool=pool.id,
        text=f"{who} {hold} checked out at {call_site(outer)} and {has} at "
        f"{call_site(inner)}",
        proof=f"one thread or task wants two connections of pool {pool.name!r} at once"
        + (f": {len(group)} times" if len(group) > 1 else ""),
        remedy=_OPEN_IT_LATER
        if all(each.outer_unused for each in group)
        else _SHARE_IT,
        holds=tuple([key for each in group for key in ids(each.holds)]),
        waits=tuple([key for each in group for key in ids(each.waits)]),
        sites=distinct_sites(outer.site, inner.site),
    )
