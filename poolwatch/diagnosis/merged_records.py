"""Merged findings, and the cases that they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from poolwatch.diagnosis.blocking import LockRoot, lock_roots
from poolwatch.diagnosis.sessions import server_of, servers_by_pool
from poolwatch.diagnosis.silence import silent_processes
from poolwatch.model import (
    Finding,
    FindingKind,
    FleetFinding,
    Frame,
    Hold,
    PoolStats,
    Process,
    Severity,
    Snapshot,
    Wait,
)
from poolwatch.text.format import place
from poolwatch.text.naming import with_names

_MAX_NAMED = 4
"""Most processes that are named; the others are counted."""
Member = tuple[Process | None, Finding | FleetFinding]
"""A finding, and its process; None for a finding over all hosts."""
RequestKey = tuple[str, int, str]
"""Host, pid, and the id of a hold or a wait."""


def key_of(process: Process, request: Hold | Wait) -> RequestKey:
    """What tells a hold or a wait from all others."""
    return process.host, process.pid, request.id


class Key(NamedTuple):
    """What makes findings equal: equal ones are merged, over processes and time."""

    kind: FindingKind
    pool: str | None = None
    """Name of the pool."""
    sites: tuple[Frame, ...] = ()
    about: str = ""
    """What else it is about: a server, or a session that is no hold."""

    def __str__(self) -> str:
        words = self.kind, self.pool, *(place(site, 3) for site in self.sites)
        text = " ".join([each for each in (*words, self.about) if each])
        return text.replace('"', "'")  # the filter of the dashboard quotes it


class ProcessName(NamedTuple):
    """Names a process, also when its record is no longer kept."""

    host: str
    pid: int
    name: str
    of_history: bool = False

    def __str__(self) -> str:
        host = f" on {self.host}" if self.of_history else ""
        return f"{self.name} (pid {self.pid}{host})"


@dataclass(frozen=True, slots=True)
class Merged:
    """Equal findings of all processes, as one."""

    key: Key
    severity: Severity
    text: str
    proof: str
    remedy: str
    sites: tuple[Frame, ...]
    members: tuple[Member, ...]
    """The worst first."""
    processes: tuple[ProcessName, ...]
    """Those that have it, each once."""
    holds: tuple[tuple[Process, Hold], ...] = ()
    """The holds it is about; for a lock wait the root, then those that it holds up."""
    waits: tuple[tuple[Process, Wait], ...] = ()
    leads_to: tuple[Key, ...] = ()
    """The other findings that it causes or explains."""

    @property
    def kind(self) -> FindingKind:
        """The kind of the findings."""
        return self.key.kind

    @property
    def pool(self) -> str | None:
        """The name of the pool."""
        return self.key.pool

    @property
    def who(self) -> str:
        """The processes that have it, in words; empty if the text names them."""
        if self.kind == "unreachable":
            return ""  # its text names it
        more = len(self.processes) - _MAX_NAMED
        names = ", ".join(map(str, self.processes[:_MAX_NAMED])) or "over all hosts"
        return f"{names} and {more} more" if more > 0 else names


@dataclass(frozen=True, slots=True)
class Case:
    """A finding, with what it names."""

    process: Process | None
    finding: Finding | FleetFinding
    pool: PoolStats | None
    holds: Sequence[tuple[Process, Hold]]
    waits: Sequence[tuple[Process, Wait]]
    root: LockRoot | None
    """Of a lock wait: the root, if it is known."""


class _Records(NamedTuple):
    """One process with its records by id."""

    process: Process
    pools: Mapping[str, PoolStats]
    holds: Mapping[str, Hold]
    waits: Mapping[str, Wait]


def cases_of(snapshot: Snapshot) -> list[Case]:
    """All findings of a snapshot, each with what it names."""
    records = [
        _Records(
            process,
            {pool.id: pool for pool in process.pools},
            {hold.id: hold for hold in process.holds},
            {wait.id: wait for wait in process.waits},
        )
        for process in map(with_names, snapshot.processes)
    ]
    kinds = {finding.kind for each in records for finding in each.process.findings}
    kinds |= {finding.kind for finding in snapshot.findings}
    waits = [each.process for each in records] if "lock_wait" in kinds else []
    roots = _roots(waits)
    by_host = {(each.process.host, each.process.pid): each for each in records}
    silent = silent_processes(snapshot.unreachable)
    return [
        *(Case(None, finding, None, (), (), None) for finding in silent),
        *(_of_fleet(finding, by_host, roots) for finding in snapshot.findings),
    ] + [
        _of_process(finding, each, roots)
        for each in records
        for finding in each.process.findings
    ]


def _of_process(
    finding: Finding, records: _Records, roots: Mapping[RequestKey, LockRoot]
) -> Case:
    process, pools, holds, waits = records
    found = [(process, holds[each]) for each in finding.holds if each in holds]
    return Case(
        process,
        finding,
        None if finding.pool is None else pools.get(finding.pool),
        found,
        [(process, waits[each]) for each in finding.waits if each in waits],
        _root(finding, found, roots),
    )


def _of_fleet(
    finding: FleetFinding,
    by_host: Mapping[tuple[str, int], _Records],
    roots: Mapping[RequestKey, LockRoot],
) -> Case:
    holds = [
        (records.process, records.holds[each.id])
        for each in finding.holds
        if (records := by_host.get((each.host, each.pid))) and each.id in records.holds
    ]
    waits = [
        (records.process, records.waits[each.id])
        for each in finding.waits
        if (records := by_host.get((each.host, each.pid))) and each.id in records.waits
    ]
    return Case(None, finding, None, holds, waits, _root(finding, holds, roots))


def _root(
    finding: Finding | FleetFinding,
    holds: Sequence[tuple[Process, Hold]],
    roots: Mapping[RequestKey, LockRoot],
) -> LockRoot | None:
    """The root of a lock wait, whose first hold is the one that waits."""
    if finding.kind != "lock_wait" or not holds:
        return None
    return roots.get(key_of(*holds[0]))


def _roots(processes: Sequence[Process]) -> dict[RequestKey, LockRoot]:
    """By the hold that waits."""
    roots = lock_roots(Snapshot(tuple(processes)))
    return {
        key_of(process, hold): roots[server, hold.backend_pid]
        for process in processes
        for servers in [servers_by_pool(process)]
        for hold in process.holds
        if hold.backend_pid is not None and hold.pool in servers
        for server in [server_of(process, servers[hold.pool])]
        if (server, hold.backend_pid) in roots
    }
