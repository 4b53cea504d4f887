"""The last minutes of this dashboard, and before them the history."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from poolwatch.errors import PoolwatchError
from poolwatch.model import Incident, Past, Snapshot, Step

T = TypeVar("T")

_BEFORE_S = 0.01


class Both:
    """Two pasts as one: the newer one counts from where it begins.

    If the older one fails, the newer one goes on alone, and ``trouble`` says why.
    """

    def __init__(self, newer: Past, older: Past) -> None:
        self._newer = newer
        self._older = older
        self.trouble: str | None = None
        """One sentence while the older one fails."""

    def extent(self) -> tuple[float, float] | None:
        """Return the first and the last moment of both."""
        known = [self._newer.extent(), self._try(self._older.extent, None)]
        found = [each for each in known if each is not None]
        if not found:
            return None
        return min(first for first, _ in found), max(last for _, last in found)

    def snapshot_at(self, at: float) -> Snapshot:
        """Return the newest snapshot at or before a moment.

        Raises PoolwatchError if it would be in the older past, and that one fails.
        """
        return (self._newer if self._is_newer(at) else self._older).snapshot_at(at)

    def steps(self, since: float, until: float, cells: int) -> list[Step | None]:
        """Divide a stretch of time into cells."""
        steps = self._newer.steps(since, until, cells)
        if self._is_newer(since):
            return steps
        older = self._try(lambda: self._older.steps(since, until, cells), steps)
        return [new or old for new, old in zip(steps, older, strict=True)]

    def moment_after(self, at: float, by: int) -> float:
        """Return the recorded moment ``by`` steps later.

        A step over the border leads to the first or last moment beyond it.
        """
        extent = self._newer.extent()
        if extent is None:
            return self._older.moment_after(at, by)
        first, _ = extent
        if self._is_newer(at):
            found = self._newer.moment_after(at, by)
            if by < 0 and found == self._newer.moment_after(at, by + 1):  # its first
                before = first - _BEFORE_S
                found = self._try(lambda: self._older.moment_after(before, 0), first)
                return min(found, first)
            return found
        found = self._try(lambda: self._older.moment_after(at, by), first)
        is_last = by > 0 and found == self._try(
            lambda: self._older.moment_after(at, by - 1), first
        )
        return first if is_last else min(found, first)

    def incidents(self, since: float, until: float) -> list[Incident]:
        """Return the incidents of both, oldest first; those of both only once."""
        none: list[Incident] = []
        found = self._try(lambda: self._older.incidents(since, until), none)
        for incident in self._newer.incidents(since, until):
            if not any(_is_same(incident, each) for each in found):
                found.append(incident)
        return sorted(found, key=lambda incident: incident.started_at)

    def _is_newer(self, at: float) -> bool:
        extent = self._newer.extent()
        return extent is not None and at + _BEFORE_S / 2 >= extent[0]

    def _try(self, ask: Callable[[], T], otherwise: T) -> T:
        try:
            found = ask()
        except PoolwatchError as error:
            self.trouble = str(error)
            return otherwise
        self.trouble = None
        return found


def _is_same(one: Incident, other: Incident) -> bool:
    """Whether two observers have seen one incident: they overlap, and agree on it."""

    def identity(each: Incident) -> tuple[object, ...]:
        return each.host, each.pid, each.pool, each.kind

    same_sites = one.sites == other.sites or not set(one.sites).isdisjoint(other.sites)
    return (
        identity(one) == identity(other)
        and same_sites  # all or, of a pool without connections, some of its holders
        and one.started_at <= (other.ended_at or one.started_at)
        and other.started_at <= (one.ended_at or other.started_at)
    )
