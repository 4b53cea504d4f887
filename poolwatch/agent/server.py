"""The agent's HTTP server: plain HTTP/1.1 on a Unix socket, pull only, read-only.

``GET /snapshot`` returns the public document. ``/view`` (the same plus the fields that
poolwatch's own viewers need), ``/frozen``, ``/servers`` and ``/trace`` are for those
viewers. One daemon thread answers one request at a time. A query to PostgreSQL may take
seconds, so it runs in a separate thread and never delays a snapshot.

The thread is stopped while the process forks: Python 3.12 warns about forks in
multi-threaded processes, and users would blame poolwatch.

``socketserver`` is not used: its loop watches the listening socket only. It could
neither be woken (for a fork, or an early tick) nor wait for silent connections.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from poolwatch.errors import PoolwatchError
from poolwatch.protocol import sockets
from poolwatch.runtime.guard import log

Endpoint = Callable[[Mapping[str, str]], str]
"""Takes the query parameters of a request, returns JSON text."""

_CLIENT_TIMEOUT_S = 2.0
"""Time for a client to send its request, and again to read the response."""
_HOUSEKEEPING_S = 1.0
_MAX_SILENT = 64
"""Limit of open connections that have sent nothing yet; the oldest is closed."""
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
        period_s: float = 60.0,
    ) -> None:
        """Listen on ``path`` (mode 0600); raises OSError if that fails.

        ``quick`` and ``slow`` are endpoints by path; each slow request runs in its own
        thread. ``idle`` is called after each slow request, and then about once a second
        until it returns False. ``tick`` is called every ``period_s`` seconds.
        """
        self.path = path
        self.pid = os.getpid()
        self._quick, self._slow, self._idle = dict(quick), dict(slow), idle
        self._tick, self._period_s = tick, period_s
        self._next_tick = time.monotonic() + period_s
        self._slow_slots = threading.BoundedSemaphore(_MAX_SLOW)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._in_request: socket.socket | None = None
        """The connection whose request is being read or answered."""
        self._wake_receiver, self._wake_sender = socket.socketpair()
        for each in (self._wake_receiver, self._wake_sender):
            each.setblocking(False)
        self._remade = True
        """Whether the last attempt to make the socket again has succeeded."""
        try:
            self._listener = _listen(path)
        except OSError:
            self._wake_receiver.close()
            self._wake_sender.close()
            raise

    def start(self) -> None:
        """Start the thread."""
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
        connection = self._in_request
        if connection is not None:  # do not wait for a hanging viewer
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join(1.0)

    def close(self) -> None:
        """Stop for good and remove the socket."""
        self.pause()
        self._close_sockets()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def abandon(self) -> None:
        """Close the sockets in a forked child; the socket file is the parent's."""
        self._thread = None
        self._close_sockets()

    def _close_sockets(self) -> None:
        for each in (self._listener, self._wake_receiver, self._wake_sender):
            each.close()

    def _wake(self) -> None:
        """Interrupt the thread's select()."""
        with contextlib.suppress(OSError):  # the pipe is full: it is awake already
            self._wake_sender.send(b".")

    def _serve(self, stopping: threading.Event) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.register(self._wake_receiver, selectors.EVENT_READ)
                try:
                    while not stopping.is_set():
                        self._serve_once(selector, stopping)
                finally:
                    for key in _silent(selector):
                        _unregister(selector, key).close()
        except Exception:  # noqa: BLE001 - the application must go on
            log().warning("poolwatch no longer answers viewers", exc_info=True)

    def _serve_once(
        self, selector: selectors.BaseSelector, stopping: threading.Event
    ) -> None:
        """Wait for events and handle them.

        A connection is registered with its deadline, and is read only after it has sent
        something, so a silent client never blocks the thread.
        """
        timeout = max(0.0, self._next_tick - time.monotonic())
        if self._idle() or _silent(selector):
            timeout = min(_HOUSEKEEPING_S, timeout)
        for key, _ in selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept(selector)
            elif key.fileobj is self._wake_receiver:
                with contextlib.suppress(OSError):
                    self._wake_receiver.recv(4096)
            elif key in _silent(selector):  # _accept() may have closed it meanwhile
                self._handle(_unregister(selector, key), stopping)
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + self._period_s
            self._keep_socket(selector, stopping)
            self._tick()
        for key in [each for each in _silent(selector) if each.data < now]:
            _unregister(selector, key).close()

    def _keep_socket(
        self, selector: selectors.BaseSelector, stopping: threading.Event
    ) -> None:
        """Mark the socket file; make it again if it was removed.

        Its time tells a viewer that comes later since when the process is silent.
        """
        if _mark(self.path):
            return
        try:
            sockets.prepare(self.path.parent)
            listener = _listen(self.path)
        except (OSError, PoolwatchError) as error:
            if self._remade:
                log().warning("poolwatch cannot make its socket again: %s", error)
            self._remade = False
            return
        self._remade = True
        old, self._listener = self._listener, listener
        _unregister(selector, selector.get_key(old)).close()
        selector.register(listener, selectors.EVENT_READ)
        if stopping.is_set():  # close() may have removed it before it was made
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:  # the client has closed the connection
            return
        except OSError:  # out of file descriptors
            time.sleep(0.1)
            return
        if not trusted(connection):
            connection.close()
            return
        deadline = time.monotonic() + _CLIENT_TIMEOUT_S
        selector.register(connection, selectors.EVENT_READ, deadline)
        silent = _silent(selector)
        if len(silent) > _MAX_SILENT:
            _unregister(selector, silent[0]).close()

    def _handle(self, connection: socket.socket, stopping: threading.Event) -> None:
        from poolwatch.agent.http import handle

        self._in_request = connection
        try:
            if stopping.is_set():  # checked after the line above: see pause()
                connection.close()
                return
            connection.settimeout(_CLIENT_TIMEOUT_S)
            handle(connection, self._respond)
        except Exception:  # noqa: BLE001 - a broken client must not stop the agent
            log().debug("a request failed", exc_info=True)
            connection.close()
        finally:
            self._in_request = None

    def _respond(
        self, target: str, reply: Callable[[int, str], None]
    ) -> Callable[[], None] | None:
        """Answer one GET; for a slow endpoint, return the remaining work instead."""
        try:
            parts = urlsplit(target)
        except ValueError:
            reply(400, _error("invalid path"))
            return None
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        if parts.path in self._slow:
            return partial(self._respond_slowly, self._slow[parts.path], query, reply)
        endpoint = self._quick.get(parts.path)
        if endpoint is None:
            available = ", ".join([*self._quick, *self._slow])
            reply(404, _error(f"unknown path; available: {available}"))
        else:
            reply(200, endpoint(query))
        return None

    def _respond_slowly(
        self,
        endpoint: Endpoint,
        query: Mapping[str, str],
        reply: Callable[[int, str], None],
    ) -> None:
        if not self._slow_slots.acquire(blocking=False):
            reply(503, _error("busy with requests of other viewers"))
            return
        try:
            reply(200, endpoint(query))
        finally:
            self._slow_slots.release()
            self._wake()  # a connection to PostgreSQL may now be idle


def _mark(path: Path) -> bool:
    """Set the times of a file to now; False if it is not there any more."""
    try:
        os.utime(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # the file system is read-only by now
    return True


def _listen(path: Path) -> socket.socket:
    """Return a socket that listens on ``path``, mode 0600; raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A temporary name until it listens: viewers remove sockets that refuse them.
    temporary = path.with_suffix(".tmp")
    try:
        listener.bind(os.fspath(temporary))
        temporary.chmod(0o600)
        listener.listen(64)
        listener.setblocking(False)
        temporary.rename(path)
    except OSError:
        listener.close()
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return listener


def _silent(selector: selectors.BaseSelector) -> list[selectors.SelectorKey]:
    """The connections that have sent nothing yet, oldest first."""
    return [key for key in selector.get_map().values() if key.data is not None]


def _unregister(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> Any:
    """Unregister the connection of ``key`` and return it."""
    selector.unregister(key.fileobj)
    return key.fileobj


def trusted(connection: socket.socket) -> bool:
    """Whether the peer runs as the same user, or as root."""
    if sys.platform != "linux":
        return True  # the directory is 0700 and the socket 0600
    try:
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
    except OSError:
        return False
    uid = struct.unpack("3i", credentials)[1]
    return uid in (os.getuid(), 0)


def _error(why: str) -> str:
    return '{"error": "' + why.replace('"', "'") + '"}'
