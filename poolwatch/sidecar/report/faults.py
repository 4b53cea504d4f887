"""Faults: incidents of the same kind at the same call sites, as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from poolwatch.model import Finding, Incident, Process, Severity, severity_rank
from poolwatch.text.naming import with_names

Span = tuple[float, float]

_OF_POOL = frozenset({"exhausted", "undersized"})
"""Kinds that are one fault whichever call sites had the connections."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong once or many times, in one process or in many."""

    incidents: tuple[Incident, ...]
    """The worst first: of the highest severity, then the longest."""
    spans: tuple[Span, ...]
    """When at least one of them lasted, within the stretch; in order, disjoint."""

    @property
    def worst(self) -> Incident:
        """The incident whose words stand for all."""
        return self.incidents[0]

    @property
    def severity(self) -> Severity:
        """The highest severity."""
        return self.worst.severity

    @property
    def seconds(self) -> float:
        """How long at least one of them lasted."""
        return total(self.spans)

    @property
    def lasting(self) -> bool:
        """Whether one of them has not ended."""
        return any(each.ended_at is None for each in self.incidents)

    @property
    def processes(self) -> int:
        """The number of processes that had it."""
        return len({(each.host, each.pid) for each in self.incidents})

    @property
    def hosts(self) -> int:
        """The number of hosts that had it."""
        return len({each.host for each in self.incidents})


def faults_of(incidents: Iterable[Incident], since: float, until: float) -> list[Fault]:
    """Merge incidents over processes and over time; the worst fault first."""
    groups: dict[object, list[Incident]] = defaultdict(list)
    for each in incidents:
        sites = () if each.kind in _OF_POOL else each.sites
        groups[each.kind, each.pool, frozenset(sites)].append(each)
    found = []
    for group in groups.values():
        group.sort(key=lambda each: (severity_rank(each.severity), -_length(each)))
        spans = union(_span(each, since, until) for each in group)
        found.append(Fault(tuple(group), tuple(spans)))
    found.sort(key=lambda each: (severity_rank(each.severity), -_weight(each)))
    return found


def union(spans: Iterable[Span]) -> list[Span]:
    """Return the stretches that the spans cover together, in order."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def total(spans: Iterable[Span]) -> float:
    """Return the length of all spans."""
    return sum(end - begin for begin, end in spans)


def finding_of(incident: Incident, process: Process) -> Finding | None:
    """Return the finding of an incident in the snapshot of its first moment."""
    names = {pool.id: pool.name for pool in with_names(process).pools}
    alike = [
        finding
        for finding in process.findings
        if finding.kind == incident.kind and set(finding.sites) == set(incident.sites)
    ]
    of_pool = [each for each in alike if names.get(each.pool or "") == incident.pool]
    return next(iter(of_pool or alike), None)


def when(time: str) -> float:
    """Return an ISO 8601 time in seconds since the epoch."""
    return datetime.fromisoformat(time).timestamp()


def _span(incident: Incident, since: float, until: float) -> Span:
    begin, end = when(incident.started_at), when(incident.last_seen_at)
    return max(begin, since), max(min(end, until), since)


def _length(incident: Incident) -> float:
    return when(incident.last_seen_at) - when(incident.started_at)


def _weight(fault: Fault) -> float:
    """The time that all processes together had it."""
    return sum(map(_length, fault.incidents)) + len(fault.incidents)
