"""The list of everything that is diagnosed: of a pool, of a process, of its servers.

A new kind of finding is a name in :data:`poolwatch.model.FindingKind`, a function in
this package, and a call of it here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from poolwatch.diagnosis import backends, holds, nested, pools, servers
from poolwatch.diagnosis.churn import churned
from poolwatch.diagnosis.common import by_severity
from poolwatch.diagnosis.evidence import PoolEvidence, ServerEvidence
from poolwatch.model import Finding, PoolOrigin, PoolStats, Process


def of_pool(seen: PoolEvidence) -> list[Finding]:
    """Everything that is wrong with one pool, its holds and its waits."""
    stats = seen.stats
    held = [each.hold for each in seen.holds]
    waits = [each.wait for each in seen.waits]
    found = [
        *holds.of_holds(seen.holds),
        *holds.collected(stats, seen.collected),
        *pools.exhausted(stats, held, waits),
        *pools.unpooled(stats),
        *holds.mostly_outside(stats, seen.outside),
        *holds.fork_shared(stats, seen.holds, seen.inherited),
    ]
    if seen.shared:
        return found
    nested_now = nested.nested_now(stats, seen.holds, seen.waits)
    found += nested_now
    found += nested.nested_before(stats, seen.nested, nested_now)
    if not nested_now:
        found += pools.undersized(stats, held, waits)
    return found


def of_process(made: Iterable[PoolOrigin], stats: Iterable[PoolStats]) -> list[Finding]:
    """Everything that is wrong with how one process makes its pools."""
    return churned(made, stats)


def of_servers(seen: Sequence[ServerEvidence]) -> tuple[Process, ...]:
    """Return the processes with everything that only their servers can prove."""
    processes = [each.process for each in seen]
    down = servers.server_down(processes)
    too_many = servers.over_capacity(processes)
    holders = backends.holders(processes)
    return tuple(
        replace(
            each.process,
            findings=by_severity(
                [
                    *down.get(number, ()),
                    *each.process.findings,
                    *backends.strays(each.strays),
                    *backends.ghosts(each.process, each.missing),
                    *backends.of_rows(each.process, holders),
                    *too_many.get(number, ()),
                ]
            ),
        )
        for number, each in enumerate(seen)
    )
