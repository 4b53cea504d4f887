"""Findings about whole servers: they do not answer, or lack connections."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from ipaddress import ip_address
from typing import NamedTuple

from poolwatch.diagnosis.common import distinct_sites
from poolwatch.diagnosis.configuration import (
    exceeds_any_server,
    is_unlimited,
    made,
)
from poolwatch.errors import NO_ANSWER
from poolwatch.model import Finding, PoolStats, Process, ServerStatus
from poolwatch.text.format import clock, duration, plural, server_in

_MAX_NAMED = 6
"""Most pools that are named; the others are counted."""
_SUBJECT = re.compile(r"\bPostgreSQL at (.+?) (?:does not answer|accepts)")
_LOCAL_NAMES = {"localhost", "localhost6", "ip6-localhost", "ip6-loopback"}


def over_capacity(processes: Sequence[Process]) -> dict[int, list[Finding]]:
    """``over_capacity``: the pools of all processes can open more than the server has.

    One finding for each server, with the process (by its index) whose pools can open
    the most connections.
    """
    found: dict[int, list[Finding]] = defaultdict(list)
    for finding, pools in full_servers(processes):
        found[_largest(pools)].append(finding)
    return found


def covered_by_over_capacity(processes: Sequence[Process]) -> set[tuple[int, str]]:
    """The pools of which over_capacity() speaks: the process by its index, and the id.

    What their processes say of the same is left out then.
    """
    return {
        (number, pool.id)
        for _, pools in full_servers(processes)
        for number, _, pool in pools
    }


_Pools = list[tuple[int, Process, PoolStats]]


class FullServer(NamedTuple):
    """A server with fewer connections than its pools can open."""

    finding: Finding
    pools: _Pools
    """Its pools, each with its process and the index of that."""


def full_servers(processes: Sequence[Process]) -> list[FullServer]:
    """The servers whose pools can open more connections than they have."""
    return [
        FullServer(finding, pools)
        for server, pools in _by_server(processes)
        if (finding := _over_capacity(server, pools)) is not None
    ]


def server_down(processes: Sequence[Process]) -> dict[int, list[Finding]]:
    """``server_down``: a server that pools are connected to does not answer.

    One finding for each server, the same one for each process (by its index) that has
    a pool on it. Two statuses with the same identity or address are of one server.
    """
    found: dict[int, list[Finding]] = defaultdict(list)
    for statuses, pools in _silent_servers(processes):
        if pools:
            finding = _server_down(statuses, pools)
            for number in dict.fromkeys(number for number, *_ in pools):
                found[number].append(finding)
    return found


_Silent = list[tuple[list[ServerStatus], _Pools]]


def _silent_servers(processes: Sequence[Process]) -> _Silent:
    """Each server that does not answer: its statuses, and the pools on it."""
    found: list[tuple[set[str], list[ServerStatus], _Pools]] = []
    for number, process in enumerate(processes):
        pools_by_id = {pool.id: pool for pool in process.pools}
        for status in process.servers:
            if status.down is None:
                continue
            pools = [
                (number, process, pools_by_id[p])
                for p in status.pools
                if p in pools_by_id
            ]
            group = (_names_of(status, pools), [status], pools)
            same_server = [each for each in found if each[0] & group[0]]
            for names, statuses, earlier_pools in same_server:
                group = (
                    names | group[0],
                    statuses + group[1],
                    earlier_pools + group[2],
                )
            found = [each for each in found if each not in same_server] + [group]
    return [(statuses, pools) for _, statuses, pools in found]


def _names_of(status: ServerStatus, pools: _Pools) -> set[str]:
    """Names that identify a server; a local address only does so on its host."""
    address = _address_of(status, pools)
    host = pools[0][1].host if pools and is_local(address) else ""
    names = {f"{host} {address}"} if address else set()
    if status.identity is not None:
        names.add(status.identity)
    return names


def _address_of(status: ServerStatus, pools: _Pools) -> str | None:
    """The server's address by its connections, else by the pool's URL."""
    return status.address or next(
        (found for _, _, pool in pools if (found := server_in(pool.url))), None
    )


def server_of_text(text: str) -> str | None:
    """The address of the server that a finding of this module is about."""
    found = _SUBJECT.search(text)
    return None if found is None else found[1]


def is_local(address: str | None) -> bool:
    """Whether an address means another server on another host: a socket, a loopback."""
    if not address or address.startswith(("/", "@")):
        return bool(address)
    host = address.rpartition(":")[0].strip("[]").lower()
    if host.split(".")[0] in _LOCAL_NAMES:
        return True
    try:
        found = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None) or found
    return bool(mapped.is_loopback or mapped.is_unspecified)


def _server_down(statuses: Sequence[ServerStatus], pools: _Pools) -> Finding:
    address = next((a for s in statuses if (a := _address_of(s, pools))), None)
    silences = [(s.silent_s, s.since) for s in statuses if s.silent_s and s.since]
    since = ""
    if silences:
        silent_s, at = min(silences)
        since = f" since {clock(at)} ({duration(silent_s)})"
    processes = len({number for number, _, _ in pools})
    use = "uses" if len(pools) == 1 else "use"
    owners = f"{plural(len(pools), 'pool')} of {processes} "
    owners += "process" if processes == 1 else "processes"
    down_errors = dict.fromkeys(
        s.down for s in statuses if s.down not in (None, NO_ANSWER)
    )
    words = f": {', '.join(map(str, down_errors))}" if down_errors else ""
    errors = dict.fromkeys(s.error for s in statuses if s.error)
    return Finding(
        kind="server_down",
        severity="critical",
        pool=None,
        text=f"PostgreSQL at {address or '?'} does not answer{since}"
        f"{words}; {owners} {use} it",
        proof="; ".join([*errors, "used by " + _names(pools)]),
        remedy=_STOPPED if down_errors else _SILENT,
    )


_STOPPED = (
    "Check that the address is right and the server is started; then its log, and the "
    "network in between. Return the connections that were checked out when it stopped: "
    "they are dead."
)
_SILENT = (
    "Check whether the server hangs (its log, its disk, a stopped process), and the "
    "network in between. What waits for it goes on when it answers again."
)


def _by_server(processes: Sequence[Process]) -> list[tuple[ServerStatus, _Pools]]:
    """Each server that was read, with its last status and all pools on it."""
    servers: dict[str, ServerStatus] = {}
    pools: dict[str, _Pools] = defaultdict(list)
    for number, process in enumerate(processes):
        pools_by_id = {pool.id: pool for pool in process.pools}
        for status in process.servers:
            if status.identity is None or status.error is not None:
                continue
            servers[status.identity] = status
            connected = [
                pools_by_id[each] for each in status.pools if each in pools_by_id
            ]
            # the connections of a pool over another pool are those of that pool, and
            # those of a pooler are fewer
            connected = [
                pool for pool in connected if not pool.over and not pool.behind_pooler
            ]
            pools[status.identity] += [(number, process, pool) for pool in connected]
    return [(server, pools[identity]) for identity, server in servers.items()]


def _over_capacity(server: ServerStatus, pools: _Pools) -> Finding | None:
    if server.max_connections is None:
        return None
    reserved = server.reserved or 0
    limit = server.max_connections - reserved
    wanted = sum(pool.capacity or 0 for _, _, pool in pools)
    unlimited = [each for each in pools if is_unlimited(each[2])]
    reached = server.sessions is not None and server.sessions >= limit
    if wanted <= limit and not (unlimited and reached):
        return None
    proof = [
        f"max_connections is {server.max_connections}, {reserved} of them reserved",
        f"{server.sessions} sessions now",
        _named(pools),
    ]
    if unlimited and wanted:
        proof.append("without a limit: " + _names(unlimited))
    by_themselves = [
        each
        for each in pools
        if exceeds_any_server(each[2]) or (each[2].capacity or 0) > limit
    ]
    culprits = by_themselves or pools
    return Finding(
        kind="over_capacity",
        severity="critical" if reached else "warning",
        pool=None,
        text=f"{_who_can(pools, by_themselves, wanted)}; "
        f"PostgreSQL at {server.address or '?'} accepts {limit}"
        + (", and all of those are in use" if reached else ""),
        proof="; ".join(proof),
        remedy="Make the pools smaller or run fewer processes, so that all pools "
        f"together open no more than {limit}; or put a pooler such as PgBouncer in "
        "between.",
        sites=distinct_sites(*(pool.made_at for _, _, pool in culprits)),
    )


def _who_can(pools: _Pools, by_themselves: _Pools, wanted: int) -> str:
    """The number of connections that one pool, or all together, can open, in words."""
    if len(by_themselves) == 1 and by_themselves[0][2].made_at:
        pool = by_themselves[0][2]
        if pool.capacity is None:
            return f"{made(pool)} has no limit"
        most = plural(pool.capacity, "connection")
        return f"{made(pool)} can open {most} by itself"
    count = len({number for number, _, _ in pools})
    owners = "one process" if count == 1 else f"{count} processes"
    hosts = len({process.host for _, process, _ in pools})
    owners += f" on {hosts} hosts" if hosts > 1 else ""
    capacity = f"can open {plural(wanted, 'connection')}" if wanted else "have no limit"
    return f"the pools of {owners} {capacity}"


def _named(pools: _Pools) -> str:
    limited = [each for each in pools if each[2].capacity]
    limited.sort(key=lambda each: -(each[2].capacity or 0))
    named = [
        f"{owned} can open {pool.capacity}"
        for owned, (*_, pool) in zip(_owned(limited), limited, strict=False)
    ]
    if len(limited) > _MAX_NAMED:
        named.append(f"and {len(limited) - _MAX_NAMED} more pools")
    return ", ".join(named) or "without a limit: " + _names(pools)


def _names(pools: _Pools) -> str:
    return ", ".join(_owned(pools))


def _owned(pools: _Pools) -> list[str]:
    """The first pools, each with its process; with its host, if there are several."""
    several = len({process.host for _, process, _ in pools}) > 1
    return [
        f"{pool.name!r} of pid {process.pid}"
        + (f" on {process.host}" if several else "")
        for _, process, pool in pools[:_MAX_NAMED]
    ]


def _largest(pools: _Pools) -> int:
    sums: Counter[int] = Counter()
    for number, _, pool in pools:
        sums[number] += pool.capacity or 0
    return max(sums, key=lambda number: (sums[number], -number))
