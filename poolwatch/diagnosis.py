"""What is wrong, and how we know: pure functions over records.

A verdict is about one hold; a finding is one thing that is wrong. Each comes with its
proof, because a false accusation is as bad as a missed leak: nothing is said here that
the records do not show.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from poolwatch.model import (
    Backend,
    Departed,
    Finding,
    Frame,
    Hold,
    PoolStats,
    Process,
    ServerStatus,
    Severity,
    SiteStats,
    Wait,
)
from poolwatch.text import duration, place, plural

Key = tuple[str | None, int | None]
"""A server by its address, and a backend pid on it."""

_NOTICEABLE_WAIT_S = 0.05
_ENOUGH_HOLDS = 10
"""Ended holds that show how long holds of this pool usually last."""

_GRAVITY: dict[Severity, int] = {"critical": 0, "warning": 1, "info": 2}


class _Wording(NamedTuple):
    severity: Severity
    text: str
    remedy: str


_PER_SITE = {
    "leaked.orphaned": _Wording(
        "critical",
        "{where} took {many} and ended without returning {them}",
        "Take the connection in a with block, so that it goes back when the thread or "
        "task ends.",
    ),
    "leaked.abandoned": _Wording(
        "critical",
        "{where} took {many} that nothing uses any more, the oldest {age} ago",
        "Use a with block, or close() in a finally clause, where it was taken.",
    ),
    "held_across_io": _Wording(
        "warning",
        "{where} holds {many} across work that is not the database, for {age}",
        "Return the connection (or end the session) before slow work, and take one "
        "again afterwards.",
    ),
    "long_hold": _Wording(
        "warning",
        "{where} holds {many}, the oldest for {age}",
        "Return the connection before slow work; if the hold is meant to last, say so: "
        'with poolwatch.long_hold("why").',
    ),
}


def of_holds(judged: Iterable[tuple[Hold, str | None]]) -> list[Finding]:
    """Findings about single holds, one per kind, pool and call site.

    Takes holds with the kind their judgement amounts to; kinds that have no finding of
    their own (a statement is running: the server tells more) are left out.
    """
    groups: dict[tuple[str, str, Frame | None], list[Hold]] = defaultdict(list)
    for hold, kind in judged:
        if kind in _PER_SITE:
            groups[kind, hold.pool, hold.site].append(hold)
    findings = []
    for (kind, pool, site), group in groups.items():
        severity, text, remedy = _PER_SITE[kind]
        oldest = max(group, key=lambda hold: hold.held_s)
        findings.append(
            Finding(
                kind=kind,
                severity=severity,
                pool=pool,
                text=text.format(
                    where=place(site),
                    many=plural(len(group), "connection"),
                    them="it" if len(group) == 1 else "them",
                    age=duration(oldest.held_s),
                ),
                proof="; ".join(oldest.evidence),
                remedy=remedy,
                holds=_ids(group),
                sites=_sites(site),
            )
        )
    return findings


def collected(sites: Iterable[SiteStats]) -> list[Finding]:
    """``leaked.collected``: connections that came back only by garbage collection."""
    return [
        Finding(
            kind="leaked.collected",
            severity="warning",
            pool=each.pool,
            text=f"{place(each.site)} dropped {plural(each.leaked, 'connection')} "
            "without returning",
            proof="nobody called close(): the connection object was already dead when "
            "its connection came back",
            remedy="Use a with block, or close() in a finally clause.",
            sites=(each.site,),
        )
        for each in sites
        if each.leaked
    ]


def exhausted(
    pool: PoolStats, holds: Sequence[Hold], waits: Sequence[Wait]
) -> list[Finding]:
    """``exhausted``: somebody waits and nothing is free; says who holds what."""
    capacity = _capacity(pool)
    if not waits or capacity is None or len(holds) < capacity:
        return []
    by_site = Counter(place(hold.site) for hold in holds).most_common(3)
    oldest = max(wait.waited_s for wait in waits)
    return [
        Finding(
            kind="exhausted",
            severity="critical",
            pool=pool.id,
            text=f"pool {pool.name!r} is empty: {len(holds)} of {capacity} out, "
            f"{plural(len(waits), 'wait')}, the oldest for {duration(oldest)}",
            proof="held by " + ", ".join(f"{site} ({n})" for site, n in by_site),
            remedy="Look at the holders before making the pool larger.",
            holds=_ids(holds),
            waits=_ids(waits),
            sites=_sites(*(hold.site for hold in holds)),
        )
    ]


def undersized(
    pool: PoolStats, holds: Sequence[Hold], waits: Sequence[Wait]
) -> list[Finding]:
    """``undersized``: honest work waits; says how many connections would do for it."""
    capacity = _capacity(pool)
    longest = max((wait.waited_s for wait in waits), default=0.0)
    if capacity is None or len(holds) < capacity or longest < _NOTICEABLE_WAIT_S:
        return []
    if any(hold.verdict != "ok" for hold in holds) or pool.counters.leaked:
        return []
    usual = pool.hold_s.p99
    if pool.hold_s.count < _ENOUGH_HOLDS or usual is None:
        return []
    if max(hold.held_s for hold in holds) > 2 * max(usual, _NOTICEABLE_WAIT_S):
        return []  # it waits for these holds, not for want of connections
    enough = len(holds) + len(waits)
    return [
        Finding(
            kind="undersized",
            severity="warning",
            pool=pool.id,
            text=f"pool {pool.name!r} is too small for its work: "
            f"{plural(len(waits), 'request')} wait, the longest for "
            f"{duration(longest)}, and no hold is leaked or long",
            proof=f"{len(holds)} of {capacity} out; 99 % of all holds last less than "
            f"{duration(usual)}",
            remedy=f"A pool of {enough} would have served everybody now; or let the "
            "holders be quicker.",
            holds=_ids(holds),
            waits=_ids(waits),
        )
    ]


def mostly_outside(
    pool: PoolStats, sites: Iterable[tuple[Frame, int, float, float]]
) -> list[Finding]:
    """``held_across_io`` of a call site, without any threshold: most of the time that
    its many holds lasted was not spent in SQL.

    Takes call sites with the number of their holds, the seconds those lasted, and the
    seconds of that in SQL.
    """
    return [
        Finding(
            kind="held_across_io",
            severity="info",
            pool=pool.id,
            text=f"{place(site)} holds connections mostly for work that is not the "
            f"database: {in_sql / held:.0%} of the held time is SQL",
            proof=f"{count} holds lasted {duration(held)} together, "
            f"{duration(in_sql)} of that in statements",
            remedy="Return the connection (or end the session) before slow work, and "
            "take one again afterwards.",
            sites=(site,),
        )
        for site, count, held, in_sql in sites
    ]


def fork_shared(pool: PoolStats, holds: Sequence[Hold]) -> list[Finding]:
    """``fork_shared``: two processes use one connection."""
    return [
        Finding(
            kind="fork_shared",
            severity="critical",
            pool=pool.id,
            text=f"{place(hold.site)} uses a connection that was opened before the "
            "process forked: parent and child share it",
            proof=f"backend {hold.backend_pid} was connected to by another process",
            remedy="Call engine.dispose(close=False) in the child, right after the "
            "fork.",
            holds=(hold.id,),
            sites=_sites(hold.site),
        )
        for hold in holds
    ]


def _capacity(pool: PoolStats) -> int | None:
    """The most connections the pool lends; None if there is no limit."""
    if pool.size is None or pool.max_overflow is None or pool.max_overflow < 0:
        return None
    return pool.size + pool.max_overflow or None


def nested(
    pool: PoolStats, holders: Mapping[object, tuple[Sequence[Hold], Sequence[Wait]]]
) -> list[Finding]:
    """``nested`` and ``pool_deadlock``.

    ``holders`` groups the holds and waits of this pool by the thread or task they
    belong to, and use.
    """
    findings = []
    stuck: list[Hold] = []
    wanted: list[Wait] = []
    for holds, waits in holders.values():
        if not holds or len(holds) + len(waits) < 2:
            continue
        if waits:
            stuck += holds
            wanted += waits
        findings.append(_nested(pool, holds, waits))
    capacity = _capacity(pool)
    if stuck and capacity is not None and len(stuck) == pool.checked_out >= capacity:
        findings.insert(0, _deadlock(pool, stuck, wanted, capacity))
    return findings


def still_there(hold: Hold) -> bool:
    """Whether the function that took the hold is still on its holder's stack."""
    site = hold.site
    return site is not None and any(
        (frame.file, frame.function) == (site.file, site.function) for frame in hold.now
    )


def _nested(pool: PoolStats, holds: Sequence[Hold], waits: Sequence[Wait]) -> Finding:
    outer = max(holds, key=lambda hold: hold.held_s)
    inner = waits[0] if waits else min(holds, key=lambda hold: hold.held_s)
    who = f"task {outer.task}" if outer.task else f"thread {outer.thread}"
    doing = "waits for another one" if waits else "has taken another one"
    return Finding(
        kind="nested",
        severity="critical" if waits else "warning",
        pool=pool.id,
        text=f"{who} holds a connection from {place(outer.site)} and {doing} "
        f"at {place(inner.site)}",
        proof=f"one holder, two requests on pool {pool.name!r}",
        remedy="Pass the connection that is already held to the inner code; as many "
        "such callers as the pool has connections lock each other out.",
        holds=_ids(holds),
        waits=_ids(waits),
        sites=_sites(outer.site, inner.site),
    )


def _deadlock(
    pool: PoolStats, stuck: Sequence[Hold], wanted: Sequence[Wait], capacity: int
) -> Finding:
    return Finding(
        kind="pool_deadlock",
        severity="critical",
        pool=pool.id,
        text=f"pool {pool.name!r} is deadlocked: each of its {capacity} connections is "
        "held by somebody who waits for another one",
        proof=f"{plural(len(wanted), 'holder')} of a connection, all waiting; nobody "
        "else can return one",
        remedy=f"Pass the held connection to the inner code; a pool of {capacity + 1} "
        "is the smallest in which these holders can move.",
        holds=_ids(stuck),
        waits=_ids(wanted),
        sites=_sites(*(hold.site for hold in stuck), *(wait.site for wait in wanted)),
    )


def with_server(processes: Sequence[Process]) -> tuple[Process, ...]:
    """Add what only the server can prove: lock waits and idle transactions.

    Takes processes whose holds are joined with their server rows already. Backend pids
    are compared only between processes that look at the same server.
    """
    holders: dict[Key, tuple[Process, Hold]] = {
        (server.address, hold.backend_pid): (process, hold)
        for process in processes
        for hold, server in _joined(process)
    }
    return tuple(
        replace(
            process,
            findings=by_gravity(
                [*process.findings, *_server_findings(process, holders)]
            ),
        )
        for process in processes
    )


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
        age = row.state_age_s or 0.0
        if hold.verdict == "ok" or age < long_after[hold.pool]:
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
        f"{place(blocker.site)} ({(blocker.server and blocker.server.state) or '?'}, "
        f"pid {blocker.backend_pid})"
        for _, blocker in blockers
    ]
    by = " and ".join(names) or f"pid {pids}, which is no hold of an instrumented pool"
    return Finding(
        kind="lock_wait",
        severity="critical",
        pool=hold.pool,
        text=f"{place(hold.site)} is blocked by {by}",
        proof=f"pg_blocking_pids({hold.backend_pid}) = {pids}; waiting for "
        f"{duration(row.state_age_s)}",
        remedy="Commit or roll back the blocking transaction before slow work.",
        holds=(hold.id,),
        sites=_sites(hold.site, *(blocker.site for _, blocker in blockers)),
    )


def _idle_in_transaction(hold: Hold, age: float) -> Finding:
    return Finding(
        kind="idle_in_transaction",
        severity="warning",
        pool=hold.pool,
        text=f"{place(hold.site)} has been idle in a transaction for {duration(age)}",
        proof=f"pg_stat_activity: backend {hold.backend_pid} is "
        f"{hold.server.state if hold.server else '?'}",
        remedy="Commit before work that does not need the database.",
        holds=(hold.id,),
        sites=_sites(hold.site),
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
    """Add ``ghost``: holds, by id, that the server has no backend for."""
    wanted = set(holds)
    names = {pool.id: pool.name for pool in process.pools}
    found = [
        Finding(
            kind="ghost",
            severity="critical",
            pool=hold.pool,
            text=f"{place(hold.site)} holds a connection that the server has ended",
            proof=f"the server of pool {names.get(hold.pool, '?')!r} has no backend "
            f"{hold.backend_pid}, before and after which the hold was open",
            remedy="Its next statement will fail: return the connection, and let the "
            "pool test connections first (pool_pre_ping=True).",
            holds=(hold.id,),
            sites=_sites(hold.site),
        )
        for hold in process.holds
        if hold.id in wanted
    ]
    return replace(process, findings=by_gravity([*process.findings, *found]))


def _slow_query(hold: Hold, age: float) -> Finding:
    return Finding(
        kind="slow_query",
        severity="warning",
        pool=hold.pool,
        text=f"{place(hold.site)} has waited {duration(age)} for one statement",
        proof=f"pg_stat_activity: backend {hold.backend_pid} has been active on it all "
        "the time, and waits for nobody's lock",
        remedy="Look at the statement (EXPLAIN), not at the pool.",
        holds=(hold.id,),
        sites=_sites(hold.site),
    )


def by_gravity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst first; otherwise in the order given."""
    return tuple(sorted(findings, key=lambda finding: _GRAVITY[finding.severity]))


def _ids(things: Iterable[Hold | Wait]) -> tuple[str, ...]:
    return tuple(thing.id for thing in things)


def _sites(*sites: Frame | None) -> tuple[Frame, ...]:
    return tuple(dict.fromkeys(site for site in sites if site is not None))
