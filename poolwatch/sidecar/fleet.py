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

from poolwatch.diagnosis.common import distinct_sites
from poolwatch.diagnosis.lock_waits import LockChain, causes, lock_chains, lock_wait
from poolwatch.diagnosis.servers import full_servers, is_local
from poolwatch.diagnosis.sessions import Sessions, server_of, servers_by_pool
from poolwatch.model import (
    Finding,
    FleetFinding,
    Process,
    RequestOfHost,
    ServerStatus,
    severity_rank,
)
from poolwatch.text.format import plural, server_in

_NOW = datetime.max.replace(tzinfo=UTC)


def fleet_findings(processes: Sequence[Process]) -> list[FleetFinding]:
    """The findings over several hosts, the most severe first.

    What concerns one host alone is among the findings of its processes.
    """
    processes = _with_known_servers(processes)
    found = [
        _of_fleet(finding)
        for finding, pools in full_servers(processes)
        if len({process.host for _, process, _ in pools}) > 1
    ]
    sessions = Sessions(processes)
    by_root: dict[object, list[LockChain]] = defaultdict(list)
    for process in processes:
        for chain in lock_chains(process, sessions):
            if _leads_to_another_host(chain):
                by_root[_root(chain)].append(chain)
    found += map(_lock_wait, by_root.values())
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


def _root(chain: LockChain) -> object:
    """What is the same for all holds that wait for one session in the end."""
    status = servers_by_pool(chain.process)[chain.hold.pool]
    server = server_of(chain.process, status)
    return server, frozenset(each.pid for each in causes(chain))


def _lock_wait(chains: Sequence[LockChain]) -> FleetFinding:
    """The finding about one root: in the words of who has waited for it longest."""
    longest = max(chains, key=lambda each: each.row.state_age_s or 0.0)
    ordered = [longest, *(each for each in chains if each is not longest)]
    process, more = longest.process, len(chains) - 1
    told = [lock_wait(each) for each in ordered]
    text = told[0].text
    if more:
        waits = "waits" if more == 1 else "wait"
        text += f"; {plural(more, 'more hold')} {waits} for the same session"
    sites = distinct_sites(*(site for each in told for site in each.sites))
    holds = dict.fromkeys(hold for each in ordered for hold in _holds(each))
    return _of_fleet(
        replace(told[0], text=text, sites=sites),
        *holds,
        who=f"process {process.pid} on {process.host}: ",
    )


def _holds(chain: LockChain) -> Iterator[RequestOfHost]:
    """The hold that waits, then those in its way."""
    process = chain.process
    yield RequestOfHost(process.host, process.pid, chain.hold.id)
    for each in (*chain.blockers, *chain.behind):
        if each.process and each.hold and not each.hold.may_have_ended:
            yield RequestOfHost(each.process.host, each.process.pid, each.hold.id)


# -- which server ------------------------------------------------------------------


class PoolOnServer(NamedTuple):
    """A pool, and what its process knows of the server."""

    number: int
    """Index of the process, or whatever tells the pool apart for the caller."""
    host: str
    id: str
    url: str | None
    status: ServerStatus | None
    at: datetime = _NOW
    """When it was like this."""

    @property
    def name(self) -> tuple[str, str] | None:
        """The server's name and port by the pool's URL; with the host if it is local.

        None if it is no PostgreSQL.
        """
        if self.status is None and not (self.url or "").startswith("postgres"):
            return None
        address = self.status.address if self.status else None
        name = server_in(self.url) or address
        if name is None or is_local(name):
            return self.host, name or self.url or ""
        return "", name.lower()


class KnownServer(NamedTuple):
    """A server and the pools on it, of all hosts."""

    identity: str
    status: ServerStatus | None
    """Its newest reading, with its name in the pools' URLs as the address."""
    pools: list[PoolOnServer]


def known_servers(pools: Sequence[PoolOnServer]) -> list[KnownServer]:
    """Return the servers of these pools."""
    groups: dict[str, list[PoolOnServer]] = defaultdict(list)
    for identity, each in _identified(pools):
        groups[identity].append(each)
    return [
        KnownServer(identity, _newest_status(identity, group), group)
        for identity, group in groups.items()
    ]


def _newest_status(identity: str, pools: list[PoolOnServer]) -> ServerStatus | None:
    found = None
    for each in sorted(pools, key=lambda each: each.at):
        status = each.status
        if status and (found is None or _was_read(status) or not _was_read(found)):
            found = status
    if found is None:
        return None
    names = [each.name[1] for each in pools if each.name and not each.name[0]]
    address = names[0] if names else found.address
    return replace(found, identity=identity, address=address)


def _was_read(status: ServerStatus) -> bool:
    return status.error is None and status.max_connections is not None


def _identified(pools: Sequence[PoolOnServer]) -> Iterator[tuple[str, PoolOnServer]]:
    """The pools on PostgreSQL, each with the identity of its server."""
    own = {each.status.identity for each in pools if each.status}
    # a role that may not read the system identifier knows the start only
    by_start = {i.partition("/")[2]: i for i in own if i and not i.startswith("/")}
    by_name: dict[tuple[str, str], set[str]] = defaultdict(set)
    unread = []
    for each in pools:
        identity = each.status.identity if each.status else None
        if identity is None:
            unread.append(each)
            continue
        if identity.startswith("/"):
            identity = by_start.get(identity[1:], identity)
        if each.name is not None:
            by_name[each.name].add(identity)
        yield identity, each
    for each in unread:
        if each.name is None:
            continue
        known = by_name[each.name]
        # of two servers with one name it may be either: then it is neither
        host, name = (each.host, each.name[1]) if len(known) > 1 else each.name
        yield next(iter(known)) if len(known) == 1 else f"{host} {name}".lstrip(), each


def _with_known_servers(processes: Sequence[Process]) -> list[Process]:
    """Return the processes; all pools on one server have its newest status."""
    pools = [
        PoolOnServer(number, process.host, pool.id, pool.url, statuses.get(pool.id), at)
        for number, process in enumerate(processes)
        for statuses in [servers_by_pool(process)]
        for at in [datetime.fromisoformat(process.at) if process.at else _NOW]
        for pool in process.pools
    ]
    found: list[list[ServerStatus]] = [[] for _ in processes]
    for _, status, on_server in known_servers(pools):
        by_process: dict[int, list[str]] = defaultdict(list)
        for each in on_server:
            by_process[each.number].append(each.id)
        for number, ids in by_process.items():
            if status is not None:
                own = servers_by_pool(processes[number])
                others = {
                    backend.pid: backend
                    for pool in ids
                    if pool in own
                    for backend in own[pool].others
                }
                found[number].append(
                    replace(status, pools=tuple(ids), others=tuple(others.values()))
                )
    return [
        replace(process, servers=tuple(servers))
        for process, servers in zip(processes, found, strict=True)
    ]
