"""Findings that concern a server, over the processes of all hosts of a history.

Two hosts mean the same server if its own identity says so. Where a host could not read
it, the name and port in the URL of the pool decide, if no two servers have them. A
loopback address or a socket means nothing on another host.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

from poolwatch.diagnosis.evidence import ServerEvidence
from poolwatch.diagnosis.lock_waits import LockChain, lock_chains, lock_wait
from poolwatch.diagnosis.servers import full_servers, is_local
from poolwatch.diagnosis.sessions import Sessions, servers_by_pool
from poolwatch.model import (
    Finding,
    FleetFinding,
    PoolStats,
    Process,
    RequestOfHost,
    ServerStatus,
    severity_rank,
)
from poolwatch.text.format import server_in

_NOW = datetime.max.replace(tzinfo=UTC)


def fleet_findings(processes: Sequence[Process]) -> list[FleetFinding]:
    """The findings over several hosts, the most severe first.

    What concerns one host alone is among the findings of its processes.
    """
    processes = with_known_servers(processes)
    found = [
        _of_fleet(finding)
        for finding, pools in full_servers(processes)
        if len({process.host for _, process, _ in pools}) > 1
    ]
    sessions = Sessions([ServerEvidence(each) for each in processes])
    found += [
        _lock_wait(chain)
        for process in processes
        for chain in lock_chains(process, sessions)
        if _leads_to_another_host(chain)
    ]
    return sorted(found, key=lambda each: severity_rank(each.severity))


def _of_fleet(finding: Finding, *holds: RequestOfHost, who: str = "") -> FleetFinding:
    return FleetFinding(
        kind=finding.kind,
        severity=finding.severity,
        pool=None,
        text=who + finding.text,
        proof=finding.proof,
        remedy=finding.remedy,
        holds=holds,
        sites=finding.sites,
    )


def _leads_to_another_host(chain: LockChain) -> bool:
    return any(
        each.process is not None and each.process.host != chain.process.host
        for each in (*chain.blockers, *chain.behind)
    )


def _lock_wait(chain: LockChain) -> FleetFinding:
    process = chain.process
    blockers = [
        RequestOfHost(each.process.host, each.process.pid, each.hold.id)
        for each in (*chain.blockers, *chain.behind)
        if each.process and each.hold and not each.hold.may_have_ended
    ]
    return _of_fleet(
        lock_wait(chain),
        RequestOfHost(process.host, process.pid, chain.hold.id),
        *blockers,
        who=f"process {process.pid} on {process.host}: ",
    )


# -- which server ------------------------------------------------------------------


class PoolOnServer(NamedTuple):
    """A pool of one process, and what its process knows of the server."""

    number: int
    """Index of the process."""
    process: Process
    pool: PoolStats
    status: ServerStatus | None

    @property
    def name(self) -> str | None:
        """The server's name and port in the pool's URL; None if it is only local."""
        url = self.pool.url
        address = self.status.address if self.status else None
        if self.status is None and not (url or "").startswith("postgres"):
            return None
        name = server_in(url) or address
        return None if name is None or is_local(name) else name.lower()

    @property
    def at(self) -> datetime:
        """When the process was like this."""
        return datetime.fromisoformat(self.process.at) if self.process.at else _NOW


def with_known_servers(processes: Sequence[Process]) -> list[Process]:
    """Return the processes; all pools on one server have its newest status.

    The identity in that status is the same on all hosts.
    """
    pools = [
        PoolOnServer(number, process, pool, servers_by_pool(process).get(pool.id))
        for number, process in enumerate(processes)
        for pool in process.pools
    ]
    newest: dict[str, ServerStatus] = {}
    found: list[dict[str, list[str]]] = [{} for _ in processes]
    names: dict[str, str] = {}
    for identity, each in sorted(_identified(pools), key=lambda pair: pair[1].at):
        found[each.number].setdefault(identity, []).append(each.pool.id)
        if each.name:
            names[identity] = each.name
        known, status = newest.get(identity), each.status
        if status and (known is None or _was_read(status) or not _was_read(known)):
            newest[identity] = status
    return [
        replace(
            process,
            servers=tuple(
                replace(
                    newest[identity],
                    identity=identity,
                    pools=tuple(ids),
                    address=names.get(identity, newest[identity].address),
                )
                for identity, ids in servers.items()
                if identity in newest
            ),
        )
        for process, servers in zip(processes, found, strict=True)
    ]


def _was_read(status: ServerStatus) -> bool:
    return status.error is None and status.max_connections is not None


def _identified(pools: Sequence[PoolOnServer]) -> Iterator[tuple[str, PoolOnServer]]:
    """The pools with the identities of their servers, where these are known."""
    own = {each.status.identity for each in pools if each.status} - {None}
    # a role that may not read the system identifier knows the start only
    by_start = {i.partition("/")[2]: i for i in own if i and not i.startswith("/")}
    by_name: dict[str, set[str]] = defaultdict(set)
    nameless = []
    for each in pools:
        identity = each.status.identity if each.status else None
        if identity is None:
            nameless.append(each)
            continue
        if identity.startswith("/"):
            identity = by_start.get(identity[1:], identity)
        if each.name:
            by_name[each.name].add(identity)
        yield identity, each
    for each in nameless:
        known = by_name.get(each.name or "", set())
        if each.name and len(known) < 2:  # else it may be either
            yield next(iter(known), each.name), each
        elif each.status is not None:
            yield f"{each.process.host} {each.status.address or each.pool.url}", each
