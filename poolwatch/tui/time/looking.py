"""Looks into the past on a thread of its own: no key press waits for a store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from poolwatch.errors import PoolwatchError, UsageError
from poolwatch.model import Incident, Past, Snapshot, Step
from poolwatch.text.format import local_time, plural, since_epoch, utc_time
from poolwatch.tui.time.timeline import began_at, incident_after
from poolwatch.tui.views.view import Sought

SPANS = (600.0, 3600.0, 6 * 3600.0, 86_400.0, 7 * 86_400.0, 35 * 86_400.0)
"""Seconds that the strip can show at once."""

_ROUNDING_S = 0.002
"""The times that poolwatch prints are cut to milliseconds."""

_NEAR_S = 5.0
"""Seconds by which a reading may be older than asked for without a note."""

Extent = tuple[float, float]


class Move(Protocol):
    """A way from one moment to another."""

    @property
    def words(self) -> str:
        """What is being read, in words."""

    def to(self, past: Past, at: float, extent: Extent) -> float:
        """Return where it leads from ``at``; raises PoolwatchError if nowhere."""


@dataclass(frozen=True, slots=True)
class Steps:
    """A number of readings later; a negative number leads back."""

    by: int

    @property
    def words(self) -> str:
        """What is being read."""
        where = "ahead" if self.by > 0 else "back"
        return f"{plural(abs(self.by), 'step')} {where}"

    def to(self, past: Past, at: float, extent: Extent) -> float:
        """Return the time of that reading."""
        first, last = extent
        if self.by < 0 and at <= first + _ROUNDING_S:
            raise UsageError("this is the first moment that is kept")
        if self.by > 0 and at >= last - _ROUNDING_S:
            raise UsageError("this is the last moment that is kept")
        return past.moment_after(at, self.by)


@dataclass(frozen=True, slots=True)
class To:
    """A moment, in seconds since the epoch; infinity is the last one."""

    at: float

    @property
    def words(self) -> str:
        """What is being read."""
        known = self.at < float("inf")
        return local_time(utc_time(self.at)) if known else "the last moment"

    def to(self, past: Past, at: float, extent: Extent) -> float:  # noqa: ARG002
        """Return the moment."""
        return self.at


LAST = To(float("inf"))


@dataclass(frozen=True, slots=True)
class NextIncident:
    """The beginning of the next incident, or of the one before."""

    back: bool = False

    @property
    def words(self) -> str:
        """What is being read."""
        return "the incident before" if self.back else "the next incident"

    def to(self, past: Past, at: float, extent: Extent) -> float:
        """Return when it began."""
        found = incident_after(past.incidents(*extent), at, back=self.back)
        if found is None:
            raise UsageError(f"no {'earlier' if self.back else 'later'} incident began")
        return began_at(found)


@dataclass(frozen=True, slots=True)
class Beginning:
    """When a finding began."""

    of: Sought

    @property
    def words(self) -> str:
        """What is being read."""
        return f"when {self.of.kind} began"

    def to(self, past: Past, at: float, extent: Extent) -> float:  # noqa: ARG002
        """Return when the first of its incidents began; those that last come first."""
        found = [each for each in past.incidents(*extent) if self._is_of(each)]
        lasting = [each for each in found if each.ended_at is None] or found[-1:]
        if not lasting:
            raise UsageError(f"nothing kept says when {self.of.kind} began")
        return min(map(began_at, lasting))

    def _is_of(self, incident: Incident) -> bool:
        of = self.of
        of_site = not of.sites or not set(of.sites).isdisjoint(incident.sites)
        of_pool = of.pool in {None, incident.pool}
        return incident.kind == of.kind and of_pool and of_site


class Strip(NamedTuple):
    """A stretch of time."""

    since: float
    until: float
    steps: Sequence[Step | None]
    incidents: Sequence[Incident]

    def shows(self, at: float, since: float, until: float, cells: int) -> bool:
        """Whether it still covers a moment, in a stretch that may have moved on."""
        cell = (until - since) / cells
        same = abs(self.since - since) < cell and abs(self.until - until) < cell
        return same and len(self.steps) == cells and self.since <= at <= self.until


class Look(NamedTuple):
    """A moment, and the strip around it."""

    at: float
    extent: Extent
    strip: Strip
    snapshot: Snapshot | None
    """The snapshot; None if the moment was shown before."""


class Answer(NamedTuple):
    """What a request has led to."""

    look: Look | None
    note: str | None = None
    """Why it has not led where it was asked to; one sentence."""
    trouble: str | None = None
    """Why nothing can be read; one sentence."""


class Looker:
    """Looks into a past whenever it is asked; makes one request at a time.

    What is asked for meanwhile becomes one request: steps are added up, and a moment
    to go to replaces what came before it.
    """

    def __init__(self, past: Past, on_answer: Callable[[Answer], object]) -> None:
        self.at: float | None = None
        """The moment that was last seen."""
        self.span = SPANS[0]
        """Seconds that the strip shows."""
        self.cells = 1
        """Cells of the strip."""
        self._past = past
        self._on_answer = on_answer
        self._strip: Strip | None = None
        self._moves: list[Move] = []
        self._wanted = threading.Condition()
        self._asked = self._stopped = False
        self._thread = threading.Thread(
            target=self._run, name="poolwatch-past", daemon=True
        )
        self._thread.start()

    def ask(self, move: Move | None = None) -> None:
        """Read a moment, or only the strip again."""
        with self._wanted:
            last = self._moves[-1] if self._moves else None
            if isinstance(move, To):
                self._moves = [move]
            elif isinstance(move, Steps) and isinstance(last, Steps):
                self._moves[-1] = Steps(last.by + move.by)
            elif move is not None:
                self._moves.append(move)
            self._asked = True
            self._wanted.notify()

    def stop(self) -> None:
        """End the thread; what it reads now is dropped."""
        with self._wanted:
            self._stopped = True
            self._wanted.notify()

    def _run(self) -> None:
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: self._asked or self._stopped)
                moves, self._moves, self._asked = self._moves, [], False
            if self._stopped:
                return
            answer = self._answer(moves)
            if not self._stopped:
                self._on_answer(answer)

    def _answer(self, moves: Sequence[Move]) -> Answer:
        try:
            return self._look(moves)
        except PoolwatchError as error:
            return Answer(None, trouble=str(error))
        except Exception as error:  # noqa: BLE001 - a broken store must not end the app
            why = f"the past cannot be read: {type(error).__name__}: {error}"
            return Answer(None, trouble=why)

    def _look(self, moves: Sequence[Move]) -> Answer:
        extent = self._past.extent()
        if extent is None:
            return Answer(None, trouble="nothing is recorded yet")
        at, note = self._moved(moves, extent)
        snapshot = None
        if at != self.at:
            snapshot = self._past.snapshot_at(at)
            wanted, self.at = at, since_epoch(snapshot.at) or at
            at = self.at
            if note is None and wanted - at > _NEAR_S:
                times = [local_time(utc_time(each)) for each in (wanted, at)]
                note = "the last reading before {} is of {}".format(*times)
        since, until, cells = *_window(extent, at, self.span), self.cells
        strip = self._strip
        if strip is None or not (moves and strip.shows(at, since, until, cells)):
            steps = self._past.steps(since, until, cells)
            strip = Strip(since, until, steps, self._past.incidents(since, until))
            self._strip = strip
        return Answer(Look(at, extent, strip, snapshot), note)

    def _moved(self, moves: Sequence[Move], extent: Extent) -> tuple[float, str | None]:
        """Return where the moves lead within the extent, and why no further."""
        first, last = extent
        note = None
        at = last if self.at is None else self.at
        for move in moves:
            try:
                at = move.to(self._past, at, extent)
            except UsageError as error:
                note = str(error)
        if not moves and self.at is not None:  # it stays, even if it is no longer kept
            return at, None
        clipped = min(max(at, first), last)
        if abs(at - clipped) > 1 and at != float("inf"):
            end = "before the first" if at < first else "after the last"
            when, kept = (local_time(utc_time(each)) for each in (at, clipped))
            note = f"{when} is {end} moment that is kept, {kept}"
        return clipped, note


def _window(extent: Extent, at: float, span: float) -> Extent:
    """Return the page of the extent that a moment is on; pages are ``span`` long."""
    first, last = extent
    until = last - span * max((last - at) // span, 0)
    since = until - span
    if since < first:
        since, until = first, min(first + span, last)
    return since, max(until, since + 1)
