"""Looks at the application's processes at fixed intervals, one at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from poolwatch.errors import NoProcessError, PoolwatchError
from poolwatch.model import Snapshot, Source
from poolwatch.sidecar.incidents import Changes

_log = logging.getLogger("poolwatch.sidecar")


class Look(NamedTuple):
    """The outcome of one look."""

    at: float
    """``time.time()`` at its end."""
    took_s: float
    snapshot: Snapshot
    """Empty if there is no process, or the look failed."""
    error: str | None = None
    """One sentence if the look failed; that there is no process is no failure."""
    changes: Changes = Changes()
    """The incidents that it has begun and ended."""


class Sink(Protocol):
    """Takes every look: metrics, history, push."""

    def take(self, look: Look) -> None:
        """Take one look; must return within milliseconds, and may raise."""

    def close(self) -> None:
        """Write what is left, within a second."""


class Looks:
    """The loop of the sidecar."""

    def __init__(self, source: Source, sinks: Sequence[Sink], every_s: float) -> None:
        self._source = source
        self._sinks = sinks
        self._every_s = every_s
        self._stop = threading.Event()
        self._failing: set[type] = set()

    def run(self) -> None:
        """Look until stop() is called, then look a last time and close the sinks."""
        due = time.monotonic()
        while not self._stop.is_set():
            self._look()
            now = time.monotonic()
            due = max(due + self._every_s, now)  # a slow look delays the next one
            self._stop.wait(due - now)
        self._look()
        for sink in self._sinks:
            try:
                sink.close()
            except Exception:  # noqa: BLE001 - the others are closed all the same
                _log.exception("%s could not be closed", type(sink).__name__)

    def stop(self) -> None:
        """Have run() return; may be called by a signal handler."""
        self._stop.set()

    def _look(self) -> None:
        look = look_at(self._source)
        for sink in self._sinks:
            kind = type(sink)
            try:
                sink.take(look)
            except Exception:  # noqa: BLE001 - looks go on without it
                if kind not in self._failing:  # once, until it works again
                    _log.exception("%s could not take a look", kind.__name__)
                self._failing.add(kind)
            else:
                self._failing.discard(kind)


def look_at(source: Source) -> Look:
    """Look once."""
    begun = time.monotonic()
    snapshot, error = Snapshot(), None
    try:
        snapshot = source.snapshot()
    except NoProcessError:
        pass
    except PoolwatchError as failure:
        error = str(failure)
    return Look(time.time(), time.monotonic() - begun, snapshot, error)
