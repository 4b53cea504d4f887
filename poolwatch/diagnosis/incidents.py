"""Incidents: when a finding begins, whether it is still the same one, when it ends."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from poolwatch.diagnosis.common import by_severity
from poolwatch.diagnosis.pools import timed_out
from poolwatch.model import (
    Finding,
    FindingKind,
    Frame,
    Incident,
    PoolStats,
    Process,
    Snapshot,
    Unreachable,
)
from poolwatch.text.format import utc_time
from poolwatch.text.naming import process_name, with_names

LOOKS_TO_BEGIN = 2
LOOKS_TO_END = 3
_AT_ONCE: frozenset[FindingKind] = frozenset({"pool_deadlock", "leaked.collected"})
OF_THE_POOL: frozenset[FindingKind] = frozenset(
    {"exhausted", "undersized", "pool_deadlock", "lost_slot"}
)
"""Kinds of which a pool has at most one finding at a time. Its call sites are those of
whoever holds a connection just then, so they do not tell one incident from another."""

_BY_SERVER: frozenset[FindingKind] = frozenset(
    {
        "lock_wait", "idle_in_transaction", "slow_query", "ghost", "dirty_return",
        "stray_session", "over_capacity",
    }
)  # fmt: skip
"""Kinds that only the server's answer shows."""

_ProcessKey = tuple[str, int, str]
"""Host, pid and start time."""
Identity = tuple[str | None, FindingKind, frozenset[Frame]]
"""The rest of what identifies an incident: pool, kind and call sites."""


class Began(NamedTuple):
    """An incident that has just begun."""

    incident: Incident
    process: Process
    """The process as it was at that moment."""


class Changes(NamedTuple):
    """What one look has changed."""

    began: tuple[Began, ...] = ()
    ended: tuple[Incident, ...] = ()
    lasting: tuple[Incident, ...] = ()
    """All that have begun and not ended, with a new ``last_seen_at``."""


@dataclass(slots=True)
class _Track:
    """A finding over several looks; an incident once it has begun."""

    incident: Incident | None = None
    seen: int = 0
    missed: int = 0
    """Looks in a row that have not seen it, but could have."""


class _Watched:
    """What is known of one process between two looks."""

    def __init__(self, process: Process, timeouts: Mapping[str, int]) -> None:
        self.process = process
        self.tracks: dict[Identity, _Track] = {}
        self.timeouts = dict(timeouts)
        """By pool id: how many requests had timed out."""

    def incidents(self) -> Iterator[Incident]:
        for track in self.tracks.values():
            if track.incident is not None:
                yield track.incident


class Incidents:
    """The incidents of all processes. Not thread-safe."""

    def __init__(self, lasting: Iterable[Incident] = ()) -> None:
        """``lasting``: those that went on when an earlier sidecar ended."""
        self._inherited = list(lasting)
        self._watched: dict[_ProcessKey, _Watched] = {}
        self._silent: Sequence[Unreachable] | None = None
        """What gave no answer to the last look; None before the first one."""

    def update(self, snapshot: Snapshot, at: float) -> Changes:
        """Return what a look at ``at`` (seconds since the epoch) has changed.

        The incidents of a process that gives no answer stay as they are; those of a
        process that is no longer there end.
        """
        now = utc_time(at)
        began: list[Began] = []
        ended: list[Incident] = []
        for process in snapshot.processes:
            changes = self._update(with_names(process), now)
            began += changes.began
            ended += changes.ended
        self._silent = [u for u in snapshot.unreachable if u.alive is not False]
        ended += self._forget({_key(process) for process in snapshot.processes})
        return Changes(
            tuple(began),
            tuple([_ended(each) for each in ended]),
            tuple([i for each in self._watched.values() for i in each.incidents()]),
        )

    def _update(self, process: Process, now: str) -> Changes:
        watched = self._watched.get(_key(process))
        if watched is None:
            watched = self._watched[_key(process)] = self._first_look(process)
        findings, grown = self._with_timeouts(process, watched)
        began: list[Began] = []
        seen: dict[Identity, Finding] = {}
        for finding in findings:
            seen.setdefault(_identity(finding), finding)
        for identity, finding in seen.items():
            track = watched.tracks.setdefault(identity, _Track())
            track.seen, track.missed = track.seen + 1, 0
            if track.incident is not None:
                track.incident = _seen_again(track.incident, finding, now)
            elif (
                track.seen >= LOOKS_TO_BEGIN
                or finding.kind in _AT_ONCE
                or (finding.kind == "exhausted" and finding.pool in grown)
            ):
                track.incident = _begun(process, finding, now)
                shown = replace(process, findings=by_severity(findings))
                began.append(Began(track.incident, shown))
        return Changes(tuple(began), tuple(_not_seen(watched, seen, process)))

    def _first_look(self, process: Process) -> _Watched:
        """Start with a process: with what an earlier sidecar has known of it.

        All timeouts of a process that the last look has not met are new: its socket
        appears with its first checkout.
        """
        is_new = self._silent is not None and not any(
            each.may_be(process) for each in self._silent
        )
        watched = _Watched(process, {} if is_new else _timeouts(process))
        mine = [each for each in self._inherited if _is_of(each, process)]
        ids = {pool.name: pool.id for pool in process.pools}
        for incident in mine:
            pool = None if incident.pool is None else ids.get(incident.pool)
            identity = identity_of(pool, incident.kind, incident.sites)
            watched.tracks[identity] = _Track(incident)
            self._inherited.remove(incident)
        return watched

    @staticmethod
    def _with_timeouts(
        process: Process, watched: _Watched
    ) -> tuple[list[Finding], Collection[str]]:
        """Return the findings, and the ids of the pools with new timeouts.

        Such a pool was exhausted, even if no look was there to see it.
        """
        before, watched.timeouts = watched.timeouts, _timeouts(process)
        findings = list(process.findings)
        found = {each.pool for each in findings if each.kind == "exhausted"}
        grown: dict[str, PoolStats] = {}
        for pool in process.pools:
            count = pool.counters.timeouts - before.get(pool.id, 0)
            if count > 0:
                grown[pool.id] = pool
                if pool.id not in found:
                    holds = [hold for hold in process.holds if hold.pool == pool.id]
                    findings.append(timed_out(pool, holds, count))
        return findings, grown

    def _forget(self, answered: Collection[_ProcessKey]) -> list[Incident]:
        """Forget the processes that are gone; return the incidents that they had."""
        silent = self._silent or ()
        pids = {each.pid for each in silent}
        ended = [each for each in self._inherited if each.pid not in pids]
        self._inherited = [each for each in self._inherited if each.pid in pids]
        for key in [each for each in self._watched if each not in answered]:
            if not any(each.may_be(self._watched[key].process) for each in silent):
                ended += self._watched.pop(key).incidents()
        return ended


def _not_seen(
    watched: _Watched, seen: Collection[Identity], process: Process
) -> Iterator[Incident]:
    """Count what a look has not seen; yield the incidents that end with it."""
    for identity in [each for each in watched.tracks if each not in seen]:
        track = watched.tracks[identity]
        track.missed += _could_be_seen(identity, process)
        if track.missed >= LOOKS_TO_END:
            del watched.tracks[identity]
            if track.incident is not None:
                yield track.incident


def _could_be_seen(identity: Identity, process: Process) -> bool:
    """Whether a finding would have been seen: not if its server gave no answer."""
    pool, kind, _ = identity
    return kind not in _BY_SERVER or all(
        status.error is None
        for status in process.servers
        if pool is None or pool in status.pools
    )


def _begun(process: Process, finding: Finding, now: str) -> Incident:
    names = {pool.id: pool.name for pool in process.pools}
    return Incident(
        id=secrets.token_hex(8),
        host=process.host,
        pid=process.pid,
        process=process_name(process),
        pool=None if finding.pool is None else names.get(finding.pool, finding.pool),
        kind=finding.kind,
        severity=finding.severity,
        started_at=now,
        last_seen_at=now,
        ended_at=None,
        text=finding.text,
        proof=finding.proof,
        remedy=finding.remedy,
        sites=finding.sites,
        snapshot=True,
    )


def _seen_again(incident: Incident, finding: Finding, now: str) -> Incident:
    """The incident with the newest words; its call sites are those of its beginning."""
    return replace(
        incident,
        last_seen_at=now,
        severity=finding.severity,
        text=finding.text,
        proof=finding.proof,
        remedy=finding.remedy,
    )


def _ended(incident: Incident) -> Incident:
    return replace(incident, ended_at=incident.last_seen_at)


def _key(process: Process) -> _ProcessKey:
    return process.host, process.pid, process.started_at


def _identity(finding: Finding) -> Identity:
    return identity_of(finding.pool, finding.kind, finding.sites)


def identity_of(
    pool: str | None, kind: FindingKind, sites: Sequence[Frame]
) -> Identity:
    """What tells one incident of a process from another; ``pool``: its id or name."""
    return pool, kind, frozenset(() if kind in OF_THE_POOL else sites)


def _is_of(incident: Incident, process: Process) -> bool:
    """Whether an inherited incident is of this process, not of an earlier one."""
    if (incident.host, incident.pid) != (process.host, process.pid):
        return False
    started_at, began_at = map(
        datetime.fromisoformat, (process.started_at, incident.started_at)
    )
    return started_at <= began_at


def _timeouts(process: Process) -> dict[str, int]:
    return {pool.id: pool.counters.timeouts for pool in process.pools}
