"""Incident snapshots: taken at a pool's first incident, for later viewers.

One of each kind per pool: for the first exhaustion, the first timeout, and the first
deadlock. They are stored as compressed JSON, a few KiB each.
"""

from __future__ import annotations

import json
import zlib
from datetime import UTC, datetime

from poolwatch.model import (
    SCHEMA,
    FindingKind,
    IncidentKind,
    IncidentMark,
    IncidentSnapshot,
    Process,
)
from poolwatch.protocol import document

MAX_SNAPSHOTS = 24
"""Maximum number of incident snapshots; the next one replaces the oldest."""
_BY_FINDING: dict[FindingKind, IncidentKind] = {
    "exhausted": "exhausted",
    "pool_deadlock": "pool_deadlock",
}


class IncidentSnapshots:
    """The incident snapshots of one process."""

    def __init__(self) -> None:
        self._snapshots: dict[tuple[str, IncidentKind], tuple[str, bytes]] = {}

    def has(self, pool: str, kind: IncidentKind) -> bool:
        """Whether there is an incident snapshot of this kind for this pool."""
        return (pool, kind) in self._snapshots

    def marks(self) -> tuple[IncidentMark, ...]:
        """Return pool, kind and time of each incident snapshot, oldest first."""
        return tuple(
            IncidentMark(pool, kind, at) for (pool, kind), (at, _) in self._items()
        )

    def add_from_findings(self, process: Process) -> None:
        """Keep a snapshot that shows the first incident of a kind for some pool."""
        for finding in process.findings:
            kind = _BY_FINDING.get(finding.kind)
            if kind is not None and finding.pool is not None:
                self.add(finding.pool, kind, process)

    def add(self, pool: str, kind: IncidentKind, process: Process) -> None:
        """Keep a snapshot that is the first of its kind for this pool."""
        if self.has(pool, kind):
            return
        while len(self._snapshots) >= MAX_SNAPSHOTS:
            self._snapshots.pop(next(iter(self._snapshots)), None)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        record = IncidentSnapshot(pool, kind, at, process)
        text = document.list_to_json((record,), "frozen")
        self._snapshots[pool, kind] = at, zlib.compress(text.encode(), 1)

    def document(self) -> str:
        """Return all incident snapshots as the JSON document of the agent."""
        texts = [zlib.decompress(packed) for _, (_, packed) in self._items()]
        snapshots = [each for text in texts for each in json.loads(text)["frozen"]]
        return json.dumps({"schema": SCHEMA, "frozen": snapshots})

    def forget(self) -> None:
        """Drop all incident snapshots: in a forked child."""
        self._snapshots.clear()

    def _items(self) -> list[tuple[tuple[str, IncidentKind], tuple[str, bytes]]]:
        return list(self._snapshots.items())
