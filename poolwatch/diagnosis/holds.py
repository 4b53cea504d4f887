"""Findings about single holds, and about call sites."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from poolwatch.diagnosis.circumstances import Circumstance
from poolwatch.diagnosis.common import distinct_sites, ids, still_running
from poolwatch.diagnosis.evidence import JudgedHold
from poolwatch.diagnosis.remedies import remedy_for
from poolwatch.model import (
    Collected,
    Finding,
    FindingKind,
    Frame,
    Hold,
    InheritedUse,
    MostlyOutsideSql,
    PoolStats,
    Process,
    Severity,
)
from poolwatch.text.format import (
    call_site,
    duration,
    lasts,
    place,
    plural,
    site_and_callers,
)

_RECENT_S = 600.0
"""Seconds for which an ended use of a parent's connection is reported."""
_IN_USE = "in use by "
"""Start of the evidence of a hold that was found in use."""


class _Wording(NamedTuple):
    severity: Severity
    text: str
    remedy: str
    proof: str = ""
    """Empty where the evidence of the hold is the proof."""


_COLLECTED = _Wording(
    "warning",
    "{where} dropped {many} without returning {them}",
    "Use a with block, or close() in a finally clause.",
    "no close() reached the pool: the connection object had been garbage-collected "
    "before its connection came back",
)
_LOST = _Wording(
    "critical",
    "{where} dropped {many} without returning {them}: pool {pool!r} has lost {lost}",
    "Use a with block (pool.connection()), or putconn() in a finally clause. The pool "
    "never replaces a dropped connection: recreate the pool to get lost slots back.",
    "the connection was never returned: its object is gone, but the pool still counts "
    "it as checked out",
)
_LEFT_OPEN = _Wording(
    "warning",
    "{where} opened {many} in threads that have ended without closing {them}",
    "Call connections.close_all() in a finally clause where the work of a thread ends. "
    "If the threads serve one request each (ASGI, gevent), set CONN_MAX_AGE to 0.",
    "close() was not called: the garbage collector found the connection of a thread "
    "that had ended",
)
_PER_SITE: dict[FindingKind, _Wording] = {
    "leaked.collected": _Wording(
        "critical",
        "{where} dropped {many} without returning {them}: the pool has lost {them} for "
        "good",
        "Return the connection in the code that checks it out: putconn() or release() "
        "in a finally clause, or async with pool.acquire(). This pool keeps "
        "references to checked-out connections, so only closing the pool frees the "
        "slot.",
    ),
    "leaked.orphaned": _Wording(
        "critical",
        "{where} checked out {many} in a thread or task that has ended without "
        "returning {them}",
        "Check out the connection in a with block, so that it is returned before the "
        "thread or task ends.",
    ),
    "leaked.abandoned": _Wording(
        "critical",
        "{where} checked out {many} that nothing uses any more, the oldest {age} ago",
        "Use a with block, or close() in a finally clause, where the connection is "
        "checked out. If something keeps it on purpose, such as a lock's connection, "
        'declare the hold: with poolwatch.long_hold("why").',
    ),
    "held_across_io": _Wording(
        "warning",
        "{where} has held {many} for {age} during work outside the database",
        "Return the connection (or end the session) before slow work, and check one "
        "out again afterwards.",
    ),
    "long_hold": _Wording(
        "warning",
        "{where} holds {many}, the oldest for {age}",
        "Return the connection before slow work; if the hold is meant to last, declare "
        'it: with poolwatch.long_hold("why").',
    ),
}


def hold_findings(judged: Iterable[JudgedHold]) -> list[Finding]:
    """Findings about single holds, one per kind, pool and call site."""
    groups: dict[tuple[FindingKind, str, Frame | None], list[JudgedHold]]
    groups = defaultdict(list)
    for each in judged:
        if each.kind is not None:
            groups[each.kind, each.hold.pool, each.hold.site].append(each)
    findings = []
    for (kind, pool, site), members in groups.items():
        wording = _PER_SITE[kind]
        oldest, _, evidence = max(members, key=lambda each: each.hold.known_s)
        group = [each.hold for each in members]
        findings.append(
            Finding(
                kind=kind,
                severity=wording.severity,
                pool=pool,
                text=wording.text.format(
                    where=site_and_callers(site, *(hold.caller for hold in group)),
                    many=plural(len(group), "connection"),
                    them="it" if len(group) == 1 else "them",
                    age=lasts(oldest),
                ),
                proof="; ".join(oldest.evidence),
                remedy=remedy_for(
                    kind,
                    evidence.circumstances,
                    wording.remedy,
                    framework=evidence.framework,
                ),
                holds=ids(group),
                sites=distinct_sites(site),
            )
        )
    return findings


def leaves_open(process: Process) -> bool:
    """Whether a verdict may be missing because the search was not complete.

    True if the search found some hold neither leaked nor in use, although its code has
    returned or its holder has ended.
    """
    return bool(process.left_out) and any(map(_is_undecided, process.holds))


def _is_undecided(hold: Hold) -> bool:
    if hold.verdict == "leaked" or any(e.startswith(_IN_USE) for e in hold.evidence):
        return False
    return not hold.now or (hold.verdict == "long" and not still_running(hold))


def collected(
    pool: PoolStats,
    sites: Iterable[Collected],
    dropped: int,
    circumstances: Mapping[Frame, tuple[Circumstance, ...]],
    *,
    per_thread: bool = False,
) -> list[Finding]:
    """``leaked.collected``: connections that the application dropped.

    The garbage collector has returned them, or ``dropped`` slots were lost with them.
    ``per_thread``: their threads have ended without closing them.
    """
    lost = f"{dropped} of {plural(pool.slots or 0, 'slot')}"
    wording = _LOST if dropped > 0 else _COLLECTED
    if per_thread:
        wording = _LEFT_OPEN
    return [
        Finding(
            kind="leaked.collected",
            severity=wording.severity,
            pool=pool.id,
            text=wording.text.format(
                where=site_and_callers(each.site, *each.callers),
                many=plural(each.count, "connection"),
                them="it" if each.count == 1 else "them",
                pool=pool.name,
                lost=lost,
            ),
            proof=wording.proof,
            remedy=remedy_for(
                "leaked.collected",
                circumstances.get(each.site, ()),
                wording.remedy,
            ),
            sites=(each.site,),
        )
        for each in sites
    ]


def mostly_outside(pool: PoolStats, sites: Iterable[MostlyOutsideSql]) -> list[Finding]:
    """``held_across_io`` of a call site whose holds spent most time outside SQL.

    No single hold needs to exceed the threshold.
    """
    return [
        Finding(
            kind="held_across_io",
            severity="info",
            pool=pool.id,
            text=f"{site_and_callers(each.site, *each.callers)} holds connections "
            "mostly during work outside the database: only "
            f"{_share_of_sql(each):.0%} of the held time is SQL",
            proof=f"{each.count} holds lasted {duration(each.held_s)} together: "
            f"{duration(each.in_sql_s)} in statements, "
            f"{duration(each.in_transaction_idle_s)} idle in a transaction, "
            f"{duration(_rest(each))} idle outside one" + _waited(each),
            remedy="Return the connection (or end the session) before slow work, and "
            "check one out again afterwards.",
            sites=(each.site,),
        )
        for each in sites
    ]


def _share_of_sql(outside: MostlyOutsideSql) -> float:
    """Share of the held time, without the time spent waiting for another connection."""
    return outside.in_sql_s / (outside.held_s - outside.pool_wait_s)


def _waited(outside: MostlyOutsideSql) -> str:
    if not outside.pool_wait_s:
        return ""
    seconds = duration(outside.pool_wait_s)
    return f"; {seconds} of it waiting for another connection, which does not count"


def _rest(outside: MostlyOutsideSql) -> float:
    spent = outside.in_sql_s + outside.in_transaction_idle_s
    return max(0.0, outside.held_s - spent)


def fork_shared(
    pool: PoolStats, holds: Iterable[JudgedHold], uses: Iterable[InheritedUse]
) -> list[Finding]:
    """``fork_shared``: two processes use one connection.

    A past use is reported where no such hold is open now.
    """
    shared = [each.hold for each in holds if each.evidence.inherited]
    found = [
        _fork_shared(
            pool, hold.site, call_site(hold), hold.backend_pid, holds=(hold.id,)
        )
        for hold in shared
    ]
    sites = {hold.site for hold in shared}
    for use in uses:
        if use.ago_s < _RECENT_S and use.site not in sites:
            when = f"; last checked out here {duration(use.ago_s)} ago"
            where = place(use.site)
            found.append(_fork_shared(pool, use.site, where, use.backend_pid, when))
    return found


def _fork_shared(  # noqa: PLR0917 - one finding, made of two records
    pool: PoolStats,
    site: Frame | None,
    where: str,
    backend_pid: int | None,
    when: str = "",
    holds: tuple[str, ...] = (),
) -> Finding:
    server = f"backend {backend_pid}" if backend_pid else "the server"
    return Finding(
        kind="fork_shared",
        severity="critical",
        pool=pool.id,
        text=f"{where} uses a connection that was opened before the process "
        "forked: parent and child share it",
        proof=f"the connection to {server} was opened by another process{when}",
        remedy="Each can read the answers to the other's statements. Call "
        "engine.dispose(close=False) in the child, right after the fork, and restart "
        "the child. With other libraries, create the pool in the child, after the "
        "fork.",
        holds=holds,
        sites=distinct_sites(site),
    )
