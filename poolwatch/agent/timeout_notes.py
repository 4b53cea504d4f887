"""The notes that poolwatch adds to the timeout errors of pools."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolwatch.agent.snapshots import LedgerSource

_MAX_POOLS = 64
"""Pools whose last note is remembered."""


class TimeoutNotes:
    """One note per pool, renewed at most once a second: requests fail in crowds."""

    def __init__(self) -> None:
        self._notes: dict[str, tuple[float, str]] = {}

    def of(self, pool_id: str, source: LedgerSource) -> str:
        """Return the note for a pool's TimeoutError."""
        now = time.monotonic()
        known = self._notes.get(pool_id)
        if known is None or now - known[0] > 1.0:
            from poolwatch.diagnosis import timeout_note

            process = source.process(search=False)
            source.incident_snapshots.add(pool_id, "timeout", process)
            known = now, timeout_note.note(process, pool_id)
            if len(self._notes) >= _MAX_POOLS:  # most pools may be gone
                self._notes.clear()
            self._notes[pool_id] = known
        return known[1]
