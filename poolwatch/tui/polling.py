"""Reads the source on separate threads: a hanging source never delays a key press.

Textual's workers are not used: they share one small executor, in which a blocked worker
starves the others. The threads are daemons, so quitting never waits for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from poolwatch.errors import NoProcessError, PoolwatchError
from poolwatch.model import IncidentSnapshot, Snapshot, Source, Unreachable
from poolwatch.text.incident_snapshots import IncidentSnapshotSource

_INTERVALS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

Mode = Literal[
    "starting", "live", "paused", "stale", "failed", "silent", "lost", "none",
    "saved", "history", "past",
]  # fmt: skip
"""How current the data on the screen is."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One snapshot of the source, or the reason why there is none."""

    requested_at: float
    """Monotonic time of the request: a lower bound for the age of the data."""
    snapshot: Snapshot | None = None
    error: str | None = None
    no_process: bool = False
    """Whether the source reported that no process is instrumented."""
    at: float = field(default_factory=time.time)
    """When it was read, in seconds since the epoch."""
    answered_at: float | None = None
    """Monotonic time of the answer: an upper bound for when it was like this."""

    @property
    def alive(self) -> bool:
        """Whether the snapshot has at least one process."""
        return self.snapshot is not None and bool(self.snapshot.processes)

    @property
    def failed(self) -> bool:
        """Whether the source could not say which processes there are."""
        return self.snapshot is None and not self.no_process

    @property
    def silent(self) -> tuple[Unreachable, ...]:
        """The processes that did not answer and are not known to have ended."""
        unreachable = self.snapshot.unreachable if self.snapshot else ()
        return tuple(each for each in unreachable if each.alive is not False)


@dataclass(frozen=True, slots=True)
class Incidents:
    """The incident snapshots of all processes, or the reason why there are none."""

    snapshots: tuple[IncidentSnapshot, ...] = ()
    """The newest first."""
    unreachable: tuple[Unreachable, ...] = ()
    error: str | None = None


def read_source(source: Source) -> Reading:
    """Read a snapshot; an error becomes a sentence."""
    requested_at = time.monotonic()
    try:
        snapshot = source.snapshot()
        return Reading(requested_at, snapshot, answered_at=time.monotonic())
    except NoProcessError as error:
        return Reading(requested_at, error=str(error), no_process=True)
    except Exception as error:  # noqa: BLE001 - a broken source must not end the app
        return Reading(requested_at, error=_sentence(error))


def read_incidents(source: Source) -> Incidents:
    """Read the incident snapshots; an error becomes a sentence."""
    if not isinstance(source, IncidentSnapshotSource):
        return Incidents(error="this source has no incident snapshots")
    try:
        snapshots, unreachable = source.all_incident_snapshots()
    except Exception as error:  # noqa: BLE001 - a broken source must not end the app
        return Incidents(error=_sentence(error))
    newest = sorted(snapshots, key=lambda each: each.at, reverse=True)
    return Incidents(tuple(newest), unreachable)


def _sentence(error: Exception) -> str:
    if isinstance(error, PoolwatchError):
        return str(error)
    return f"the source failed: {type(error).__name__}: {error}"


def next_interval(interval: float, *, faster: bool) -> float:
    """Return the next shorter or longer interval, in seconds."""
    if faster:
        shorter = (each for each in _INTERVALS if each < interval)
        return max(shorter, default=_INTERVALS[0])
    longer = (each for each in _INTERVALS if each > interval)
    return min(longer, default=_INTERVALS[-1])


class Poller:
    """Reads the source once per interval; never makes two requests at a time."""

    def __init__(
        self, source: Source, interval: float, on_reading: Callable[[Reading], object]
    ) -> None:
        self.interval = interval
        self.paused = False
        self._source = source
        self._on_reading = on_reading
        self._wake = threading.Event()
        self._read_at_once = False
        self._stopped = False
        self._thread = threading.Thread(
            target=self._run, name="poolwatch-poll", daemon=True
        )

    def start(self) -> None:
        """Start the thread; it reads at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; the result of a pending request is dropped."""
        self._stopped = True
        self._wake.set()

    def read_now(self) -> None:
        """Read at once, also while paused."""
        self._read_at_once = True
        self._wake.set()

    def pace(
        self, *, interval: float | None = None, paused: bool | None = None
    ) -> None:
        """Change the interval, pause or resume; takes effect at once."""
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
            self._wait(started)

    def _wait(self, started: float) -> None:
        """Wait until the interval is over or read_now() is called."""
        while not (self._stopped or self._read_at_once):
            left = None if self.paused else started + self.interval - time.monotonic()
            if left is not None and left <= 0:
                break
            self._wake.wait(left)
            self._wake.clear()
        self._read_at_once = False


class IncidentReader:
    """Reads the incident snapshots on demand; never makes two requests at a time.

    Readings do not include them: fetching them at every refresh would burden the
    applications.
    """

    def __init__(
        self, source: Source, on_incidents: Callable[[Incidents], object]
    ) -> None:
        self._source = source
        self._on_incidents = on_incidents
        self._thread: threading.Thread | None = None

    def read(self) -> None:
        """Read, unless a request is pending: its result will do."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._run, name="poolwatch-incidents", daemon=True
            )
            self._thread.start()

    def _run(self) -> None:
        self._on_incidents(read_incidents(self._source))
