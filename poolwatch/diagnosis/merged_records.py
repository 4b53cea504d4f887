"""Records of merged findings, and what they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from poolwatch.diagnosis.evidence import ServerEvidence
from poolwatch.diagnosis.lock_roots import LockRoot, lock_roots
from poolwatch.diagnosis.sessions import Sessions, server_of, servers_by_pool
from poolwatch.model import (
    Finding,
    FindingKind,
    FleetFinding,
    Frame,
    Hold,
    PoolStats,
    Process,
    RequestOfHost,
    Severity,
    Snapshot,
    Wait,
)
from poolwatch.text.naming import with_names

Member = tuple[Process | None, Finding | FleetFinding]
"""A finding, and its process; None for a finding over all hosts."""
ProcessKey = tuple[str, int]
"""Host and pid."""


class Key(NamedTuple):
    """What makes findings equal: equal ones are merged, over processes and time."""

    kind: FindingKind
    pool: str | None = None
    """Name of the pool."""
    sites: tuple[Frame, ...] = ()
    about: str = ""
    """What else it is about: a server, or a session that is no hold."""


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
    processes: int
    """The number of processes that have it."""
    holds: tuple[RequestOfHost, ...] = ()
    """The holds it is about; of a lock the root, then those that it holds up."""
    waits: tuple[RequestOfHost, ...] = ()
    leads_to: tuple[Key, ...] = ()
    """What it causes, or explains, among the other ones."""

    @property
    def kind(self) -> FindingKind:
        """The kind of the findings."""
        return self.key.kind

    @property
    def pool(self) -> str | None:
        """The name of the pool."""
        return self.key.pool


class Facts:
    """Looks up what the findings of a snapshot name."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.processes = tuple(map(with_names, snapshot.processes))
        self.members: list[Member] = [
            *((None, finding) for finding in snapshot.findings),
            *((each, f) for each in self.processes for f in each.findings),
        ]
        self._holds: dict[ProcessKey, dict[str, Hold]] = {}
        self._waits: dict[ProcessKey, dict[str, Wait]] = {}
        self._pools: dict[ProcessKey, dict[str, PoolStats]] = {}
        for process in self.processes:
            where = process.host, process.pid
            self._holds[where] = {hold.id: hold for hold in process.holds}
            self._waits[where] = {wait.id: wait for wait in process.waits}
            self._pools[where] = {pool.id: pool for pool in process.pools}

    def hold(self, of: RequestOfHost) -> Hold | None:
        """The hold, if the snapshot has it."""
        return self._holds.get((of.host, of.pid), {}).get(of.id)

    def wait(self, of: RequestOfHost) -> Wait | None:
        """The wait, if the snapshot has it."""
        return self._waits.get((of.host, of.pid), {}).get(of.id)

    def pool(self, member: Member) -> PoolStats | None:
        """The pool of a finding, if it is about one."""
        process, finding = member
        if process is None or finding.pool is None:
            return None
        return self._pools[process.host, process.pid].get(finding.pool)

    def pool_of(self, of: RequestOfHost) -> PoolStats | None:
        """The pool of a hold."""
        hold = self.hold(of)
        return None if hold is None else self._pools[of.host, of.pid].get(hold.pool)

    def root(self, member: Member) -> LockRoot | None:
        """The root of the lock wait that a finding is about, if it is known."""
        for first in holds_of(member)[:1]:
            return self._roots.get((first.host, first.pid, first.id))
        return None

    @cached_property
    def _roots(self) -> dict[tuple[str, int, str], LockRoot]:
        """By the hold that waits."""
        roots = lock_roots(Sessions([ServerEvidence(each) for each in self.processes]))
        return {
            (process.host, process.pid, hold.id): roots[server, hold.backend_pid]
            for process in self.processes
            for servers in [servers_by_pool(process)]
            for hold in process.holds
            if hold.backend_pid is not None and hold.pool in servers
            for server in [server_of(servers[hold.pool])]
            if (server, hold.backend_pid) in roots
        }


def holds_of(member: Member) -> list[RequestOfHost]:
    """The holds of a finding, each with its host and process."""
    return _of_host(member, member[1].holds)


def waits_of(member: Member) -> list[RequestOfHost]:
    """The waits of a finding, likewise."""
    return _of_host(member, member[1].waits)


def _of_host(
    member: Member, requests: tuple[str, ...] | tuple[RequestOfHost, ...]
) -> list[RequestOfHost]:
    process, _ = member
    found = []
    for each in requests:
        if isinstance(each, RequestOfHost):
            found.append(each)
        elif process is not None:
            found.append(RequestOfHost(process.host, process.pid, each))
    return found
