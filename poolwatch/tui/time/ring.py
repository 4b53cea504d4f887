"""The last ten minutes of the dashboard, packed, in bounded memory."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from poolwatch.diagnosis.incidents import Incidents
from poolwatch.errors import NoProcessError
from poolwatch.model import Incident, Snapshot, Step, in_cells
from poolwatch.text.format import since_epoch, utc_time
from poolwatch.tui.time.packing import pack, unpack

SPAN_S = 600.0
BUDGET = 64 << 20
"""Bytes of all packed readings."""
_ROW_BYTES = 400
"""What a reading takes besides its packed snapshot."""
_THINNED = 5
"""One in this many readings of the older half stays when the budget is reached."""
_CLOCK_STEP_S = 30.0
"""A larger difference between the two clocks is a step of the wall clock; slow readings
make smaller ones."""
_ROUNDING_S = 0.001
"""The times that poolwatch prints are cut to milliseconds."""
_MOST_INCIDENTS = 2_000
"""Most incidents that are kept after their end."""
_PAUSE_S = 5.0
"""Readings further apart than this, and than those before, leave a gap."""


class Kept(NamedTuple):
    """What the ring keeps, in figures."""

    readings: int
    bytes: int
    thinned: bool
    """Whether only one in five readings of the older half is kept."""
    shortened: float | None
    """The seconds that are kept, if the budget has shortened them; None if not."""


@dataclass(slots=True)
class _Reading:
    at: float
    """On the ring's own time line, which never runs backwards."""
    taken: float
    """On the monotonic clock."""
    step: Step
    gap: bool
    """Whether nobody recorded for a while before it."""
    packed: bytes | None
    """The snapshot; None once it is thinned out, while its step stays."""
    news: bool
    """Whether an incident began or ended with it."""
    thinned: bool = False


class Ring:
    """A Past of the readings of this dashboard.

    add() is for the thread that polls, once the reading is on the screen: it takes 25
    ms for 2,000 holds, and its lock is only held for moments. Readings are thinned to
    stay within the budget: of the older half, one in five is kept, at best one in which
    an incident began or ended; after that the oldest ones are dropped.

    Its incidents are those of the readings that are kept, on its own time line. Those
    of the findings on the screen follow the clock on the wall.
    """

    def __init__(
        self,
        tracker: Incidents,
        *,
        budget: int = BUDGET,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracker = tracker
        self._budget = budget
        self._clock = clock
        self._lock = threading.Lock()
        self._readings: deque[_Reading] = deque()
        self._bytes = 0
        self._shift = 0.0
        """From the ring's time line to the wall clock: below 0 after a step back."""
        self._dropped: float | None = None
        """When the newest reading was taken that the budget has dropped."""
        self._lasting: tuple[Incident, ...] = ()
        self._ended: deque[Incident] = deque(maxlen=_MOST_INCIDENTS)
        self._shown: tuple[bytes, Snapshot] | None = None
        """The last snapshot that was asked for: each paint asks again."""

    # -- recording -------------------------------------------------------------------

    def add(self, snapshot: Snapshot, at: float) -> None:
        """Keep a reading of the moment ``at``; never raises."""
        try:
            self._add(snapshot, at)
        except Exception:  # noqa: BLE001 - the thread that polls must go on
            return

    def _add(self, snapshot: Snapshot, at: float) -> None:
        packed = pack(snapshot)
        with self._lock:
            taken = self._clock()
            moment, gap = self._moment(at, taken)
        changes = self._tracker.update(snapshot, moment)
        pools = [pool for process in snapshot.processes for pool in process.pools]
        out = sum([pool.checked_out for pool in pools])
        step = Step(out, sum([pool.waiting for pool in pools]))
        with self._lock:
            before = {incident.id for incident in self._lasting}
            began = any(each.id not in before for each in changes.lasting)
            self._lasting = changes.lasting
            self._ended.extend(changes.ended)
            news = began or bool(changes.ended)
            self._readings.append(_Reading(moment, taken, step, gap, packed, news))
            self._bytes += _ROW_BYTES + len(packed)
            self._forget(taken)

    def _moment(self, at: float, taken: float) -> tuple[float, bool]:
        """Return the time on the ring's line, and whether there is a gap before it.

        If the wall clock steps back, all earlier readings are shown that much earlier,
        so that they stay in order and the newest one is current.
        """
        if not self._readings:
            return at - self._shift, False
        last = self._readings[-1]
        expected = last.at + taken - last.taken
        ahead = at - self._shift - expected
        if abs(ahead) > _CLOCK_STEP_S:
            back = min(ahead, -self._shift)
            self._shift += back
            return expected + ahead - back, True
        moment = max(at - self._shift, last.at + 2 * _ROUNDING_S)
        pause = taken - last.taken
        usual = last.taken - self._readings[-2].taken if len(self._readings) > 1 else 0
        return moment, pause > max(_PAUSE_S, 3 * usual)

    # -- the budget ------------------------------------------------------------------

    def _forget(self, now: float) -> None:
        """Drop what is too old, then what is too much."""
        while now - self._readings[0].taken > SPAN_S:
            self._drop()
        if self._bytes > self._budget:
            self._thin()
        while self._bytes > self._budget and len(self._readings) > 1:
            self._dropped = self._readings[0].taken
            self._drop()
        if self._dropped is not None and now - self._dropped > SPAN_S:
            self._dropped = None
        first = utc_time(self._readings[0].at)
        while self._ended and (self._ended[0].ended_at or "") < first:
            self._ended.popleft()

    def _drop(self) -> None:
        """Drop the oldest reading, and those after it that are thinned out."""
        self._bytes -= _size(self._readings.popleft())
        while self._readings and self._readings[0].packed is None:
            self._bytes -= _size(self._readings.popleft())

    def _thin(self) -> None:
        """Thin the older half of what is kept."""
        first, last = self._readings[0].taken, self._readings[-1].taken
        group: list[_Reading] = []
        for reading in self._readings:
            if reading.taken >= (first + last) / 2 or self._bytes <= self._budget:
                return
            if reading.thinned:
                continue
            group.append(reading)
            if len(group) == _THINNED:
                kept = next((each for each in group if each.news), group[0])
                for each in group:
                    each.thinned = True
                    if each is not kept and each is not self._readings[0]:
                        self._bytes -= len(each.packed or b"")
                        each.packed = None
                group.clear()

    # -- looking back ----------------------------------------------------------------

    def kept(self) -> Kept:
        """Return what is kept, in figures."""
        with self._lock:
            pictures = sum(each.packed is not None for each in self._readings)
            thinned = any(each.thinned for each in self._readings)
            shortened = None
            if self._dropped is not None:
                shortened = self._readings[-1].taken - self._readings[0].taken
            return Kept(pictures, self._bytes, thinned, shortened)

    def extent(self) -> tuple[float, float] | None:
        """Return the first and the last moment that is kept."""
        with self._lock:
            if not self._readings:
                return None
            first, last = self._readings[0].at, self._readings[-1].at
            return first + self._shift, last + self._shift

    def snapshot_at(self, at: float) -> Snapshot:
        """Return the newest reading at or before a moment."""
        with self._lock:
            pictures = self._pictures()
            index = _index(pictures, at - self._shift)
            if index < 0:
                raise NoProcessError(f"nothing is kept of {utc_time(at)}")
            reading, shift, shown = pictures[index], self._shift, self._shown
        packed = reading.packed or b""
        if shown is None or shown[0] is not packed:
            shown = self._shown = packed, unpack(packed)
        return replace(shown[1], at=utc_time(reading.at + shift))

    def steps(self, since: float, until: float, cells: int) -> list[Step | None]:
        """Divide a stretch of time into cells; a reading counts until the next one."""
        with self._lock:
            pieces = list(self._pieces())
        return in_cells(pieces, since, until, cells)

    def _pieces(self) -> Iterator[tuple[float, float, Step]]:
        for index, reading in enumerate(self._readings):
            is_last = index + 1 == len(self._readings)
            after = reading if is_last else self._readings[index + 1]
            until = reading if after.gap else after
            yield reading.at + self._shift, until.at + self._shift, reading.step

    def moment_after(self, at: float, by: int) -> float:
        """Return the moment of the reading ``by`` readings later."""
        with self._lock:
            pictures = self._pictures()
            if not pictures:
                return at
            index = _index(pictures, at - self._shift) + by
            return pictures[min(max(index, 0), len(pictures) - 1)].at + self._shift

    def incidents(self, since: float, until: float) -> list[Incident]:
        """Return the incidents of this dashboard that overlap a stretch of time."""
        with self._lock:
            known = [*self._ended, *self._lasting]
            shift = self._shift
        if shift:
            known = [_moved(incident, shift) for incident in known]
        first, last = utc_time(since), utc_time(until)
        found = [
            incident
            for incident in known
            if incident.started_at <= last
            and (incident.ended_at or incident.last_seen_at) >= first
        ]
        return sorted(found, key=lambda incident: incident.started_at)

    def _pictures(self) -> list[_Reading]:
        return [each for each in self._readings if each.packed is not None]


_LARGE_S = 0.01
"""CPU time of two readings in a row from which on not every reading is kept."""


class Recorder:
    """Adds readings to a ring on a thread of its own.

    A large reading takes a while, 25 ms for 2,000 holds: then the thread rests, so that
    it uses at most a hundredth of a core, and the readings meanwhile are not kept.
    """

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self._waiting: deque[tuple[Snapshot, float]] = deque(maxlen=4)
        self._wake = threading.Event()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        run = threading.Thread(target=self._run, name="poolwatch-ring", daemon=True)
        run.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._wake.set()

    def add(self, snapshot: Snapshot, at: float) -> None:
        """Keep a reading of the moment ``at``, in seconds since the epoch."""
        self._waiting.append((snapshot, at))
        self._wake.set()

    def _run(self) -> None:
        cost_s = 0.0
        while not self._stopped.is_set():
            self._wake.wait()
            self._wake.clear()
            while self._waiting and not self._stopped.is_set():
                began, before_s = time.thread_time(), cost_s
                self.ring.add(*self._waiting.popleft())
                cost_s = time.thread_time() - began
                if min(cost_s, before_s) > _LARGE_S:
                    self._stopped.wait(cost_s * 100)
                    while len(self._waiting) > 1:
                        self._waiting.popleft()


def _size(reading: _Reading) -> int:
    return _ROW_BYTES + len(reading.packed or b"")


def _index(readings: list[_Reading], at: float) -> int:
    """The newest one at or before a moment; -1 if there is none."""
    return bisect_right(readings, at + _ROUNDING_S, key=lambda each: each.at) - 1


def _moved(incident: Incident, by: float) -> Incident:
    """An incident whose times follow a step of the clock."""

    def moved(at: str) -> str:
        return utc_time((since_epoch(at) or 0.0) + by)

    return replace(
        incident,
        started_at=moved(incident.started_at),
        last_seen_at=moved(incident.last_seen_at),
        ended_at=None if incident.ended_at is None else moved(incident.ended_at),
    )
