"""The findings of the last ten minutes: since when, until when, how often."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from poolwatch.diagnosis.incidents import Identity, Incidents, identity_of
from poolwatch.diagnosis.merging import Key, Merged, merged
from poolwatch.model import Incident, Snapshot, severity_rank
from poolwatch.text.format import since_epoch, utc_time

KEPT_S = 600.0
"""Seconds for which a finding that is over is kept."""
CELL_S = 30.0
"""Seconds of one cell of a strip."""
_CELLS = int(KEPT_S / CELL_S)
_MAX_ENTRIES = 500
_ROUNDING_S = 0.002
"""Times of incidents are cut to milliseconds."""


@dataclass(slots=True)
class Entry:
    """A merged finding over time. All times are seconds since the epoch."""

    merged: Merged
    """As it was last seen; without its members, holds and waits if not seen now."""
    since: float
    """When it was first seen; if it has begun again, when it was first seen then."""
    last_seen: float
    over: float | None = None
    """When it was last seen, if it is over; None while it lasts."""
    seen: int = 0
    """The number of looks that have seen it."""
    begun: bool = False
    """Whether it is, or was, an incident: what a single look sees may soon pass."""
    cells: set[int] = field(default_factory=set)
    """The cells of the strip in which it was seen, counted from the epoch."""

    @property
    def key(self) -> Key:
        """What identifies it."""
        return self.merged.key

    def lasts(self, now: float) -> float:
        """For how long it has lasted, or did last, in seconds."""
        return max(0.0, (now if self.over is None else self.over) - self.since)

    def strip(self, now: float) -> list[bool]:
        """Whether it was seen, for each cell of the last ten minutes."""
        last = int(now // CELL_S)
        return [cell in self.cells for cell in range(last - _CELLS + 1, last + 1)]


class FindingHistory:
    """Keeps merged findings over time. Not thread-safe.

    They begin and end by the rules of :class:`Incidents`: a merged finding lasts as
    long as an incident of one of its members does.
    """

    def __init__(self) -> None:
        self.findings: list[Merged] = []
        """Those of the newest look, the cause first."""
        self.began_at: float | None = None
        """The time of its first look: what that has seen may have begun long before."""
        self._incidents = Incidents()
        self._entries: dict[Key, Entry] = {}
        self._key_of: dict[str, Key] = {}
        """By the id of an incident that lasts: the finding it is part of."""

    def update(self, snapshot: Snapshot, at: float) -> list[Merged]:
        """Take in a look at ``at``, in seconds since the epoch; return its findings."""
        self.findings = merged(snapshot)
        self.began_at = at if self.began_at is None else self.began_at
        lasting = self._incidents.update(snapshot, at).lasting
        present = {each.key: each for each in self.findings}
        self._assign(lasting)
        for each in lasting:
            key = self._key_of[each.id]
            if each.last_seen_at == utc_time(at):
                present.setdefault(key, _of(each, key))
        for key, found in present.items():
            self._see(key, found, at)
        begun = set(self._key_of.values())
        for key, entry in list(self._entries.items()):
            self._close(entry, at, present=key in present, lasts=key in begun)
        self._bound()
        return self.findings

    @property
    def open(self) -> list[Entry]:
        """Those that last: the cause first, then what the newest look did not see."""
        found = [self._entries.get(each.key) for each in self.findings]
        seen = [entry for entry in found if entry is not None]
        keys = {entry.key for entry in seen}
        rest = [e for e in self._entries.values() if e.over is None]
        unseen = [entry for entry in rest if entry.key not in keys]
        unseen.sort(key=lambda entry: severity_rank(entry.merged.severity))
        return seen + unseen

    @property
    def over(self) -> list[Entry]:
        """Those that are over, the latest first; only incidents."""
        found = [e for e in self._entries.values() if e.over is not None and e.begun]
        return sorted(found, key=lambda entry: -(entry.over or 0.0))

    def of(self, key: Key) -> Entry | None:
        """What is known of a finding over time."""
        return self._entries.get(key)

    def _assign(self, lasting: Collection[Incident]) -> None:
        """Find the merged finding of each incident; a lock's may change its root."""
        keys = _keys_of(self.findings)
        before, self._key_of = self._key_of, {}
        for incident in lasting:
            key = keys.get(_owned(incident))
            # seen by no look: a pool whose requests timed out between two of them
            unseen = Key(incident.kind, incident.pool)
            self._key_of[incident.id] = key or before.get(incident.id) or unseen

    def _see(self, key: Key, found: Merged, at: float) -> None:
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(found, at, at)
        elif entry.over is not None:
            entry.since, entry.over = at, None
        entry.merged, entry.last_seen = found, at
        entry.seen += 1
        entry.cells.add(int(at // CELL_S))

    def _close(self, entry: Entry, at: float, *, present: bool, lasts: bool) -> None:
        """Note what a look means for a finding, whether it has seen it or not."""
        of_all_hosts = present and not entry.merged.processes
        entry.begun = entry.begun or lasts or of_all_hosts
        if not present and entry.merged.members:
            # the records of a process that was seen long ago are not kept for ever
            entry.merged = replace(entry.merged, members=(), holds=(), waits=())
        if not present and not lasts and entry.over is None:
            entry.over = entry.last_seen
        entry.cells = {c for c in entry.cells if abs(c - at // CELL_S) <= _CELLS}
        if entry.over is not None and abs(at - entry.over) > KEPT_S:
            del self._entries[entry.key]

    def _bound(self) -> None:
        """Drop the oldest beyond _MAX_ENTRIES, those that are over first."""
        too_many = len(self._entries) - _MAX_ENTRIES
        if too_many > 0:
            entries: Iterable[Entry] = self._entries.values()
            oldest = sorted(entries, key=lambda e: (e.over is None, e.last_seen))
            for entry in oldest[:too_many]:
                del self._entries[entry.key]


_Owned = tuple[str, int, Identity]
"""Host, pid, and what identifies an incident of that process."""


def _keys_of(findings: Iterable[Merged]) -> dict[_Owned, Key]:
    """The merged finding that each incident is part of."""
    keys: dict[_Owned, Key] = {}
    for each in findings:
        for process, finding in each.members:
            if process is not None:
                names = {pool.id: pool.name for pool in process.pools}
                pool = names.get(finding.pool or "", finding.pool)
                identity = identity_of(pool, finding.kind, finding.sites)
                keys[process.host, process.pid, identity] = each.key
    return keys


def _owned(incident: Incident) -> _Owned:
    identity = identity_of(incident.pool, incident.kind, incident.sites)
    return incident.host, incident.pid, identity


def entries_at(
    findings: Sequence[Merged], incidents: Iterable[Incident], at: float
) -> dict[Key, Entry]:
    """Return what incidents tell of the findings of a moment of the past."""
    keys = _keys_of(findings)
    spans: dict[Key, list[tuple[float, float]]] = defaultdict(list)
    for each in incidents:
        since, last = since_epoch(each.started_at), since_epoch(each.last_seen_at)
        key = keys.get(_owned(each))
        if key is not None and since is not None and last is not None:
            spans[key].append((since, last))
    entries: dict[Key, Entry] = {}
    for finding in findings:
        begun = [span for span in spans[finding.key] if span[0] < at + _ROUNDING_S]
        lasting = [since for since, last in begun if last > at - _ROUNDING_S]
        if lasting:
            entry = entries[finding.key] = Entry(finding, min(lasting), at, begun=True)
            for since, last in begun:
                ends = int(min(last, at) // CELL_S)
                entry.cells.update(range(int(since // CELL_S), ends + 1))
    return entries


def _of(incident: Incident, key: Key) -> Merged:
    """What is known of a finding that no look has seen."""
    return Merged(
        key=key,
        severity=incident.severity,
        text=incident.text,
        proof=incident.proof,
        remedy=incident.remedy,
        sites=incident.sites,
        members=(),
        processes=(),
    )
