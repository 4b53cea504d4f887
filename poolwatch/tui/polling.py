"""Reading the source, on threads of its own: a source that hangs costs no key press.

Not Textual workers: those share one small executor, and a blocked one starves the rest.
The threads are daemons, so quitting never waits for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from poolwatch.errors import NoProcessError, PoolwatchError
from poolwatch.model import Frozen, Snapshot, Source, Unreachable
from poolwatch.text.frozen import IncidentSnapshotSource

_INTERVALS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

Mode = Literal[
    "starting", "live", "paused", "stale", "failed", "silent", "lost", "none", "frozen"
]
"""How far the data on the screen can be trusted."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer of the source, or why there is none."""

    asked_at: float
    """On the monotonic clock: the data is at least that old."""
    snapshot: Snapshot | None = None
    error: str | None = None
    no_process: bool = False
    """Whether the source answered that no process is instrumented."""

    @property
    def alive(self) -> bool:
        """Whether it shows at least one process."""
        return self.snapshot is not None and bool(self.snapshot.processes)

    @property
    def silent(self) -> tuple[Unreachable, ...]:
        """The processes that did not answer and are not known to have ended."""
        unreachable = self.snapshot.unreachable if self.snapshot else ()
        return tuple(each for each in unreachable if each.alive is not False)


@dataclass(frozen=True, slots=True)
class Incidents:
    """The incident snapshots of all processes, or why there are none."""

    snapshots: tuple[Frozen, ...] = ()
    """The newest first."""
    unreachable: tuple[Unreachable, ...] = ()
    error: str | None = None


def read_source(source: Source) -> Reading:
    """Ask for the present; an error becomes a sentence."""
    asked_at = time.monotonic()
    try:
        return Reading(asked_at, source.snapshot())
    except NoProcessError as error:
        return Reading(asked_at, error=str(error), no_process=True)
    except Exception as error:  # noqa: BLE001 - a broken source must not end the view
        return Reading(asked_at, error=_sentence(error))


def read_incidents(source: Source) -> Incidents:
    """Ask for the incident snapshots; an error becomes a sentence."""
    if not isinstance(source, IncidentSnapshotSource):
        return Incidents(error="this source keeps no incident snapshots")
    try:
        snapshots, unreachable = source.all_frozen()
    except Exception as error:  # noqa: BLE001 - a broken source must not end the view
        return Incidents(error=_sentence(error))
    newest = sorted(snapshots, key=lambda each: each.at, reverse=True)
    return Incidents(tuple(newest), unreachable)


def _sentence(error: Exception) -> str:
    if isinstance(error, PoolwatchError):
        return str(error)
    return f"the source failed: {type(error).__name__}: {error}"


def next_interval(interval: float, *, faster: bool) -> float:
    """The next shorter or longer interval, in seconds."""
    if faster:
        shorter = (each for each in _INTERVALS if each < interval)
        return max(shorter, default=_INTERVALS[0])
    longer = (each for each in _INTERVALS if each > interval)
    return min(longer, default=_INTERVALS[-1])


class Poller:
    """Reads the source once an interval; never asks two questions at a time."""

    def __init__(
        self, source: Source, interval: float, on_reading: Callable[[Reading], object]
    ) -> None:
        self.interval = interval
        self.paused = False
        self._source = source
        self._on_reading = on_reading
        self._wake = threading.Event()
        self._at_once = False
        self._stopped = False
        self._thread = threading.Thread(
            target=self._run, name="poolwatch-poll", daemon=True
        )

    def start(self) -> None:
        """Begin; the first question is asked at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more; an answer that is still out is dropped."""
        self._stopped = True
        self._wake.set()

    def read_now(self) -> None:
        """Ask at once, also while paused."""
        self._at_once = True
        self._wake.set()

    def pace(
        self, *, interval: float | None = None, paused: bool | None = None
    ) -> None:
        """Change the interval, pause or go on; takes effect at once."""
        if interval is not None:
            self.interval = interval
        if paused is not None:
            self.paused = paused
        self._wake.set()

    def _run(self) -> None:
        while not self._stopped:
            started = time.monotonic()
            reading = read_source(self._source)
            if not self._stopped:
                self._on_reading(reading)
            self._rest(started)

    def _rest(self, started: float) -> None:
        """Wait until the interval is over or a reading is wanted sooner."""
        while not (self._stopped or self._at_once):
            left = None if self.paused else started + self.interval - time.monotonic()
            if left is not None and left <= 0:
                break
            self._wake.wait(left)
            self._wake.clear()
        self._at_once = False


class IncidentReader:
    """Reads the incident snapshots on demand; never asks two questions at a time.

    They are no part of a reading: fetching them at every refresh would burden the
    applications.
    """

    def __init__(
        self, source: Source, on_incidents: Callable[[Incidents], object]
    ) -> None:
        self._source = source
        self._on_incidents = on_incidents
        self._thread: threading.Thread | None = None

    def read(self) -> None:
        """Ask, unless a question is still out: its answer serves as well."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._run, name="poolwatch-incidents", daemon=True
            )
            self._thread.start()

    def _run(self) -> None:
        self._on_incidents(read_incidents(self._source))
