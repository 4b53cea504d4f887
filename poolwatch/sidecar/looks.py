"""Looks at the application's processes at fixed intervals, one at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol

from poolwatch.diagnosis.incidents import Changes, Incidents
from poolwatch.errors import NoProcessError, PoolwatchError
from poolwatch.model import Incident, Snapshot, Source

LAST_LOOK_S = 0.25
"""Seconds for the last look, once the sidecar has been told to end."""
CLOSE_S = 0.6
"""Seconds for all sinks to write what is left."""
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

    def __init__(
        self,
        source: Source,
        sinks: Sequence[Sink],
        every_s: float,
        *,
        host: str | None = None,
        lasting: Iterable[Incident] = (),
    ) -> None:
        """``host``: replaces the host name of the processes.

        ``lasting``: incidents that went on when an earlier sidecar ended.
        """
        self._source = source
        self._sinks = sinks
        self._every_s = every_s
        self._host = host
        self._incidents = Incidents(lasting)
        self._inbox: SimpleQueue[Look | None] = SimpleQueue()
        """Finished looks; None is the order to end. Its put() may be called anywhere,
        also by a signal handler that interrupts get()."""
        self._failing: set[type] = set()
        self._error: str | None = None

    def run(self) -> None:
        """Look until stop() is called, then look a last time and close the sinks.

        A look that hangs delays the next one, but not the end.
        """
        due = time.monotonic()
        while True:
            self._begin()
            look = self._inbox.get()
            if look is None:
                break
            self._take(look)
            now = time.monotonic()
            due = max(due + self._every_s, now)  # a slow look delays the next one
            if self._told_to_end(due - now):
                self._begin()
                break
        self._take_last()
        self._close()

    def stop(self) -> None:
        """Have run() return; may be called by a signal handler."""
        self._inbox.put(None)

    def _begin(self) -> None:
        """Look in a thread of its own: run() can then end without it."""

        def work() -> None:
            self._inbox.put(look_at(self._source, self._host))

        thread = threading.Thread(target=work, name="poolwatch-look", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            missed = "no thread can be started"
            self._inbox.put(Look(time.time(), 0.0, Snapshot(), missed))

    def _told_to_end(self, within_s: float) -> bool:
        """Wait for the next look, unless the order to end comes first."""
        try:
            return self._inbox.get(timeout=within_s) is None
        except Empty:
            return False

    def _take_last(self) -> None:
        """Take the look that is under way, if it comes in time."""
        deadline = time.monotonic() + LAST_LOOK_S
        look = None
        with suppress(Empty):
            while look is None:  # a second order to end changes nothing
                look = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
        if look is not None:
            self._take(look)

    def _take(self, look: Look) -> None:
        if look.error is None:
            with self._failing_once(Incidents):
                changes = self._incidents.update(look.snapshot, look.at)
                look = look._replace(changes=changes)
        elif look.error != self._error:  # once, until it changes
            _log.warning("a look failed: %s", look.error)
        self._error = look.error
        for sink in self._sinks:
            with self._failing_once(type(sink)):
                sink.take(look)

    @contextmanager
    def _failing_once(self, kind: type) -> Iterator[None]:
        """Looks go on without what fails; it is logged once, until it works again."""
        try:
            yield
        except Exception:  # noqa: BLE001
            if kind not in self._failing:
                _log.exception("%s could not take a look", kind.__name__)
            self._failing.add(kind)
        else:
            self._failing.discard(kind)

    def _close(self) -> None:
        """Close all sinks at the same time: one that hangs does not cost the others."""
        threads = [
            threading.Thread(target=_close, args=(sink,), daemon=True)
            for sink in self._sinks
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + CLOSE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def look_at(source: Source, host: str | None = None) -> Look:
    """Look once; ``host`` replaces the host name of the processes."""
    begun = time.monotonic()
    snapshot, error = Snapshot(), None
    try:
        snapshot = source.snapshot()
    except NoProcessError:
        pass
    except PoolwatchError as failure:
        error = str(failure)
    except Exception as failure:  # noqa: BLE001 - the next look may succeed
        _log.exception("a look failed")
        error = f"{type(failure).__name__} in poolwatch itself"
    if host is not None:
        processes = tuple([replace(p, host=host) for p in snapshot.processes])
        snapshot = replace(snapshot, processes=processes)
    return Look(time.time(), time.monotonic() - begun, snapshot, error)


def _close(sink: Sink) -> None:
    try:
        sink.close()
    except Exception:  # noqa: BLE001 - the others are closed all the same
        _log.exception("%s could not be closed", type(sink).__name__)
