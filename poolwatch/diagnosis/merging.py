"""Merges equal findings over the holds of a process, and over all processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from poolwatch.diagnosis.backends import is_restarted
from poolwatch.diagnosis.blocking import LockRoot
from poolwatch.diagnosis.causes import cause_first
from poolwatch.diagnosis.incidents import OF_THE_POOL
from poolwatch.diagnosis.lock_waits import remedies, site_of
from poolwatch.diagnosis.merged_records import Case, Key, Merged, cases_of
from poolwatch.diagnosis.merged_words import RESTARTED, Group, merged_text
from poolwatch.diagnosis.servers import is_local, server_of_text
from poolwatch.diagnosis.sessions import server_of, servers_by_pool
from poolwatch.model import Hold, Process, Snapshot, severity_rank

__all__ = ["Key", "Merged", "merged", "unmerged"]


def merged(snapshot: Snapshot) -> list[Merged]:
    """All findings of a snapshot, equal ones as one; the cause first."""
    return [together for together, _ in _merged(snapshot)]


def unmerged(snapshot: Snapshot) -> list[Merged]:
    """All findings of a snapshot, each for itself; in the order of :func:`merged`."""
    return [
        replace(
            _merge(Group(_own_key(together.key, case, number), [case])),
            text=case.finding.text,  # of who waits for a lock, not of its root
            leads_to=together.leads_to,
        )
        for together, cases in _merged(snapshot)
        for number, case in enumerate(cases)
    ]


def _merged(snapshot: Snapshot) -> list[tuple[Merged, list[Case]]]:
    groups: dict[Key, list[Case]] = defaultdict(list)
    for case in cases_of(snapshot):
        groups[_key(case)].append(case)
    for cases in groups.values():
        cases.sort(key=_rank)
    found = [_merge(Group(key, cases)) for key, cases in groups.items()]
    ordered = cause_first(found, groups, snapshot.processes)
    return [(each, groups[each.key]) for each in ordered]


def _own_key(key: Key, case: Case, number: int) -> Key:
    """The key of one member, which no other member has."""
    process = case.process
    where = "" if process is None else f"{process.host} {process.pid} "
    first = case.holds[0][1].id if case.holds else str(number)
    return key._replace(about=f"{key.about} {where}{first}".strip())


def _key(case: Case) -> Key:
    process, finding = case.process, case.finding
    name = finding.pool if case.pool is None else case.pool.name
    kind = finding.kind
    if kind in OF_THE_POOL:
        return Key(kind, name)
    if case.root is not None:
        return _key_of_root(case.root)
    if kind == "unreachable":
        return Key(kind, about=finding.text.partition(" is ")[0])
    if kind == "ghost" and case.holds:
        return Key(kind, about=_server_of_ghosts(case.holds))
    if finding.pool is None and (server := server_of_text(finding.text)):
        host = f" of {process.host}" if process and is_local(server) else ""
        return Key(kind, about=server + host)
    return Key(kind, name, tuple(sorted(set(finding.sites))))


def _key_of_root(root: LockRoot) -> Key:
    session, site = root.session, site_of(root.session)
    if session.advisory:  # the lock stays with the session, whoever borrows it
        return Key("lock_wait", about=f"advisory lock of {root.server} {session.pid}")
    if site is None or session.process is None:
        return Key("lock_wait", about=f"{root.server} pid {session.pid}")
    known = session.hold or session.idle
    pools = [p.name for p in session.process.pools if known and p.id == known.pool]
    return Key("lock_wait", pools[0] if pools else None, (site,))


def _server_of_ghosts(holds: Sequence[tuple[Process, Hold]]) -> str:
    process, hold = holds[0]
    server = servers_by_pool(process).get(hold.pool)
    name = server_of(process, server) if server is not None else None
    if is_restarted(server, (each for _, each in holds)):
        return f"{RESTARTED}{name}"
    return f"of {name}"


def _merge(group: Group) -> Merged:
    """Return the findings of a group as one; the first is the worst."""
    cases, worst = group.cases, group.cases[0].finding
    of_roots = remedies(root.session for root in group.roots)
    return Merged(
        key=group.key,
        severity=worst.severity,
        text=merged_text(group),
        proof=worst.proof,
        remedy=of_roots or worst.remedy,
        sites=group.key.sites if group.roots else worst.sites,
        members=tuple([(case.process, case.finding) for case in cases]),
        processes=group.processes,
        holds=group.holds,
        waits=group.waits,
    )


def _rank(case: Case) -> tuple[int, float]:
    """The most severe first, then the one with the longest hold or wait for a lock."""
    holds = [hold for _, hold in case.holds]
    if case.finding.kind == "lock_wait":
        rows = [hold.server for hold in holds if hold.server is not None]
        longest = max([row.state_age_s or 0.0 for row in rows], default=0.0)
    else:
        longest = max([hold.known_s for hold in holds], default=0.0)
    return severity_rank(case.finding.severity), -longest
