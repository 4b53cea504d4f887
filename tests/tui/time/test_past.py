"""The ring with the history before it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from fake_looks import NOON, incident, iso, process

from poolwatch.errors import PoolwatchError, UsageError
from poolwatch.model import Incident, Snapshot, Step, in_cells
from poolwatch.tui.time.past import Both


@dataclass
class Recorded:
    """Moments with as many connections out as the number of the moment."""

    moments: list[float]
    known: tuple[Incident, ...] = ()
    error: PoolwatchError | None = None

    def _shown(self, at: float) -> int:
        if self.error is not None:
            raise self.error
        return sum(moment <= at for moment in self.moments) - 1

    def extent(self) -> tuple[float, float] | None:
        self._shown(0)
        return (self.moments[0], self.moments[-1]) if self.moments else None

    def snapshot_at(self, at: float) -> Snapshot:
        return Snapshot(at=iso(self.moments[self._shown(at)]))

    def steps(self, since: float, until: float, cells: int) -> list[Step | None]:
        self._shown(0)
        recorded = [(at, at, Step(each, 0)) for each, at in enumerate(self.moments)]
        return in_cells(recorded, since, until, cells)

    def moment_after(self, at: float, by: int) -> float:
        index = self._shown(at) + by
        return self.moments[min(max(index, 0), len(self.moments) - 1)]

    def incidents(self, since: float, until: float) -> list[Incident]:
        self._shown(0)
        return list(self.known)


def both() -> tuple[Both, Recorded, Recorded]:
    newer = Recorded([NOON + 1, NOON + 2, NOON + 3])
    older = Recorded([NOON - 60, NOON - 30, NOON + 2])
    return Both(newer, older), newer, older


def test_the_ring_counts_from_where_it_begins() -> None:
    past, _, _ = both()
    assert past.extent() == (NOON - 60, NOON + 3)
    assert past.snapshot_at(NOON + 2).at == iso(NOON + 2)
    assert past.snapshot_at(NOON).at == iso(NOON - 30)
    assert past.steps(NOON - 60, NOON + 4, 2) == [Step(1, 0), Step(2, 0)]
    assert past.steps(NOON + 1, NOON + 4, 3) == [Step(0, 0), Step(1, 0), Step(2, 0)]


def test_steps_lead_over_the_border() -> None:
    past, _, _ = both()
    assert past.moment_after(NOON + 1, -1) == NOON - 30
    assert past.moment_after(NOON + 3, -10) == NOON - 30
    assert past.moment_after(NOON + 3, -2) == NOON + 1
    assert past.moment_after(NOON - 30, 1) == NOON + 1
    assert past.moment_after(NOON - 60, 1) == NOON - 30
    assert past.moment_after(NOON - 60, -5) == NOON - 60
    assert past.moment_after(NOON - 60, 10) == NOON + 1


def test_a_history_that_goes_away_leaves_the_ring() -> None:
    past, _, older = both()
    older.error = UsageError("the history: SQLite says: disk I/O error")
    assert past.extent() == (NOON + 1, NOON + 3)
    assert past.trouble == "the history: SQLite says: disk I/O error"
    assert past.steps(NOON - 1, NOON + 3, 2) == [None, Step(2, 0)]
    assert past.moment_after(NOON + 1, -1) == NOON + 1
    assert past.moment_after(NOON - 30, 1) == NOON + 1
    assert past.incidents(NOON, NOON + 3) == []
    assert past.snapshot_at(NOON + 2).at == iso(NOON + 2)
    with pytest.raises(UsageError, match="disk"):
        past.snapshot_at(NOON - 30)
    older.error = None
    past.extent()
    assert past.trouble is None


def test_an_incident_of_both_is_told_once() -> None:
    past, newer, older = both()
    kept = incident("kept", process(0), -40)
    other = incident("other", process(0), -50, kind="long_hold", ended_at=iso(NOON))
    older.known = (other, kept)
    again = incident("again", process(0), 1)
    newer.known = (replace(again, pool="reports"), again, replace(other, id="late",
        started_at=iso(NOON + 2), ended_at=None))  # fmt: skip
    found = past.incidents(NOON - 60, NOON + 3)
    assert [each.id for each in found] == ["other", "kept", "again", "late"]


def test_a_ring_that_is_still_empty() -> None:
    past = Both(Recorded([]), Recorded([NOON - 60, NOON - 30]))
    assert past.extent() == (NOON - 60, NOON - 30)
    assert past.moment_after(NOON - 60, 1) == NOON - 30
    assert past.steps(NOON - 60, NOON, 1) == [Step(1, 0)]
    assert Both(Recorded([]), Recorded([])).extent() is None
