"""Findings that only the server can prove: locks, idle transactions, lost backends, and
whether it has enough connections for all pools.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from poolwatch.diagnosis.common import by_severity, ids, places
from poolwatch.errors import NO_ANSWER
from poolwatch.model import Departed, Finding, Hold, PoolStats, Process, ServerStatus
from poolwatch.protocol.records import Backend
from poolwatch.text.format import clock, duration, plural, server_in, taken_at

Key = tuple[str | None, int | None]
"""A server by its address, and a backend pid on it."""
_MOST_NAMED = 6
"""Pools that are named; the others are counted."""


def with_server(processes: Sequence[Process]) -> tuple[Process, ...]:
    """Add what only the server can prove: lock waits, idle transactions, whether it
    answers, and whether it has enough connections.

    Takes processes whose holds are joined with their server rows already. Backend pids
    are compared only between processes that look at the same server.
    """
    holders: dict[Key, tuple[Process, Hold]] = {
        (server.address, hold.backend_pid): (process, hold)
        for process in processes
        for hold, server in _joined(process)
    }
    too_many = over_capacity(processes)
    down = server_down(processes)
    return tuple(
        replace(
            process,
            findings=by_severity(
                [
                    *down.get(number, ()),
                    *process.findings,
                    *_server_findings(process, holders),
                    *too_many.get(number, ()),
                ]
            ),
        )
        for number, process in enumerate(processes)
    )


def over_capacity(processes: Sequence[Process]) -> dict[int, list[Finding]]:
    """``over_capacity``: the pools of all processes can open more than the server has.

    Said once for a server: with the process, by its number, whose pools can open most
    of them. It is of no single pool.
    """
    found: dict[int, list[Finding]] = defaultdict(list)
    for server, pools in _by_server(processes):
        finding = _over_capacity(server, pools)
        if finding is not None:
            found[_largest(pools)].append(finding)
    return found


_Pools = list[tuple[int, Process, PoolStats]]


def server_down(processes: Sequence[Process]) -> dict[int, list[Finding]]:
    """``server_down``: a server that pools are connected to does not answer.

    Said once for a server: with the first process, by its number, that has a pool on
    it. Two statuses are of one server if its identity or its address says so.
    """
    found: dict[int, list[Finding]] = defaultdict(list)
    for statuses, pools in _silent_servers(processes):
        if pools:
            found[pools[0][0]].append(_server_down(statuses, pools))
    return found


_Silent = list[tuple[list[ServerStatus], _Pools]]


def _silent_servers(processes: Sequence[Process]) -> _Silent:
    """Each server that does not answer: all that is said of it, and the pools on it."""
    found: list[tuple[set[str], list[ServerStatus], _Pools]] = []
    for number, process in enumerate(processes):
        known = {pool.id: pool for pool in process.pools}
        for status in process.servers:
            if status.down is None:
                continue
            pools = [(number, process, known[p]) for p in status.pools if p in known]
            group = (_names_of(status, pools), [status], pools)
            same = [each for each in found if each[0] & group[0]]
            for names, statuses, mine in same:
                group = (names | group[0], statuses + group[1], mine + group[2])
            found = [each for each in found if each not in same] + [group]
    return [(statuses, pools) for _, statuses, pools in found]


def _names_of(status: ServerStatus, pools: _Pools) -> set[str]:
    """What tells this server from others. A local address means one host's own."""
    address = _address_of(status, pools)
    host = pools[0][1].host if pools and _is_local(address) else ""
    names = {f"{host} {address}"} if address else set()
    if status.identity is not None:
        names.add(status.identity)
    return names


def _address_of(status: ServerStatus, pools: _Pools) -> str | None:
    """Where the server is: as its connections say, else as the pool's URL does."""
    return status.address or next(
        (found for _, _, pool in pools if (found := server_in(pool.url))), None
    )


def _is_local(address: str | None) -> bool:
    return bool(
        address and address.startswith(("/", "127.", "localhost:", "[::1]", "::1"))
    )


def _server_down(statuses: Sequence[ServerStatus], pools: _Pools) -> Finding:
    address = next((a for s in statuses if (a := _address_of(s, pools))), None)
    seen = [(s.silent_s, s.since) for s in statuses if s.silent_s and s.since]
    since = ""
    if seen:
        silent_s, at = min(seen)
        since = f" since {clock(at)} ({duration(silent_s)})"
    processes = len({number for number, _, _ in pools})
    use = "uses" if len(pools) == 1 else "use"
    whose = f"{plural(len(pools), 'pool')} of {processes} "
    whose += "process" if processes == 1 else "processes"
    said = dict.fromkeys(s.down for s in statuses if s.down not in (None, NO_ANSWER))
    words = f": {', '.join(map(str, said))}" if said else ""
    errors = dict.fromkeys(s.error for s in statuses if s.error)
    return Finding(
        kind="server_down",
        severity="critical",
        pool=None,
        text=f"PostgreSQL at {address or '?'} does not answer{since}"
        f"{words}; {whose} {use} it",
        proof="; ".join([*errors, "used by " + _names(pools)]),
        remedy="Start the server, or look at its log and at the network between. "
        "Connections that were out when it stopped have to be returned.",
    )


def _by_server(processes: Sequence[Process]) -> list[tuple[ServerStatus, _Pools]]:
    """Each server that was read, as last read, with all pools that are on it."""
    servers: dict[str, ServerStatus] = {}
    pools: dict[str, _Pools] = defaultdict(list)
    for number, process in enumerate(processes):
        known = {pool.id: pool for pool in process.pools}
        for status in process.servers:
            if status.identity is None or status.error is not None:
                continue
            servers[status.identity] = status
            mine = [known[each] for each in status.pools if each in known]
            pools[status.identity] += [(number, process, pool) for pool in mine]
    return [(server, pools[identity]) for identity, server in servers.items()]


def _over_capacity(server: ServerStatus, pools: _Pools) -> Finding | None:
    if server.max_connections is None:
        return None
    reserved = server.reserved or 0
    limit = server.max_connections - reserved
    wanted = sum(pool.capacity or 0 for _, _, pool in pools)
    unlimited = [each for each in pools if _is_unlimited(each[2])]
    reached = server.sessions is not None and server.sessions >= limit
    if wanted <= limit and not (unlimited and reached):
        return None
    count = len({number for number, _, _ in pools})
    who = "one process" if count == 1 else f"{count} processes"
    can = f"can open {plural(wanted, 'connection')}" if wanted else "have no limit"
    proof = [
        f"max_connections is {server.max_connections}, {reserved} of them reserved",
        f"{server.sessions} sessions now",
        _named(pools),
    ]
    if unlimited and wanted:
        proof.append("without a limit: " + _names(unlimited))
    return Finding(
        kind="over_capacity",
        severity="critical" if reached else "warning",
        pool=None,
        text=f"the pools of {who} {can}; PostgreSQL at {server.address or '?'} has "
        f"{limit} for them" + (", and all of those are taken" if reached else ""),
        proof="; ".join(proof),
        remedy="Make the pools smaller or run fewer processes, so that all of them "
        "together fit; or put a pooler such as PgBouncer between.",
    )


def _is_unlimited(pool: PoolStats) -> bool:
    """Whether it opens as many as are asked for, rather than an unknown number."""
    return pool.capacity is None and (pool.kind == "NullPool" or pool.size is not None)


def _named(pools: _Pools) -> str:
    limited = [each for each in pools if each[2].capacity]
    limited.sort(key=lambda each: -(each[2].capacity or 0))
    named = [
        f"{pool.name!r} of pid {process.pid} has {pool.capacity}"
        for _, process, pool in limited[:_MOST_NAMED]
    ]
    if len(limited) > _MOST_NAMED:
        named.append(f"and {len(limited) - _MOST_NAMED} more pools")
    return ", ".join(named) or "without a limit: " + _names(pools)


def _names(pools: _Pools) -> str:
    named = [f"{pool.name!r} of pid {process.pid}" for _, process, pool in pools]
    return ", ".join(named[:_MOST_NAMED])


def _largest(pools: _Pools) -> int:
    sums: Counter[int] = Counter()
    for number, _, pool in pools:
        sums[number] += pool.capacity or 0
    return max(sums, key=lambda number: (sums[number], -number))


def _joined(process: Process) -> list[tuple[Hold, ServerStatus]]:
    servers = {pool: server for server in process.servers for pool in server.pools}
    return [
        (hold, servers[hold.pool])
        for hold in process.holds
        if hold.server is not None and hold.pool in servers
    ]


def _server_findings(
    process: Process, holders: Mapping[Key, tuple[Process, Hold]]
) -> list[Finding]:
    long_after = {pool.id: pool.long_after_s for pool in process.pools}
    findings = []
    for hold, server in _joined(process):
        row = hold.server
        assert row is not None  # _joined takes no others
        if row.blocked_by:
            blockers = [holders.get((server.address, pid)) for pid in row.blocked_by]
            findings.append(_lock_wait(hold, [each for each in blockers if each]))
        age, limit = row.state_age_s or 0.0, long_after[hold.pool]
        if hold.verdict == "ok" or limit is None or age < limit:
            continue
        if (row.state or "").startswith("idle in transaction"):
            findings.append(_idle_in_transaction(hold, age))
        elif row.state == "active" and not row.blocked_by:
            findings.append(_slow_query(hold, age))
    return findings


def _lock_wait(hold: Hold, blockers: Sequence[tuple[Process, Hold]]) -> Finding:
    row = hold.server
    assert row is not None  # the caller read blocked_by from it
    pids = ", ".join(map(str, row.blocked_by))
    names = [
        f"{taken_at(blocker)} ({(blocker.server and blocker.server.state) or '?'}, "
        f"pid {blocker.backend_pid})"
        for _, blocker in blockers
    ]
    by = " and ".join(names) or f"pid {pids}, which is no hold of an instrumented pool"
    return Finding(
        kind="lock_wait",
        severity="critical",
        pool=hold.pool,
        text=f"{taken_at(hold)} is blocked by {by}",
        proof=f"pg_blocking_pids({hold.backend_pid}) = {pids}; waiting for "
        f"{duration(row.state_age_s)}",
        remedy="Commit or roll back the blocking transaction before slow work.",
        holds=(hold.id,),
        sites=places(hold.site, *(blocker.site for _, blocker in blockers)),
    )


def _idle_in_transaction(hold: Hold, age: float) -> Finding:
    return Finding(
        kind="idle_in_transaction",
        severity="warning",
        pool=hold.pool,
        text=f"{taken_at(hold)} has been idle in a transaction for {duration(age)}",
        proof=f"pg_stat_activity: backend {hold.backend_pid} is "
        f"{hold.server.state if hold.server else '?'}",
        remedy="Commit before work that does not need the database.",
        holds=(hold.id,),
        sites=places(hold.site),
    )


def _slow_query(hold: Hold, age: float) -> Finding:
    return Finding(
        kind="slow_query",
        severity="warning",
        pool=hold.pool,
        text=f"{taken_at(hold)} has waited {duration(age)} for one statement",
        proof=f"pg_stat_activity: backend {hold.backend_pid} has been active on it all "
        "the time, and waits for nobody's lock",
        remedy="Look at the statement (EXPLAIN), not at the pool.",
        holds=(hold.id,),
        sites=places(hold.site),
    )


def strays(left: Iterable[tuple[Departed, Backend]]) -> list[Finding]:
    """``stray_session``: the application has given a connection up, the server has not.

    Takes such connections with their backends.
    """
    return [
        Finding(
            kind="stray_session",
            severity="warning",
            pool=gone.pool,
            text=f"backend {backend.pid} still serves a connection that the "
            f"application gave up {duration(gone.closed_s)} ago "
            f"({backend.row.state or '?'})",
            proof="no hold and no idle connection of the pool is its own; pid and age "
            "are those of the closed connection",
            remedy="Let the statement end, or SELECT "
            f"pg_terminate_backend({backend.pid}); give statements a "
            "statement_timeout.",
        )
        for gone, backend in left
    ]


def ghosts(process: Process, holds: Iterable[str]) -> Process:
    """Add ``ghost``: holds, by id, that the server has no backend for.

    One for each server: when it was restarted, all holds on it are ghosts at once.
    """
    wanted = set(holds)
    servers = {pool: server for server in process.servers for pool in server.pools}
    groups: dict[str | None, list[Hold]] = defaultdict(list)
    for hold in process.holds:
        if hold.id in wanted:
            server = servers.get(hold.pool)
            name = server.identity or server.address if server else None
            groups[name].append(hold)
    found = [
        _ghost(process, group, servers.get(group[0].pool)) for group in groups.values()
    ]
    return replace(process, findings=by_severity([*process.findings, *found]))


def _ghost(
    process: Process, holds: Sequence[Hold], server: ServerStatus | None
) -> Finding:
    names = {pool.id: pool.name for pool in process.pools}
    pools = dict.fromkeys(names.get(hold.pool, "?") for hold in holds)
    backends = ", ".join(str(hold.backend_pid) for hold in holds[:_MOST_NAMED])
    more = len(holds) - _MOST_NAMED
    backends += f" and {more} more" if more > 0 else ""
    sites = places(*(hold.site for hold in holds))
    one = len(holds) == 1
    taken = dict.fromkeys(taken_at(hold) for hold in holds)
    where = ", ".join(list(taken)[:3]) or "?"
    who = (
        f"{where} holds a connection"
        if one
        else f"{len(holds)} connections held by {where}"
    )
    up_s = server.up_s if server else None
    restarted = up_s is not None and all(_is_older(hold, up_s) for hold in holds)
    if restarted:
        what = f"of a server that was restarted {duration(up_s)} ago"
        text = f"{who} {what}" if one else f"{who} are {what}"
    else:
        text = (
            f"{who} that the server has ended"
            if one
            else f"{who}: the server has ended them"
        )
    return Finding(
        kind="ghost",
        severity="critical",
        pool=holds[0].pool if len({hold.pool for hold in holds}) == 1 else None,
        text=text,
        proof=f"the server of pool {', '.join(map(repr, pools))} has no backend "
        f"{backends}, before and after which the hold{'' if one else 's'} "
        f"{'was' if one else 'were'} open",
        remedy="Its next statement will fail: return the connection, and let the "
        "pool test connections first (pool_pre_ping=True).",
        holds=ids(holds),
        sites=sites,
    )


def _is_older(hold: Hold, up_s: float) -> bool:
    """Whether the connection was made before the server was started."""
    return hold.connection is not None and hold.connection.age_s > up_s
