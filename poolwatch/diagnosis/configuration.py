"""Findings about the set-up of pools, before anything has happened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from poolwatch.diagnosis.common import distinct_sites
from poolwatch.diagnosis.evidence import PoolEvidence
from poolwatch.model import Finding, Frame, PoolStats
from poolwatch.text.format import duration, place, plural

_RECENT_S = 600.0
"""Seconds after which a pool counts as no longer used."""


def is_unlimited(pool: PoolStats) -> bool:
    """Whether the pool is known to have no limit."""
    return pool.slots is None and (pool.kind == "NullPool" or pool.size is not None)


def made(pool: PoolStats) -> str:
    """``pool 'shop', made at shop/db.py:12,``: the subject of a sentence."""
    where = f", made at {place(pool.made_at)}," if pool.made_at else ""
    return f"pool {pool.name!r}{where}"


def unlimited(pools: Iterable[PoolStats]) -> list[Finding]:
    """``over_capacity``, for each line that makes pools without a limit."""
    by_site = {
        pool.made_at or pool.id: pool for pool in pools if exceeds_any_server(pool)
    }
    return [_unlimited(pool) for pool in by_site.values()]


def exceeds_any_server(pool: PoolStats) -> bool:
    """Whether a pool has no limit and should have one.

    Pools that keep no connections are left out: they are meant to have none.
    """
    return is_unlimited(pool) and "Null" not in pool.kind and _on_postgres(pool.url)


def _on_postgres(url: str | None) -> bool:
    return url is not None and url.startswith("postgres")


def _unlimited(pool: PoolStats) -> Finding:
    why = f"max_overflow={pool.max_overflow} means no limit"
    if not pool.size:
        why = "pool_size=0 means no limit, whatever max_overflow was given"
    unknown = "" if pool.made_at else "; it was made before poolwatch was there"
    return Finding(
        kind="over_capacity",
        severity="warning",
        pool=pool.id,
        text=f"{made(pool)} has no limit: by itself it can open more connections than "
        "PostgreSQL accepts",
        proof=f"{why}; {plural(pool.checked_out, 'connection')} out now, "
        f"{plural(pool.counters.connects, 'connection')} opened so far{unknown}",
        remedy="Set pool_size and max_overflow so that the pools of all processes "
        "together stay below max_connections (100 by default). If a pooler such as "
        "PgBouncer sets the limit, use poolclass=NullPool, which keeps no connections.",
        sites=distinct_sites(pool.made_at),
    )


def duplicate_pool(pools: Sequence[PoolEvidence]) -> list[Finding]:
    """``duplicate_pool``: pools that are set up alike, made at several lines, in use.

    Pools that differ in an option or have names of their own are meant to be several.
    """
    groups: dict[object, list[PoolEvidence]] = defaultdict(list)
    for each in pools:
        stats, setup = each.stats, each.setup
        if setup is None or setup.purpose is None or setup.own_creator:
            continue
        if stats.made_at and "Null" not in stats.kind and _on_postgres(stats.url):
            groups[stats.url, setup.purpose].append(each)
    found = []
    for group in groups.values():
        used = _used_together(group)
        by_site = {each.stats.made_at: each for each in used}
        if len(by_site) > 1:
            found.append(_duplicates(list(by_site.values())))
    return found


def _used_together(group: Sequence[PoolEvidence]) -> list[PoolEvidence]:
    """The pools that were all used after the last of them was made."""
    used = [
        (each, each.setup.used_s, each.setup.age_s)
        for each in group
        if each.setup and each.setup.used_s is not None
        if each.setup.used_s < _RECENT_S
    ]
    youngest = min((age for _, _, age in used), default=0.0)
    return [each for each, used_s, _ in used if used_s <= youngest]


def _duplicates(pools: Sequence[PoolEvidence]) -> Finding:
    stats = [each.stats for each in pools]
    capacity = [pool.capacity for pool in stats]
    together = sum(each or 0 for each in capacity)
    connections = [pool.checked_out + (pool.idle or 0) for pool in stats]
    longest = max(each.setup.used_s or 0 for each in pools if each.setup)
    sites: list[Frame | None] = [pool.made_at for pool in stats]
    places = " and ".join(place(site) for site in sites)
    limit = f" of {together} together" if all(capacity) else ""
    return Finding(
        kind="duplicate_pool",
        severity="info",
        pool=stats[0].id,
        text=f"{len(stats)} pools of this process go to one database as one role, with "
        f"equal options: they were made at {places}",
        proof=f"{stats[0].url}; {' + '.join(map(str, connections))} connections open"
        f"{limit}; each was used within the last {duration(longest)}",
        remedy="Make one engine or pool, and pass it to all code and libraries that "
        "need it: the limits of several add up. If they are separate on purpose, give "
        "each a name (pool_logging_name, or name= of poolwatch.instrument).",
        sites=distinct_sites(*sites),
    )
