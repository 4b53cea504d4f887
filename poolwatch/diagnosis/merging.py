"""Merges equal findings over the holds of a process, and over all processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from poolwatch.diagnosis.backends import is_restarted
from poolwatch.diagnosis.causes import cause_first
from poolwatch.diagnosis.incidents import OF_THE_POOL
from poolwatch.diagnosis.lock_roots import LockRoot
from poolwatch.diagnosis.lock_waits import remedies, site_of
from poolwatch.diagnosis.merged_records import (
    Facts,
    Key,
    Member,
    Merged,
    holds_of,
    waits_of,
)
from poolwatch.diagnosis.merged_words import Group, merged_text
from poolwatch.diagnosis.servers import is_local, server_of_text
from poolwatch.diagnosis.sessions import server_of, servers_by_pool
from poolwatch.model import RequestOfHost, Snapshot, severity_rank

__all__ = ["Key", "Merged", "each", "merged"]


def merged(snapshot: Snapshot) -> list[Merged]:
    """All findings of a snapshot, equal ones as one; the cause first."""
    return _merged(Facts(snapshot))


def each(snapshot: Snapshot) -> list[Merged]:
    """All findings of a snapshot, each for itself; in the order of :func:`merged`."""
    facts = Facts(snapshot)
    return [
        replace(
            _merge(_own_key(together.key, member, number), [member], facts),
            leads_to=together.leads_to,
        )
        for together in _merged(facts)
        for number, member in enumerate(together.members)
    ]


def _merged(facts: Facts) -> list[Merged]:
    groups: dict[Key, list[Member]] = defaultdict(list)
    for member in facts.members:
        groups[_key(member, facts)].append(member)
    return cause_first([_merge(*item, facts) for item in groups.items()], facts)


def _own_key(key: Key, member: Member, number: int) -> Key:
    """The key of one member: it stays while the order of the members does."""
    process, _ = member
    where = "" if process is None else f"{process.host} {process.pid} "
    first = next((each.id for each in holds_of(member)), str(number))
    return key._replace(about=f"{key.about} {where}{first}".strip())


def _key(member: Member, facts: Facts) -> Key:
    process, finding = member
    pool = facts.pool(member)
    name = finding.pool if pool is None else pool.name
    kind = finding.kind
    if kind in OF_THE_POOL:
        return Key(kind, name)
    if kind == "lock_wait" and (root := facts.root(member)):
        return _key_of_root(root)
    if kind == "ghost" and process is not None:
        return Key(kind, about=_server_of_ghosts(member, facts))
    if finding.pool is None and (server := server_of_text(finding.text)):
        host = f" of {process.host}" if process and is_local(server) else ""
        return Key(kind, about=server + host)
    return Key(kind, name, finding.sites)


def _key_of_root(root: LockRoot) -> Key:
    session, site = root.session, site_of(root.session)
    if site is None or session.process is None:
        return Key("lock_wait", about=f"{root.server} pid {session.pid}")
    known = session.hold or session.idle
    pools = [p.name for p in session.process.pools if known and p.id == known.pool]
    return Key("lock_wait", pools[0] if pools else None, (site,))


def _server_of_ghosts(member: Member, facts: Facts) -> str:
    process, _ = member
    holds = [hold for h in holds_of(member) if (hold := facts.hold(h)) is not None]
    if process is None or not holds:
        return ""
    server = servers_by_pool(process).get(holds[0].pool)
    ended = "restarted" if is_restarted(server, holds) else "ended"
    return f"{ended} {server_of(server) if server else None}"


def _merge(key: Key, members: list[Member], facts: Facts) -> Merged:
    members.sort(key=lambda member: _rank(member, facts))
    _, worst = members[0]
    group = Group(key, tuple(members), _roots(members, facts))
    roots = [_root_hold(root) for root in group.roots]
    holds = [*roots, *(hold for each in members for hold in holds_of(each))]
    single = len(members) == 1
    of_roots = remedies(root.session for root in group.roots)
    return Merged(
        key=key,
        severity=worst.severity,
        text=worst.text if single else merged_text(group, facts),
        proof=worst.proof,
        remedy=worst.remedy if single else of_roots or worst.remedy,
        sites=key.sites or worst.sites,
        members=group.members,
        processes=group.processes,
        holds=tuple(dict.fromkeys(hold for hold in holds if hold is not None)),
        waits=tuple(dict.fromkeys(w for each in members for w in waits_of(each))),
    )


def _rank(member: Member, facts: Facts) -> tuple[int, float]:
    """The most severe first, then the one with the longest hold or wait for a lock."""
    _, finding = member
    holds = [hold for h in holds_of(member) if (hold := facts.hold(h)) is not None]
    if finding.kind == "lock_wait":
        rows = [hold.server for hold in holds if hold.server is not None]
        longest = max((row.state_age_s or 0.0 for row in rows), default=0.0)
    else:
        longest = max((hold.held_s for hold in holds), default=0.0)
    return severity_rank(finding.severity), -longest


def _roots(members: Sequence[Member], facts: Facts) -> tuple[LockRoot, ...]:
    """The roots of the lock waits, the one that holds up most first."""
    if members[0][1].kind != "lock_wait":
        return ()
    roots = {
        (root.server, root.session.pid): root
        for member in members
        if (root := facts.root(member)) is not None
    }
    return tuple(sorted(roots.values(), key=lambda root: -len(root.victims)))


def _root_hold(root: LockRoot) -> RequestOfHost | None:
    process, hold = root.session.process, root.session.hold
    if process is None or hold is None:
        return None
    return RequestOfHost(process.host, process.pid, hold.id)
