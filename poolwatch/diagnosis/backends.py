"""Findings about single backends: open transactions, slow statements, lost sessions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from poolwatch.diagnosis.common import distinct_sites, ids
from poolwatch.diagnosis.sessions import (
    IN_TRANSACTION,
    holds_with_rows,
    server_of,
    servers_by_pool,
)
from poolwatch.model import (
    Backend,
    ClosedConnection,
    Finding,
    FindingKind,
    Hold,
    Process,
    ServerRow,
    ServerStatus,
)
from poolwatch.text.format import call_site, duration, place

_MAX_NAMED = 6
"""Most backends that are named; the others are counted."""


def row_findings(process: Process) -> list[Finding]:
    """``idle_in_transaction`` and ``slow_query`` of one process."""
    long_after = {pool.id: pool.long_after_s for pool in process.pools}
    findings = []
    for hold, row, _ in holds_with_rows(process):
        age, limit = row.state_age_s or 0.0, long_after[hold.pool]
        if hold.verdict == "ok" or limit is None or age < limit:
            continue
        if (row.state or "").startswith(IN_TRANSACTION):
            findings.append(_idle_in_transaction(hold, row, age))
        elif row.state == "active" and not row.blocked_by:
            findings.append(_slow_query(hold, age))
    return findings


def _idle_in_transaction(hold: Hold, row: ServerRow, age: float) -> Finding:
    return _hold_finding(
        hold,
        "idle_in_transaction",
        text=f"{call_site(hold)} has been idle in a transaction for {duration(age)}",
        proof=f"pg_stat_activity: backend {hold.backend_pid} is {row.state}",
        remedy="Commit or roll back before work that does not need the database. To "
        f"end it now: SELECT pg_terminate_backend({hold.backend_pid}).",
    )


def _slow_query(hold: Hold, age: float) -> Finding:
    return _hold_finding(
        hold,
        "slow_query",
        text=f"{call_site(hold)} has been running one statement for {duration(age)}",
        proof=f"pg_stat_activity: backend {hold.backend_pid} has been active all that "
        "time and waits for no lock",
        remedy="Tune the statement, starting with EXPLAIN; the pool is not the cause. "
        f"To stop it now: SELECT pg_cancel_backend({hold.backend_pid}).",
    )


def _hold_finding(
    hold: Hold,
    kind: FindingKind,
    *,
    text: str,
    proof: str,
    remedy: str,
) -> Finding:
    return Finding(
        kind=kind,
        severity="warning",
        pool=hold.pool,
        text=text,
        proof=proof,
        remedy=remedy,
        holds=(hold.id,),
        sites=distinct_sites(hold.site),
    )


def stray_sessions(
    sessions: Iterable[tuple[ClosedConnection, Backend]],
) -> list[Finding]:
    """``stray_session``: a session that no pool has any more, or never had."""
    return [
        _stray_of_request(departed, backend)
        if departed.error is not None
        else _stray_of_close(departed, backend)
        for departed, backend in sessions
    ]


def _stray_of_close(departed: ClosedConnection, backend: Backend) -> Finding:
    return Finding(
        kind="stray_session",
        severity="warning",
        pool=departed.pool,
        text=f"backend {backend.pid} still runs ({backend.row.state or '?'}), "
        f"{duration(departed.closed_s)} after the application closed its connection",
        proof="no checked-out or idle connection of a pool has this backend; its pid "
        "and age match the closed connection",
        remedy="Wait for its statement to end, or run SELECT "
        f"pg_terminate_backend({backend.pid}); set a statement_timeout against the "
        "next one.",
    )


def _stray_of_request(departed: ClosedConnection, backend: Backend) -> Finding:
    return Finding(
        kind="stray_session",
        severity="warning",
        pool=departed.pool,
        text=f"backend {backend.pid} ({backend.row.state or '?'}) was opened by a "
        f"checkout at {place(departed.site)} that ended with {departed.error} "
        f"{duration(departed.closed_s)} ago: no pool has its connection",
        proof="the failed checkout had the connection in its frames; the backend's pid "
        "and age match it, and no checked-out or idle connection has this backend",
        remedy="Close the connection where its set-up fails: in the creator, in a "
        "connect listener, on cancellation too (try, except BaseException, close, "
        f"raise). SELECT pg_terminate_backend({backend.pid}) ends this one.",
        sites=distinct_sites(departed.site),
    )


def ghosts(process: Process, missing: Collection[str]) -> list[Finding]:
    """``ghost``: holds without a backend on the server; ``missing`` are their ids.

    One finding for each server, because a restart makes ghosts of all holds on it.
    """
    servers = servers_by_pool(process)
    groups: dict[str | None, list[Hold]] = defaultdict(list)
    for hold in process.holds:
        if hold.id in missing:
            server = servers.get(hold.pool)
            name = server_of(process, server) if server else None
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
    if is_restarted(server, holds):
        up = duration(server.up_s if server else None)
        opened = f"opened before the server was restarted {up} ago"
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
        remedy="Return the connection, and do its work again on another: its next "
        "statement will fail. The server's log says why the session ended: a timeout, "
        "a restart, an administrator. A test at checkout (pool_pre_ping=True; check= "
        "of psycopg's ConnectionPool) helps only where it ended before the checkout.",
        holds=ids(holds),
        sites=sites,
    )


def is_restarted(server: ServerStatus | None, holds: Iterable[Hold]) -> bool:
    """Whether all these connections were opened before the server was started."""
    up_s = None if server is None else server.up_s
    return up_s is not None and all(
        hold.connection is not None and hold.connection.age_s > up_s for hold in holds
    )
