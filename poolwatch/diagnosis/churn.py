"""``pool_churn``: one line of code keeps creating pools for the same database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from poolwatch.model import LATEST, Finding, PoolOrigin, PoolStats, Severity
from poolwatch.text.format import duration, place, plural

_MANY = 5
"""Pools created at one line: more than a few configuration reloads create."""
_PILE = 3
"""Live, connected pools of one line from which they count as piling up."""
_WINDOW_S = 600.0
"""LATEST pools created within this time are churn, even if none of them lasts."""
_LARGE = 25
"""Open connections that make the finding critical: a quarter of the usual limit."""


def churned(origins: Iterable[PoolOrigin], pools: Iterable[PoolStats]) -> list[Finding]:
    """``pool_churn``, for each function that created many pools with equal arguments.

    Module-level code is left out, because it runs once; so are comprehensions, which
    create a fixed set of pools.
    """
    stats = {pool.id: pool for pool in pools}
    return [
        _finding(each, stats)
        for each in origins
        if _inside_a_function(each) and (_piles_up(each, stats) or _goes_on(each))
    ]


def _inside_a_function(origin: PoolOrigin) -> bool:
    function = origin.site.function
    return not function.startswith("<") or function == "<lambda>"


def _piles_up(origin: PoolOrigin, stats: Mapping[str, PoolStats]) -> bool:
    connected = [each for each in origin.pools if _connections(stats.get(each))]
    return origin.made - origin.together >= _MANY and len(connected) >= _PILE


def _goes_on(origin: PoolOrigin) -> bool:
    return len(origin.latest_s) >= LATEST and origin.latest_s[0] <= _WINDOW_S


def _connections(pool: PoolStats | None) -> int:
    return 0 if pool is None else pool.checked_out + (pool.idle or 0)


def _finding(origin: PoolOrigin, stats: Mapping[str, PoolStats]) -> Finding:
    alive = [each for each in origin.pools if each in stats]
    connections = sum(_connections(stats[each]) for each in alive)
    severity: Severity = "critical" if connections >= _LARGE else "warning"
    lately = len(origin.latest_s)
    return Finding(
        kind="pool_churn",
        severity=severity,
        pool=alive[-1] if alive else None,
        text=f"{place(origin.site)} in {origin.site.function} created "
        f"{plural(origin.made, 'pool')} for {origin.url}: {len(alive)} alive now, with "
        f"{plural(connections, 'connection')}",
        proof=f"counted at creation: the latest {lately} within "
        f"{duration(origin.latest_s[0] - origin.latest_s[-1])}, the last "
        f"{duration(origin.latest_s[-1])} ago; at most {origin.most_alive} alive at "
        "once",
        remedy="Create the engine or pool once, at module level or when the "
        "application starts, and share it. Call dispose() or close() on a pool "
        "for a single use.",
        sites=(origin.site,),
    )
