"""The cause first: what leads to what, and the order that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from poolwatch.diagnosis.merged_records import (
    Facts,
    Key,
    Merged,
    holds_of,
)
from poolwatch.diagnosis.servers import server_of_text
from poolwatch.model import FindingKind, severity_rank
from poolwatch.text.format import server_in

_OF_HOLDS: frozenset[FindingKind] = frozenset(
    {"long_hold", "held_across_io", "idle_in_transaction", "slow_query"}
)
"""Kinds about holds that last: in an exhausted pool, others wait for them."""
_PoolKey = tuple[str, int, str]
"""Host, pid and id of a pool."""


def cause_first(found: Sequence[Merged], facts: Facts) -> list[Merged]:
    """Return the findings in order, each with what it leads to."""
    exhausted = {
        pool: each.key
        for each in found
        if each.kind == "exhausted"
        for pool in _pools(each, facts)
    }
    linked = [
        replace(each, leads_to=_leads_to(each, found, exhausted, facts))
        for each in found
    ]
    return sorted(linked, key=lambda each: _rank(each, facts))


def _rank(each: Merged, facts: Facts) -> tuple[int, int, int]:
    severity, count = severity_rank(each.severity), -len(each.holds) - len(each.waits)
    if each.kind == "lock_wait":
        held_up = _held_up(each, facts)
        return (2, -held_up, count) if held_up else (6, severity, count)
    if each.kind == "ghost" and each.key.about.startswith("restarted "):
        return 3, 0, count
    if _is_leak(each) and each.severity == "critical" and _in_full(each, facts):
        return 5, severity, count
    first = {"server_down": 0, "pool_deadlock": 1, "exhausted": 4}
    return first.get(each.kind, 6), severity, count - each.processes


def _held_up(each: Merged, facts: Facts) -> int:
    """The number of sessions that the roots of a lock hold up."""
    victims = {
        victim
        for member in each.members
        if (root := facts.root(member)) is not None
        for victim in root.victims
    }
    return len(victims)


def _is_leak(each: Merged) -> bool:
    return each.kind.startswith("leaked.") or each.kind == "lost_slot"


def _in_full(each: Merged, facts: Facts) -> bool:
    """Whether no connection is left in a pool of these findings."""
    pools = [pool for m in each.members if (pool := facts.pool(m)) is not None]
    return any(p.capacity is not None and p.out >= p.capacity for p in pools)


def _leads_to(
    each: Merged,
    found: Sequence[Merged],
    exhausted: dict[_PoolKey, Key],
    facts: Facts,
) -> tuple[Key, ...]:
    keys: list[Key] = []
    if each.kind == "lock_wait":
        keys += _same_hold(each, found)
    if each.kind == "nested":
        keys += [
            other.key
            for other in found
            if other.kind == "pool_deadlock" and other.pool == each.pool
        ]
    if each.kind == "server_down":
        pools = _pools_of_server(each, facts)
    elif _is_leak(each) or each.kind in _OF_HOLDS | {"pool_deadlock", "lock_wait"}:
        pools = _pools(each, facts)
    else:
        pools = set()
    keys += [exhausted[pool] for pool in sorted(pools) if pool in exhausted]
    return tuple(dict.fromkeys(key for key in keys if key != each.key))


def _same_hold(each: Merged, found: Sequence[Merged]) -> list[Key]:
    """What is said of the root of a lock besides: all of it is the same hold."""
    roots = set(each.holds) - {h for member in each.members for h in holds_of(member)}
    return [
        other.key
        for other in found
        if (other.kind in _OF_HOLDS or _is_leak(other))
        and roots.intersection(other.holds)
    ]


def _pools(each: Merged, facts: Facts) -> set[_PoolKey]:
    """The pools of the findings, and of the holds that they name."""
    own = {
        (process.host, process.pid, finding.pool)
        for process, finding in each.members
        if process is not None and finding.pool is not None
    }
    return own | {
        (hold.host, hold.pid, pool.id)
        for hold in each.holds
        if (pool := facts.pool_of(hold)) is not None
    }


def _pools_of_server(each: Merged, facts: Facts) -> set[_PoolKey]:
    """The pools on a server that does not answer."""
    address = server_of_text(each.text)
    return {
        (process.host, process.pid, pool.id)
        for process in facts.processes
        for status in process.servers
        for pool in process.pools
        if status.down is not None
        and pool.id in status.pools
        and address in {status.address, server_in(pool.url)}
    }
