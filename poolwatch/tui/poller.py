"""Ask the source on a thread of its own, so that one which hangs costs no key press.

Not a Textual worker: those share one small executor, and a blocked one starves the
rest. A daemon, so that quitting never waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from poolwatch.errors import NoProcessError, PoolwatchError
from poolwatch.model import Source
from poolwatch.tui.reading import Reading

FASTEST, SLOWEST = 0.25, 60.0
_STEPS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


def stepped(interval: float, *, faster: bool) -> float:
    """Give the next interval of the usual row."""
    if faster:
        return max((step for step in _STEPS if step < interval), default=FASTEST)
    return min((step for step in _STEPS if step > interval), default=SLOWEST)


def look(source: Source) -> Reading:
    """Ask once; whatever goes wrong becomes a sentence."""
    asked_at = time.monotonic()
    try:
        snapshot = source.snapshot()
    except NoProcessError as error:
        return Reading(asked_at, None, str(error), no_process=True)
    except PoolwatchError as error:
        return Reading(asked_at, None, str(error))
    except Exception as error:  # noqa: BLE001 - a source that breaks must not end the view
        why = f"the source failed: {type(error).__name__}: {error}"
        return Reading(asked_at, None, why)
    return Reading(asked_at, snapshot)


class Poller:
    """Reads, tells, rests; never two questions at a time."""

    def __init__(
        self, source: Source, interval: float, tell: Callable[[Reading], object]
    ) -> None:
        self.interval = interval
        self.paused = False
        self._source = source
        self._tell = tell
        self._wake = threading.Event()
        self._once = False
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

    def now(self) -> None:
        """Ask at once, also while paused."""
        self._once = True
        self._wake.set()

    def pace(
        self, *, interval: float | None = None, paused: bool | None = None
    ) -> None:
        """Change the rhythm; takes effect at once."""
        if interval is not None:
            self.interval = interval
        if paused is not None:
            self.paused = paused
        self._wake.set()

    def _run(self) -> None:
        while not self._stopped:
            started = time.monotonic()
            reading = look(self._source)
            if not self._stopped:
                self._tell(reading)
            self._rest(started)

    def _rest(self, started: float) -> None:
        """Wait for the next tick, or until somebody wants it sooner."""
        while not (self._stopped or self._once):
            left = None if self.paused else started + self.interval - time.monotonic()
            if left is not None and left <= 0:
                break
            self._wake.wait(left)
            self._wake.clear()
        self._once = False
