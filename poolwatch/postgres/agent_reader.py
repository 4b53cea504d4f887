"""The server view from inside the application, over a connection outside its pool.

A connection is opened only at the request of a viewer, used and closed; it may linger
for some seconds if the viewer asks repeatedly.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from poolwatch.errors import ServerDownError
from poolwatch.postgres.connection import (
    Facts,
    MonitoringConnection,
    Wanted,
    open_connection,
)
from poolwatch.postgres.errors import as_failure, was_cancelled
from poolwatch.protocol.records import ServerReading

MAX_LINGER_S = 10.0
"""A connection stays open at most this long after its last use."""

_MAX_STUCK = 4
_inherited: list[object] = []
"""States from before a fork. Their connections are never closed: that would terminate
the parent's session, over the shared socket.
"""


class _State:
    """The idle connection of one process, and its reading in progress."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.reading = threading.Semaphore(1)
        self.reading_since: float | None = None
        self.idle: MonitoringConnection | None = None
        """The connection kept open for the next request."""
        self.close_at = 0.0


class AgentReader:
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
        """``connect`` opens a DBAPI connection, ``facts`` reads its backend pid.

        ``patience_s``: how long a request waits for the previous one. ``stuck_s``:
        after this time the previous reading is abandoned, since its connection may be
        dead.
        """
        self._stuck_s = stuck_s
        self._stuck: list[_State] = []
        self.connect = connect
        """May be replaced by another way to connect to the same server."""
        self.behind_pooler = False
        """A pooler is known to be in between: a reading only finds out whether it
        accepts a connection."""
        self._facts = facts
        self._clock = clock
        self._patience_s = patience_s
        self._state = _State()

    def read(
        self,
        pids: Collection[int],
        idle: Collection[int] = (),
        everyone: bool = False,
        *,
        linger: float = 0.0,
    ) -> ServerReading:
        """Read the server and the sessions that are wanted.

        Leaves the connection open for ``linger`` seconds (at most MAX_LINGER_S); the
        next call or close_idle() after that closes it. Raises only ServerViewError.
        """
        state = self._await_turn(self._own_state())
        try:
            wanted = Wanted(pids, idle, everyone)
            return self._read(state, wanted, min(linger, MAX_LINGER_S))
        except Exception as error:  # noqa: BLE001 - every driver raises its own
            raise as_failure(error) from None
        finally:
            state.reading_since = None
            state.reading.release()

    def _await_turn(self, state: _State) -> _State:
        """Wait for the reading in progress, unless it is stuck."""
        waited = time.monotonic() - (state.reading_since or time.monotonic())
        if waited > self._stuck_s:
            state = self._replace_stuck(state)
            waited = 0.0
        if not state.reading.acquire(timeout=max(0.0, self._patience_s - waited)):
            raise ServerDownError(
                "PostgreSQL has not answered the previous reading of this process yet"
            )
        state.reading_since = time.monotonic()
        return state

    def _replace_stuck(self, state: _State) -> _State:
        """Use a new state beside a stuck reading, up to a few times."""
        self._stuck = [each for each in self._stuck if each.reading_since is not None]
        if state is self._state and len(self._stuck) < _MAX_STUCK:
            self._stuck.append(state)
            self._state = _State()
        return self._state

    @property
    def is_connected(self) -> bool:
        """Whether a connection is open for the next request."""
        return self._own_state().idle is not None

    def close_idle(self, now: float | None = None) -> None:
        """Close the idle connection if its linger time is over. Cheap: called often."""
        state = self._own_state()
        if state.idle is not None:
            self._close(state, self._clock() if now is None else now)

    def close(self) -> None:
        """Close the connection now."""
        self._close(self._own_state(), float("inf"))

    def _own_state(self) -> _State:
        """The state of this process; a forked child gets a new one."""
        state = self._state
        if state.pid != os.getpid():
            _inherited.append(state)
            state = self._state = _State()
        return state

    def _read(self, state: _State, wanted: Wanted, linger: float) -> ServerReading:
        self._close(state, self._clock())
        connection = self._pop_idle(state)
        if connection is not None:
            try:
                return self._read_over(connection, state, wanted, linger)
            except Exception as error:  # the server may have closed it meanwhile
                if was_cancelled(error):
                    raise
        connection = open_connection(
            self.connect, self._facts, behind_pooler=self.behind_pooler
        )
        return self._read_over(connection, state, wanted, linger)

    def _read_over(
        self,
        connection: MonitoringConnection,
        state: _State,
        wanted: Wanted,
        linger: float,
    ) -> ServerReading:
        """Read over ``connection``, then let it linger; close it in all other cases."""
        try:
            reading = connection.read(*wanted)
        except BaseException:
            connection.close()
            raise
        if linger <= 0 or state is not self._state:
            connection.close()
            return reading
        with state.lock:
            state.idle, state.close_at = connection, self._clock() + linger
        return reading

    def _pop_idle(self, state: _State) -> MonitoringConnection | None:
        # removed during its use, so that no lock is held during driver calls
        with state.lock:
            connection, state.idle = state.idle, None
        return connection

    def _close(self, state: _State, now: float) -> None:
        with state.lock:
            if state.idle is None or now < state.close_at:
                return
            connection, state.idle = state.idle, None
        connection.close()
