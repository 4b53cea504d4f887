"""The list of all diagnoses: of a pool, of a process, of its servers.

A new kind of finding is a name in :data:`poolwatch.model.FindingKind`, a function in
this package, and a call of that function here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from poolwatch.diagnosis import backends, holds, nested, pools, servers
from poolwatch.diagnosis.churn import churned
from poolwatch.diagnosis.common import by_severity
from poolwatch.diagnosis.evidence import PoolEvidence, ServerEvidence
from poolwatch.model import Finding, PoolOrigin, PoolStats, Process


def pool_findings(evidence: PoolEvidence) -> list[Finding]:
    """The findings about one pool, its holds and its waits."""
    stats = evidence.stats
    held = [each.hold for each in evidence.holds]
    waits = [each.wait for each in evidence.waits]
    found = [
        *holds.hold_findings(evidence.holds),
        *holds.collected(stats, evidence.collected, per_thread=evidence.per_thread),
        *pools.exhausted(stats, held, waits),
        *(() if evidence.per_thread else pools.unpooled(stats)),
        *holds.mostly_outside(stats, evidence.outside),
        *holds.fork_shared(stats, evidence.holds, evidence.inherited),
    ]
    if evidence.shared:
        return found
    nested_now = nested.nested_now(stats, evidence.holds, evidence.waits)
    found += nested_now
    found += nested.nested_before(stats, evidence.nested, nested_now)
    if not nested_now:
        found += pools.undersized(stats, held, waits)
    return found


def process_findings(
    origins: Iterable[PoolOrigin], stats: Iterable[PoolStats]
) -> list[Finding]:
    """The findings about the way one process creates its pools."""
    return churned(origins, stats)


def with_server_findings(evidence: Sequence[ServerEvidence]) -> tuple[Process, ...]:
    """Return the processes, with the findings that only their servers can prove."""
    processes = [each.process for each in evidence]
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
                    *backends.stray_sessions(each.stray_sessions),
                    *backends.ghosts(each.process, each.missing),
                    *backends.row_findings(each.process, holders),
                    *too_many.get(number, ()),
                ]
            ),
        )
        for number, each in enumerate(evidence)
    )
