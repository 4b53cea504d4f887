"""Findings about single holds, and about the call sites that took them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from poolwatch.diagnosis.common import ids, places
from poolwatch.diagnosis.pools import still_there
from poolwatch.model import (
    Collected,
    Finding,
    Frame,
    Hold,
    InheritedUse,
    Outside,
    PoolStats,
    Process,
    Severity,
)
from poolwatch.text.format import duration, place, plural, taken_at, whence

_RECENT_S = 600.0
"""How long a call site that used a connection of the parent process is reported."""
_IN_USE = "in use by "
"""How the evidence begins of a hold that was found in use."""


class _Wording(NamedTuple):
    severity: Severity
    text: str
    remedy: str


_PER_SITE = {
    "leaked.collected": _Wording(
        "critical",
        "{where} dropped {many} without returning {them}: the pool has lost {them} for "
        "good",
        "Return it where it was taken, whatever happens: putconn() or release() in a "
        "finally clause, or async with pool.acquire(). This pool keeps what it has "
        "lent, so nothing brings the place back but closing the pool.",
    ),
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
                    where=whence(site, *(hold.caller for hold in group)),
                    many=plural(len(group), "connection"),
                    them="it" if len(group) == 1 else "them",
                    age=duration(oldest.held_s),
                ),
                proof="; ".join(oldest.evidence),
                remedy=remedy,
                holds=ids(group),
                sites=places(site),
            )
        )
    return findings


def leaves_open(process: Process) -> bool:
    """Whether a verdict may be missing because something was not looked at.

    That is so of a hold whose code has returned, or whose holder has ended, and that
    was found neither leaked nor in use.
    """
    return bool(process.left_out) and any(map(_is_undecided, process.holds))


def _is_undecided(hold: Hold) -> bool:
    if hold.verdict == "leaked" or any(e.startswith(_IN_USE) for e in hold.evidence):
        return False
    return not hold.now or (hold.verdict == "long" and not still_there(hold))


def collected(pool: PoolStats, sites: Iterable[Collected]) -> list[Finding]:
    """``leaked.collected``: connections that came back only by garbage collection.

    Takes their call sites, and how many each has dropped.
    """
    if pool.lost_slots:
        return _lost(pool, sites)
    return [
        Finding(
            kind="leaked.collected",
            severity="warning",
            pool=pool.id,
            text=f"{whence(each.site, *each.callers)} dropped "
            f"{plural(each.count, 'connection')} without returning",
            proof="nobody called close(): the connection object was already dead when "
            "its connection came back",
            remedy="Use a with block, or close() in a finally clause.",
            sites=(each.site,),
        )
        for each in sites
    ]


def _lost(pool: PoolStats, sites: Iterable[Collected]) -> list[Finding]:
    """The same, of a pool that never replaces them."""
    lost = plural(pool.lost_slots, "slot")
    slots = pool.slots or 0
    return [
        Finding(
            kind="leaked.collected",
            severity="critical",
            pool=pool.id,
            text=f"{whence(each.site, *each.callers)} dropped "
            f"{plural(each.count, 'connection')} without "
            f"returning: pool {pool.name!r} has lost {lost} of {slots}",
            proof="nobody has given back what was taken there: the connection object "
            "is gone, and the pool still counts it as lent",
            remedy="Use a with block (pool.connection()), or putconn() in a finally "
            "clause. The pool does not replace a connection that was dropped: "
            f"{lost} of {slots} stay lost until the pool is made anew.",
            sites=(each.site,),
        )
        for each in sites
    ]


def mostly_outside(pool: PoolStats, sites: Iterable[Outside]) -> list[Finding]:
    """``held_across_io`` of a call site, without any threshold: most of the time that
    its many holds lasted was not spent in SQL.
    """
    return [
        Finding(
            kind="held_across_io",
            severity="info",
            pool=pool.id,
            text=f"{whence(each.site, *each.callers)} holds connections mostly for "
            f"work that is not the database: {_share_of_sql(each):.0%} of the held "
            "time is SQL",
            proof=f"{each.count} holds lasted {duration(each.held_s)} together: "
            f"{duration(each.in_sql_s)} in statements, "
            f"{duration(each.in_transaction_idle_s)} idle in a transaction, "
            f"{duration(_rest(each))} idle outside one" + _waited(each),
            remedy="Return the connection (or end the session) before slow work, and "
            "take one again afterwards.",
            sites=(each.site,),
        )
        for each in sites
    ]


def _share_of_sql(outside: Outside) -> float:
    """Of the time in which the holder did not wait for another connection."""
    return outside.in_sql_s / (outside.held_s - outside.pool_wait_s)


def _waited(outside: Outside) -> str:
    if not outside.pool_wait_s:
        return ""
    seconds = duration(outside.pool_wait_s)
    return f"; {seconds} of it waiting for another connection, which does not count"


def _rest(outside: Outside) -> float:
    spent = outside.in_sql_s + outside.in_transaction_idle_s
    return max(0.0, outside.held_s - spent)


def fork_shared(
    pool: PoolStats, holds: Sequence[Hold], uses: Iterable[InheritedUse]
) -> list[Finding]:
    """``fork_shared``: two processes use one connection.

    ``holds`` are out now; ``uses`` are reported where there is no such hold.
    """
    found = [
        _fork_shared(pool, hold.site, taken_at(hold), hold.backend_pid, "", (hold.id,))
        for hold in holds
    ]
    held = {hold.site for hold in holds}
    for use in uses:
        site, pid = use.site, use.backend_pid
        if use.ago_s < _RECENT_S and site not in held:
            when = f"; last taken here {duration(use.ago_s)} ago"
            found.append(_fork_shared(pool, site, place(site), pid, when, ()))
    return found


def _fork_shared(  # noqa: PLR0917 - one finding, made of two records
    pool: PoolStats,
    site: Frame | None,
    where: str,
    backend_pid: int | None,
    when: str,
    holds: tuple[str, ...],
) -> Finding:
    return Finding(
        kind="fork_shared",
        severity="critical",
        pool=pool.id,
        text=f"{where} uses a connection that was opened before the process "
        "forked: parent and child share it",
        proof=f"backend {backend_pid} was connected to by another process{when}",
        remedy="Call engine.dispose(close=False) in the child, right after the fork; a "
        "pool of another library is made there, not before.",
        holds=holds,
        sites=places(site),
    )
