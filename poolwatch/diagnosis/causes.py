"""The cause first: what leads to what, and the order that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from poolwatch.diagnosis.merged_records import Case, Key, Merged
from poolwatch.diagnosis.merged_words import RESTARTED
from poolwatch.diagnosis.servers import server_of_text
from poolwatch.model import FindingKind, Process, severity_rank
from poolwatch.text.format import server_in

_OF_HOLDS: frozenset[FindingKind] = frozenset(
    {"long_hold", "held_across_io", "idle_in_transaction", "slow_query"}
)
"""Kinds about holds that last: in an exhausted pool, others wait for them."""
_PoolKey = tuple[str, int, str]
"""Host, pid and id of a pool."""
_Cases = Mapping[Key, Sequence[Case]]


def cause_first(
    found: Sequence[Merged], cases: _Cases, processes: Sequence[Process]
) -> list[Merged]:
    """Return the findings, the cause first, each with what it leads to."""
    exhausted = {
        pool: each.key
        for each in found
        if each.kind == "exhausted"
        for pool in _own_pools(cases[each.key])
    }
    linked = []
    for each in found:
        keys = _deadlocks(each, found)
        pools = _pools(each, cases[each.key], processes) if exhausted else set()
        keys += [exhausted[pool] for pool in sorted(pools & exhausted.keys())]
        others = dict.fromkeys(key for key in keys if key != each.key)
        linked.append(replace(each, leads_to=tuple(others)))
    return sorted(linked, key=lambda each: _rank(each, cases[each.key]))


def _rank(each: Merged, cases: Sequence[Case]) -> tuple[int, int, int]:
    severity, count = severity_rank(each.severity), len(each.holds) + len(each.waits)
    position = {"server_down": 0, "pool_deadlock": 2, "exhausted": 5}.get(each.kind, 7)
    roots = {id(case.root): case.root for case in cases if case.root is not None}
    held_up = sum(len(root.victims) for root in roots.values())
    if held_up:
        position, severity, count = 3, 0, held_up
    elif each.kind == "unreachable":  # it may hide the cause of the others
        position = 1
    elif each.kind == "ghost" and each.key.about.startswith(RESTARTED):
        position = 4
    elif _is_leak(each) and each.severity == "critical" and _is_full(cases):
        position = 6
    return position, severity, -(count or len(each.processes))


def _is_leak(each: Merged) -> bool:
    return each.kind.startswith("leaked.") or each.kind == "lost_slot"


def _is_full(cases: Sequence[Case]) -> bool:
    """Whether no connection is left in a pool of these findings."""
    pools = [case.pool for case in cases if case.pool is not None]
    return any(p.capacity is not None and p.out >= p.capacity for p in pools)


def _deadlocks(each: Merged, found: Sequence[Merged]) -> list[Key]:
    """The deadlocks of its pool, if it is a nested checkout."""
    if each.kind != "nested":
        return []
    deadlocks = (other.key for other in found if other.kind == "pool_deadlock")
    return [key for key in deadlocks if key.pool == each.pool]


def _pools(
    each: Merged, cases: Sequence[Case], processes: Sequence[Process]
) -> set[_PoolKey]:
    """The pools whose connections it keeps from others."""
    if each.kind == "server_down":
        return _pools_of_server(server_of_text(each.text), processes)
    if _is_leak(each) or each.kind in _OF_HOLDS | {"pool_deadlock", "lock_wait"}:
        return _own_pools(cases) | {(p.host, p.pid, h.pool) for p, h in each.holds}
    return set()


def _own_pools(cases: Sequence[Case]) -> set[_PoolKey]:
    return {
        (case.process.host, case.process.pid, case.pool.id)
        for case in cases
        if case.process is not None and case.pool is not None
    }


def _pools_of_server(
    address: str | None, processes: Sequence[Process]
) -> set[_PoolKey]:
    """The pools on a server that does not answer."""
    return {
        (process.host, process.pid, pool.id)
        for process in processes
        for status in process.servers
        for pool in process.pools
        if status.down is not None
        and pool.id in status.pools
        and address in {status.address, server_in(pool.url)}
    }
