"""The server view from inside the application, on request and outside its pool.

Nothing happens unless a viewer asks. Then one connection is opened, used and closed;
a viewer that asks every second may have it kept for a few seconds in between.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from poolwatch.errors import ServerDownError
from poolwatch.postgres.connection import Facts, Line, open_line
from poolwatch.postgres.errors import as_failure, took_too_long
from poolwatch.protocol.readings import ServerReading

MOST_LINGER_S = 10.0
"""A connection is kept at most this long after its last use."""

_MOST_GIVEN_UP = 4
_inherited: list[object] = []
"""Connections made before a fork. Kept, unused, to the end of the process: closing one
would say good-bye in the name of the parent, over the socket that both have."""


class _Kept:
    """The state of one process: what is kept, and whether somebody is reading."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.reading = threading.Semaphore(1)
        self.began: float | None = None
        """When the reading that is under way began."""
        self.line: Line | None = None
        self.until = 0.0


class InProcessReader:
    """Reads one server over a short-lived connection of its own. Thread-safe."""

    def __init__(
        self,
        connect: Callable[[], Any],
        facts: Facts,
        *,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = 3.0,
        stuck_s: float = 10.0,
    ) -> None:
        """``connect`` opens a DBAPI connection, ``facts`` knows its backend pid.

        ``patience_s``: how long a request waits for one that is being served.
        ``stuck_s``: when it is given up, since its connection may be dead.
        """
        self._stuck_s = stuck_s
        self._given_up: list[_Kept] = []
        self.connect = connect
        """May be replaced by another way to the same server."""
        self._facts = facts
        self._clock = clock
        self._patience_s = patience_s
        self._kept = _Kept()

    def read(self, pids: Collection[int], *, linger: float = 0.0) -> ServerReading:
        """Read the server and the sessions ``pids``.

        Keeps the connection open for ``linger`` seconds (at most MOST_LINGER_S), until
        the next call or close_idle() after that. Raises nothing but ServerViewError.
        """
        kept = self._await_turn(self._own())
        try:
            return self._read(kept, pids, min(linger, MOST_LINGER_S))
        except Exception as error:  # noqa: BLE001 - every driver raises its own
            raise as_failure(error) from None
        finally:
            kept.began = None
            kept.reading.release()

    def _await_turn(self, kept: _Kept) -> _Kept:
        """Wait for the reading under way; not at all for one that hangs."""
        waited = time.monotonic() - (kept.began or time.monotonic())
        if waited > self._stuck_s:
            kept = self._give_up(kept)
            waited = 0.0
        if not kept.reading.acquire(timeout=max(0.0, self._patience_s - waited)):
            raise ServerDownError(
                "the reading before this one has not come back from PostgreSQL yet"
            )
        kept.began = time.monotonic()
        return kept

    def _give_up(self, kept: _Kept) -> _Kept:
        """Begin anew beside a reading that hangs; a few may hang at once."""
        self._given_up = [each for each in self._given_up if each.began is not None]
        if kept is self._kept and len(self._given_up) < _MOST_GIVEN_UP:
            self._given_up.append(kept)
            self._kept = _Kept()
        return self._kept

    @property
    def keeps(self) -> bool:
        """Whether a connection is kept for the next request."""
        return self._own().line is not None

    def close_idle(self, now: float | None = None) -> None:
        """Close the kept connection if its time is over; cheap, to be called often."""
        kept = self._own()
        if kept.line is not None:
            self._close(kept, self._clock() if now is None else now)

    def close(self) -> None:
        """Close the kept connection now."""
        self._close(self._own(), float("inf"))

    def _own(self) -> _Kept:
        """The state of this process; a fork's child starts with a new one."""
        kept = self._kept
        if kept.pid != os.getpid():
            _inherited.append(kept)
            kept = self._kept = _Kept()
        return kept

    def _read(self, kept: _Kept, pids: Collection[int], linger: float) -> ServerReading:
        self._close(kept, self._clock())
        line = self._take(kept)
        if line is not None:
            try:
                return self._finish(kept, line, pids, linger)
            except Exception as error:  # it may have ended while it was kept
                if took_too_long(error):
                    raise
        line = open_line(self.connect, self._facts)
        return self._finish(kept, line, pids, linger)

    def _finish(
        self, kept: _Kept, line: Line, pids: Collection[int], linger: float
    ) -> ServerReading:
        """Read over ``line``, then keep or close it; closed in every other case."""
        try:
            reading = line.read(pids)
        except BaseException:
            line.close()
            raise
        if linger <= 0 or kept is not self._kept:
            line.close()
            return reading
        with kept.lock:
            kept.line, kept.until = line, self._clock() + linger
        return reading

    def _take(self, kept: _Kept) -> Line | None:
        # taken out for its use: no lock of ours is held while a driver works
        with kept.lock:
            line, kept.line = kept.line, None
        return line

    def _close(self, kept: _Kept, now: float) -> None:
        with kept.lock:
            if kept.line is None or now < kept.until:
                return
            line, kept.line = kept.line, None
        line.close()
