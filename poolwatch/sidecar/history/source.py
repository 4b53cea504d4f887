"""The history as a source for the dashboard, and its past."""

from __future__ import annotations

from typing import cast, get_args

from poolwatch.model import (
    Incident,
    IncidentKind,
    IncidentSnapshot,
    Snapshot,
    Step,
    Unreachable,
    in_cells,
)
from poolwatch.sidecar.history.minutes import MINUTE_S
from poolwatch.sidecar.history.reading import History
from poolwatch.text.naming import with_names

_MOST_SNAPSHOTS = 100


class HistorySource:
    """A Source over a history: a moment of the past, or the processes alive now.

    It is a Past, too: of all moments of the history.
    """

    def __init__(self, history: History, at: float | None = None) -> None:
        self._history = history
        self._at = at
        self._past: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        """Return the picture; that of a past moment is read once."""
        if self._at is None:
            return self._history.snapshot()
        if self._past is None:
            self._past = self._history.snapshot(self._at)
        return self._past

    def newest(self) -> HistorySource:
        """Return the same history, not of a moment but as it is now."""
        return HistorySource(self._history)

    def extent(self) -> tuple[float, float] | None:
        """Return the times of the first and the last look."""
        return self._history.extent()

    def snapshot_at(self, at: float) -> Snapshot:
        """Return the newest snapshot of each process at or before a moment."""
        return self._history.snapshot(at)

    def steps(self, since: float, until: float, cells: int) -> list[Step | None]:
        """Divide a stretch of time into cells: the most that each minute has had."""
        minutes = self._history.most_a_minute(since, until)
        recorded = [(minute, minute + MINUTE_S, step) for minute, step in minutes]
        return in_cells(recorded, since, until, cells)

    def moment_after(self, at: float, by: int) -> float:
        """Return the time of the snapshot ``by`` snapshots later."""
        return self._history.moment_after(at, by)

    def incidents(self, since: float, until: float) -> list[Incident]:
        """Return the incidents of all hosts that lasted within a stretch of time."""
        return self._history.incidents(since, until)

    def all_incident_snapshots(
        self,
    ) -> tuple[tuple[IncidentSnapshot, ...], tuple[Unreachable, ...]]:
        """Return the latest kept snapshots of the incidents that processes keep, too.

        The list of the dashboard shows them, the newest first.
        """
        kinds = get_args(IncidentKind)
        known = self._history.incidents(until=self._at, kinds=kinds)
        kept = [each for each in known if each.snapshot][-_MOST_SNAPSHOTS:]
        found = []
        for each in kept:
            process = self._history.snapshot_of_incident(each.id)
            pools = with_names(process).pools if process is not None else ()
            ids = [pool.id for pool in pools if pool.name == each.pool]
            if process is not None and ids:
                kind = cast("IncidentKind", each.kind)
                found.append(IncidentSnapshot(ids[0], kind, each.started_at, process))
        return tuple(found), ()

    def close(self) -> None:
        """Close the connections to the history."""
        self._history.close()
