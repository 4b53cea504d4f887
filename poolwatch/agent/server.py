"""The agent's HTTP server: plain HTTP/1.1 on a Unix socket, pull only, read-only.

``GET /snapshot`` returns the public document. ``/view`` (the same plus the fields that
poolwatch's own viewers need), ``/frozen``, ``/servers`` and ``/trace`` are for those
viewers. One daemon thread serves all of them beside each other, see ``exchanges.py``. A
query to PostgreSQL may take seconds, so it runs in a separate thread and never delays a
snapshot.

The thread is stopped while the process forks: Python 3.12 warns about forks in
multi-threaded processes, and users would blame poolwatch.

``socketserver`` is not used: its loop watches the listening socket only. It could
neither be woken (for a fork, or an early tick) nor wait for several viewers.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from poolwatch.agent.exchanges import Exchange, Exchanges
from poolwatch.agent.listening import Listening
from poolwatch.errors import PoolwatchError
from poolwatch.protocol import sockets
from poolwatch.runtime.guard import log

if TYPE_CHECKING:
    from poolwatch.agent.http import Reply, SlowReply

Endpoint = Callable[[Mapping[str, str]], str]
"""Takes the query parameters of a request, returns JSON text."""

_HOUSEKEEPING_S = 1.0
_MAX_PAUSE_S = 5.0
"""Longest pause between two attempts to listen; the first one is a second."""
_MAX_SLOW = 4
"""Concurrent requests to slow endpoints."""


class Server:
    """Serves one socket in a daemon thread named ``poolwatch``."""

    def __init__(
        self,
        path: Path,
        *,
        quick: Mapping[str, Endpoint],
        slow: Mapping[str, Endpoint],
        idle: Callable[[], bool],
        tick: Callable[[], None] = lambda: None,
        unreachable: Callable[[Exception], None] = lambda _: None,
        period_s: float = 60.0,
    ) -> None:
        """Listen on ``path`` (mode 0600). If that fails, the thread tries it again.

        ``quick`` and ``slow`` are endpoints by path; each slow request runs in its own
        thread. ``idle`` is called after each slow request, and then about once a second
        until it returns False. ``tick`` is called every ``period_s`` seconds.
        ``unreachable`` is called once for several failures to listen in a row.
        """
        self.path = path
        self.pid = os.getpid()
        self._quick, self._slow, self._idle = dict(quick), dict(slow), idle
        self._tick, self._period_s = tick, period_s
        self._next_tick = time.monotonic() + period_s
        self._slow_slots = threading.BoundedSemaphore(_MAX_SLOW)
        self._slow_answers: deque[tuple[Exchange, bytes]] = deque()
        self._stopping = threading.Event()
        self._closed = self._has_failed = False
        self._thread: threading.Thread | None = None
        self._unreachable = unreachable
        self._pause_s = 0.0
        """Pause before the next attempt to listen; 0 after a success."""
        self._next_attempt = time.monotonic()
        self._listening: Listening | None = None
        self._exchanges = Exchanges(self._answer)
        self._lost: list[object] = []
        self._keep_listening()

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is not None:
            return
        self._stopping = threading.Event()  # one per thread: an old one stays stopped
        self._thread = threading.Thread(
            target=self._serve, args=(self._stopping,), name="poolwatch", daemon=True
        )
        self._thread.start()

    def hurry(self, within_s: float) -> None:
        """Run the next tick within ``within_s`` seconds."""
        soon = time.monotonic() + within_s
        if soon < self._next_tick:
            self._next_tick = soon
            self._wake()

    def pause(self) -> None:
        """Stop the thread; wait at most a second for its end."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping.set()
        self._wake()
        thread.join(1.0)

    def close(self) -> None:
        """Stop for good and remove the socket."""
        self._closed = True
        self.pause()
        self._close_sockets()
        with suppress(OSError):
            self.path.unlink()

    def abandon(self) -> None:
        """Close the sockets in a forked child; the socket file is the parent's."""
        self._thread = None
        self._close_sockets()

    def _close_sockets(self) -> None:
        if self._listening is not None:
            self._listening.close()
        self._exchanges.close()
        while self._slow_answers:
            self._slow_answers.popleft()[0].connection.close()

    def _wake(self) -> None:
        if self._listening is not None:
            self._listening.wake()

    def _serve(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                self._serve_once(stopping)
            except Exception as error:  # noqa: BLE001 - the application must go on
                if not stopping.is_set():
                    self._failed(error)
                    stopping.wait(_HOUSEKEEPING_S)

    def _failed(self, error: Exception) -> None:
        """Log the first failure, and go on: the watchdog is in this thread, too."""
        if not self._has_failed and not isinstance(error, MemoryError):
            self._has_failed = True
            log().warning("poolwatch failed to answer viewers", exc_info=True)

    def _serve_once(self, stopping: threading.Event) -> None:
        """Wait for events and handle them."""
        timeout = max(0.0, self._next_tick - time.monotonic())
        if self._idle() or self._exchanges:
            timeout = min(_HOUSEKEEPING_S, timeout)
        listening = self._listening
        if listening is None:
            stopping.wait(timeout)
        else:
            self._serve_viewers(listening, timeout, stopping)
        while self._slow_answers:
            exchange, answer = self._slow_answers.popleft()
            current = self._listening
            if current is not None and exchange.selector is current.selector:
                self._exchanges.send(exchange, answer)
            else:
                self._lost.append(exchange)
        now = time.monotonic()
        self._exchanges.expire(now)
        if now >= self._next_tick and not stopping.is_set():
            self._next_tick = now + self._period_s
            self._keep_listening()
            self._tick()

    def _serve_viewers(
        self, listening: Listening, timeout: float, stopping: threading.Event
    ) -> None:
        try:
            ready = listening.selector.select(timeout)
        except OSError:
            # The application has closed our descriptors. The numbers may be its own by
            # now, so nothing may use or close them: they are kept until the end.
            self._lost.append((listening, self._exchanges))
            self._listening, self._exchanges = None, Exchanges(self._answer)
            return
        for key, _ in ready:
            if stopping.is_set():
                return
            if isinstance(key.data, Exchange):
                self._exchanges.go_on(key.data)
            else:
                for connection in listening.accept(key.fileobj):
                    self._exchanges.begin(connection, listening.selector)

    def _keep_listening(self) -> None:
        """Listen if that has failed so far; make the socket again if it was removed."""
        if self._listening is not None and self._listening.mark():
            return
        now = time.monotonic()
        if now < self._next_attempt:
            return
        try:
            sockets.prepare(self.path.parent)
            if self._listening is None:
                self._listening = Listening(self.path)
            else:
                self._listening.listen_again()
        except (OSError, PoolwatchError) as error:
            if not self._pause_s:
                self._unreachable(error)
            self._pause_s = min(max(1.0, 2 * self._pause_s), _MAX_PAUSE_S)
            self._next_attempt = now + self._pause_s
            return
        self._pause_s = 0.0
        if self._closed:  # close() may have come before it was made
            self._listening.close()
            with suppress(OSError):
                self.path.unlink()

    def _answer(self, exchange: Exchange) -> bytes | None:
        from poolwatch.agent.http import answer

        found = answer(bytes(exchange.received), self._respond)
        if isinstance(found, bytes):
            return found
        threading.Thread(
            target=self._answer_slowly,
            args=(exchange, found),
            name="poolwatch",
            daemon=True,
        ).start()
        return None

    def _answer_slowly(self, exchange: Exchange, work: Callable[[], bytes]) -> None:
        """Do slow work in a thread of its own; the agent's thread sends the answer."""
        self._slow_answers.append((exchange, work()))
        if self._closed:
            self._close_sockets()
        self._wake()  # also because a connection to PostgreSQL may now be idle

    def _respond(self, target: str) -> Reply | SlowReply:
        """Answer one GET; for a slow endpoint, return the remaining work instead."""
        try:
            parts = urlsplit(target)
        except ValueError:
            return 400, _error("invalid path")
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        if parts.path in self._slow:
            return partial(self._respond_slowly, self._slow[parts.path], query)
        endpoint = self._quick.get(parts.path)
        if endpoint is None:
            available = ", ".join([*self._quick, *self._slow])
            return 404, _error(f"unknown path; available: {available}")
        return 200, endpoint(query)

    def _respond_slowly(self, endpoint: Endpoint, query: Mapping[str, str]) -> Reply:
        if not self._slow_slots.acquire(blocking=False):
            return 503, _error("busy with requests of other viewers")
        try:
            return 200, endpoint(query)
        finally:
            self._slow_slots.release()


def _error(why: str) -> str:
    return '{"error": "' + why.replace('"', "'") + '"}'
