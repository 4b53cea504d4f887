"""``concurrent_use``: two threads or tasks use one connection at the same moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from poolwatch.diagnosis.common import distinct_sites
from poolwatch.model import ConcurrentStatements, Finding, Frame, PoolStats
from poolwatch.text.format import duration, place, plural, site_and_callers

_RECENT_S = 300.0
"""Seconds for which concurrent statements are reported."""


def concurrent_use(
    pool: PoolStats, noted: Iterable[ConcurrentStatements]
) -> list[Finding]:
    """``concurrent_use``, one for each pair of call sites, in whatever order."""
    groups: dict[frozenset[Frame], list[ConcurrentStatements]] = defaultdict(list)
    for each in noted:
        if each.ago_s < _RECENT_S:
            groups[frozenset(distinct_sites(each.running, each.begun))].append(each)
    return [_finding(pool, group) for group in groups.values()]


def _finding(pool: PoolStats, group: Sequence[ConcurrentStatements]) -> Finding:
    latest = min(group, key=lambda each: each.ago_s)
    running, begun = zip(*(each.callers for each in group), strict=True)
    times = sum(each.times for each in group)
    kind = "task" if latest.tasks else "thread"
    return Finding(
        kind="concurrent_use",
        severity="warning",
        pool=pool.id,
        text=f"two {kind}s use one connection of pool {pool.name!r} at the same time: "
        f"{site_and_callers(latest.begun, *begun)} while the statement of "
        f"{site_and_callers(latest.running, *running)} was running",
        proof=f"seen {plural(times, 'time')}, last {duration(latest.ago_s)} ago; the "
        f"connection was checked out at {place(latest.checkout)}",
        remedy=f"Give each {kind} a connection or session of its own. On a shared one "
        "their statements wait for each other or fail, and a commit or rollback of one "
        "ends the transaction of the other.",
        sites=distinct_sites(latest.running, latest.begun),
    )
