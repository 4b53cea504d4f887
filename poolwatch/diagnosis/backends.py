"""Findings about single backends: locks, open transactions, sessions that are gone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from poolwatch.diagnosis.common import distinct_sites, ids
from poolwatch.model import (
    ClosedConnection,
    Finding,
    FindingKind,
    Hold,
    Process,
    ServerRow,
    ServerStatus,
    Severity,
)
from poolwatch.text.format import call_site, duration

if TYPE_CHECKING:
    from poolwatch.protocol.records import Backend

Key = tuple[str | None, int | None]
"""The address of a server, and the pid of a backend on it."""
Holders = Mapping[Key, Hold]
_MAX_NAMED = 6
"""Most backends that are named; the others are counted."""


def holders(processes: Iterable[Process]) -> Holders:
    """The holds whose backend is proven, by server address and pid."""
    return {
        (server.address, hold.backend_pid): hold
        for process in processes
        for hold, _, server in _joined(process)
    }


def row_findings(process: Process, holders: Holders) -> list[Finding]:
    """``lock_wait``, ``idle_in_transaction`` and ``slow_query`` of one process.

    Backend pids are compared only between processes on the same server.
    """
    long_after = {pool.id: pool.long_after_s for pool in process.pools}
    findings = []
    for hold, row, server in _joined(process):
        if row.blocked_by:
            blockers = [holders.get((server.address, pid)) for pid in row.blocked_by]
            findings.append(_lock_wait(hold, row, [each for each in blockers if each]))
        age, limit = row.state_age_s or 0.0, long_after[hold.pool]
        if hold.verdict == "ok" or limit is None or age < limit:
            continue
        if (row.state or "").startswith("idle in transaction"):
            findings.append(_idle_in_transaction(hold, row, age))
        elif row.state == "active" and not row.blocked_by:
            findings.append(_slow_query(hold, age))
    return findings


def _joined(process: Process) -> list[tuple[Hold, ServerRow, ServerStatus]]:
    servers = {pool: server for server in process.servers for pool in server.pools}
    return [
        (hold, hold.server, servers[hold.pool])
        for hold in process.holds
        if hold.server is not None and hold.pool in servers
    ]


def _lock_wait(hold: Hold, row: ServerRow, blockers: Sequence[Hold]) -> Finding:
    pids = ", ".join(map(str, row.blocked_by))
    names = [
        f"{call_site(blocker)} ({(blocker.server and blocker.server.state) or '?'}, "
        f"pid {blocker.backend_pid})"
        for blocker in blockers
    ]
    by = " and ".join(names) or f"pid {pids}, a session outside the instrumented pools"
    return _hold_finding(
        hold,
        "lock_wait",
        "critical",
        text=f"{call_site(hold)} waits for a lock held by {by}",
        proof=f"pg_blocking_pids({hold.backend_pid}) = {pids}; waiting for "
        f"{duration(row.state_age_s)}",
        remedy="Commit or roll back the blocking transaction; do slow work after it.",
        blockers=blockers,
    )


def _idle_in_transaction(hold: Hold, row: ServerRow, age: float) -> Finding:
    return _hold_finding(
        hold,
        "idle_in_transaction",
        "warning",
        text=f"{call_site(hold)} has been idle in a transaction for {duration(age)}",
        proof=f"pg_stat_activity: backend {hold.backend_pid} is {row.state}",
        remedy="Commit or roll back before work that does not need the database.",
    )


def _slow_query(hold: Hold, age: float) -> Finding:
    return _hold_finding(
        hold,
        "slow_query",
        "warning",
        text=f"{call_site(hold)} has been running one statement for {duration(age)}",
        proof=f"pg_stat_activity: backend {hold.backend_pid} has been active all that "
        "time and waits for no lock",
        remedy="Tune the statement, starting with EXPLAIN; the pool is not the cause.",
    )


def _hold_finding(
    hold: Hold,
    kind: FindingKind,
    severity: Severity,
    *,
    text: str,
    proof: str,
    remedy: str,
    blockers: Iterable[Hold] = (),
) -> Finding:
    return Finding(
        kind=kind,
        severity=severity,
        pool=hold.pool,
        text=text,
        proof=proof,
        remedy=remedy,
        holds=(hold.id,),
        sites=distinct_sites(hold.site, *(blocker.site for blocker in blockers)),
    )


def stray_sessions(
    sessions: Iterable[tuple[ClosedConnection, Backend]],
) -> list[Finding]:
    """``stray_session``: the server still runs the session of a closed connection."""
    return [
        Finding(
            kind="stray_session",
            severity="warning",
            pool=departed.pool,
            text=f"backend {backend.pid} still runs ({backend.row.state or '?'}), "
            f"{duration(departed.closed_s)} after the application closed its "
            "connection",
            proof="no checked-out or idle connection of the pool has this backend; "
            "its pid and age match the closed connection",
            remedy="Wait for its statement to end, or run SELECT "
            f"pg_terminate_backend({backend.pid}); set a statement_timeout against "
            "the next one.",
        )
        for departed, backend in sessions
    ]


def ghosts(process: Process, missing: Collection[str]) -> list[Finding]:
    """``ghost``: holds without a backend on the server; ``missing`` are their ids.

    One finding for each server, because a restart makes ghosts of all holds on it.
    """
    servers = {pool: server for server in process.servers for pool in server.pools}
    groups: dict[str | None, list[Hold]] = defaultdict(list)
    for hold in process.holds:
        if hold.id in missing:
            server = servers.get(hold.pool)
            name = server.identity or server.address if server else None
            groups[name].append(hold)
    return [
        _ghost(process, group, servers.get(group[0].pool)) for group in groups.values()
    ]


def _ghost(
    process: Process, holds: Sequence[Hold], server: ServerStatus | None
) -> Finding:
    names = {pool.id: pool.name for pool in process.pools}
    pools = dict.fromkeys(names.get(hold.pool, "?") for hold in holds)
    backends = ", ".join(str(hold.backend_pid) for hold in holds[:_MAX_NAMED])
    more = len(holds) - _MAX_NAMED
    backends += f" and {more} more" if more > 0 else ""
    sites = distinct_sites(*(hold.site for hold in holds))
    single = len(holds) == 1
    sites_in_words = dict.fromkeys(call_site(hold) for hold in holds)
    shown_sites = ", ".join(list(sites_in_words)[:3]) or "?"
    subject = (
        f"{shown_sites} holds a connection"
        if single
        else f"{len(holds)} connections held by {shown_sites}"
    )
    up_s = server.up_s if server else None
    restarted = up_s is not None and all(_is_older(hold, up_s) for hold in holds)
    if restarted:
        opened = f"opened before the server was restarted {duration(up_s)} ago"
        text = f"{subject} {opened}" if single else f"{subject} were {opened}"
    else:
        text = (
            f"{subject} whose session on the server has ended"
            if single
            else f"{subject}: their sessions on the server have ended"
        )
    return Finding(
        kind="ghost",
        severity="critical",
        pool=holds[0].pool if len({hold.pool for hold in holds}) == 1 else None,
        text=text,
        proof="pg_stat_activity on the server of pool "
        f"{', '.join(map(repr, pools))} lists no backend {backends}; the "
        f"hold{' was' if single else 's were'} open before and after it was read",
        remedy="Return the connection: its next statement will fail. Have the pool "
        "test connections at checkout (pool_pre_ping=True).",
        holds=ids(holds),
        sites=sites,
    )


def _is_older(hold: Hold, up_s: float) -> bool:
    """Whether the connection was opened before the server was started."""
    return hold.connection is not None and hold.connection.age_s > up_s
