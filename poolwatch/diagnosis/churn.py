"""``pool_churn``: one line makes pool after pool for the same database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from poolwatch.model import LATEST, Finding, PoolOrigin, PoolStats, Severity
from poolwatch.text.format import duration, place, plural

_MANY = 5
"""Pools made at one line: more than a few reloads of a configuration make."""
_PILE = 3
"""Pools of one line that are alive and connected: so many pile up."""
_WINDOW_S = 600.0
"""LATEST pools made within this time are churn, even if none of them lasts."""
_LARGE = 25
"""Open connections that make it critical: a quarter of PostgreSQL's usual limit."""


def churned(made: Iterable[PoolOrigin], pools: Iterable[PoolStats]) -> list[Finding]:
    """``pool_churn``, for each function that made many pools with equal arguments.

    A module makes its pools once, and a comprehension makes a fixed set of them.
    """
    stats = {pool.id: pool for pool in pools}
    return [
        _finding(each, stats)
        for each in made
        if _inside_a_function(each) and (_piles_up(each, stats) or _goes_on(each))
    ]


def _inside_a_function(made: PoolOrigin) -> bool:
    function = made.site.function
    return not function.startswith("<") or function == "<lambda>"


def _piles_up(made: PoolOrigin, stats: Mapping[str, PoolStats]) -> bool:
    connected = [each for each in made.pools if _connections(stats.get(each))]
    return made.made - made.together >= _MANY and len(connected) >= _PILE


def _goes_on(made: PoolOrigin) -> bool:
    return len(made.latest_s) >= LATEST and made.latest_s[0] <= _WINDOW_S


def _connections(pool: PoolStats | None) -> int:
    return 0 if pool is None else pool.checked_out + (pool.idle or 0)


def _finding(made: PoolOrigin, stats: Mapping[str, PoolStats]) -> Finding:
    alive = [each for each in made.pools if each in stats]
    connections = sum(_connections(stats[each]) for each in alive)
    severity: Severity = "critical" if connections >= _LARGE else "warning"
    lately = len(made.latest_s)
    return Finding(
        kind="pool_churn",
        severity=severity,
        pool=alive[-1] if alive else None,
        text=f"{place(made.site)} in {made.site.function} made "
        f"{plural(made.made, 'pool')} for {made.url}: {len(alive)} alive now, with "
        f"{plural(connections, 'connection')}",
        proof=f"counted as they were made, the latest {lately} within "
        f"{duration(made.latest_s[0] - made.latest_s[-1])}, the last "
        f"{duration(made.latest_s[-1])} ago; {made.most_alive} alive at once at most",
        remedy="Make the engine or pool once, at module level or when the application "
        "starts, and share it; what is made for one use needs dispose() or close() "
        "after it.",
        sites=(made.site,),
    )
