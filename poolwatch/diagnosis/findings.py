"""The list of all diagnoses: of a pool, of a process, of its servers.

A new kind of finding is a name in :data:`poolwatch.model.FindingKind`, a function in
this package, and a call of that function here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from poolwatch.diagnosis import (
    backends,
    concurrent,
    configuration,
    holds,
    nested,
    servers,
)
from poolwatch.diagnosis.churn import churned
from poolwatch.diagnosis.common import by_severity
from poolwatch.diagnosis.deadlock import deadlocked
from poolwatch.diagnosis.dirty_returns import dirty_returns
from poolwatch.diagnosis.evidence import PoolEvidence, ServerEvidence
from poolwatch.diagnosis.lock_waits import lock_waits
from poolwatch.diagnosis.pools import exhausted, lost_slot, undersized, unpooled
from poolwatch.diagnosis.sessions import Sessions
from poolwatch.model import Finding, PoolOrigin, Process


def pool_findings(
    evidence: PoolEvidence, pools: Sequence[PoolEvidence] = ()
) -> list[Finding]:
    """The findings about one pool, its holds and its waits.

    ``pools`` are all pools of the process: one may be waiting for another.
    """
    stats = evidence.stats
    held = [each.hold for each in evidence.holds]
    waits = [each.wait for each in evidence.waits]
    found = [
        *holds.hold_findings(evidence.holds),
        *holds.collected(
            stats,
            evidence.collected,
            stats.lost_slots - len(evidence.missing),
            evidence.collected_in,
            per_thread=evidence.per_thread,
        ),
        *lost_slot(stats, evidence.missing),
        *exhausted(stats, [*held, *evidence.lent], waits, lent_idle=evidence.lent_idle),
        *(() if evidence.per_thread else unpooled(stats, evidence.setup)),
        *holds.mostly_outside(stats, evidence.outside),
        *concurrent.concurrent_use(stats, evidence.concurrent),
        *holds.fork_shared(stats, evidence.holds, evidence.inherited),
    ]
    if evidence.shared:
        return found
    deadlock = deadlocked(evidence, pools)
    nested_now = nested.nested_now(stats, evidence.holds, evidence.waits)
    found += [*deadlock, *nested_now]
    found += nested.nested_before(stats, evidence.nested, nested_now)
    if not nested_now and not deadlock:
        found += undersized(stats, held, waits, evidence.outside)
    return found


def process_findings(
    origins: Iterable[PoolOrigin], pools: Sequence[PoolEvidence]
) -> list[Finding]:
    """The findings about the way one process creates its pools."""
    stats = [each.stats for each in pools]
    return [
        *churned(origins, stats),
        *configuration.unlimited(stats),
        *configuration.duplicate_pool(pools),
    ]


def with_server_findings(evidence: Sequence[ServerEvidence]) -> tuple[Process, ...]:
    """Return the processes, with the findings that only their servers can prove."""
    processes = [each.process for each in evidence]
    down = servers.server_down(processes)
    too_many = servers.over_capacity(processes)
    covered = servers.covered_by_over_capacity(processes)
    sessions = Sessions([each.process for each in evidence])
    return tuple(
        replace(
            each.process,
            findings=by_severity(
                [
                    *down.get(number, ()),
                    *[
                        finding
                        for finding in each.process.findings
                        if finding.kind != "over_capacity"
                        or (number, finding.pool) not in covered
                    ],
                    *backends.stray_sessions(each.stray_sessions),
                    *backends.ghosts(each.process, each.missing),
                    *lock_waits(each.process, sessions),
                    *backends.row_findings(each.process),
                    *dirty_returns(each.process, sessions),
                    *too_many.get(number, ()),
                ]
            ),
        )
        for number, each in enumerate(evidence)
    )
