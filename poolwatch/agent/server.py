"""The agent's ear: plain HTTP/1.1 on a Unix socket, pull only, read-only.

``GET /snapshot`` is the public document. ``/view`` (the same with what poolwatch's own
viewers need to join it with a server) and ``/servers`` are for them. One daemon thread
answers one request after the other; a question to PostgreSQL, which may take seconds,
is answered by a thread of its own, so that it never delays a snapshot.

The thread is not there while the process forks: Python 3.12 warns of forks with other
threads running, and users would blame us.
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

from poolwatch.runtime.guard import log

Answer = Callable[[Mapping[str, str]], str]
"""Takes the query parameters of a request, returns JSON text."""

_PATIENCE_S = 2.0
"""How long a client may take to send its request or take its answer."""
_HOUSEKEEPING_S = 1.0
_MOST_SILENT = 64
"""Connections that may be open without a word; the oldest gives way."""
_MOST_SLOW = 4
"""Questions to PostgreSQL that may be under way at once."""


class Server:
    """Answers on one socket, in a daemon thread named ``poolwatch``."""

    def __init__(
        self,
        path: Path,
        *,
        quick: Mapping[str, Answer],
        slow: Mapping[str, Answer],
        idle: Callable[[], bool],
        tick: Callable[[], None] = lambda: None,
        period_s: float = 60.0,
    ) -> None:
        """Listen on ``path`` (mode 0600); raises OSError if that cannot be.

        ``idle`` is called after each slow answer, and then from time to time until it
        says False.
        """
        self.path = path
        self.pid = os.getpid()
        self._quick, self._slow, self._idle = dict(quick), dict(slow), idle
        self._tick, self._period_s = tick, period_s
        self._next_tick = time.monotonic() + period_s
        self._busy = threading.BoundedSemaphore(_MOST_SLOW)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._handled: socket.socket | None = None
        """The connection whose request is being read or answered."""
        self._waker, self._alarm = socket.socketpair()
        for each in (self._waker, self._alarm):
            each.setblocking(False)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Under another name until it listens: a viewer removes a socket that refuses.
        unborn = path.with_suffix(".born")
        try:
            self._socket.bind(os.fspath(unborn))
            unborn.chmod(0o600)
            self._socket.listen(64)
            self._socket.setblocking(False)
            unborn.rename(path)
        except OSError:
            self._close_sockets()
            with contextlib.suppress(OSError):
                unborn.unlink()
            raise

    def start(self) -> None:
        """Begin to answer."""
        self._stopping = threading.Event()  # one a thread: an old one stays stopped
        self._thread = threading.Thread(
            target=self._serve, args=(self._stopping,), name="poolwatch", daemon=True
        )
        self._thread.start()

    def hurry(self, within_s: float) -> None:
        """Let the next tick come within so many seconds."""
        soon = time.monotonic() + within_s
        if soon < self._next_tick:
            self._next_tick = soon
            self._wake()

    def pause(self) -> None:
        """Stop answering and wait until the thread is gone, a second at most."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping.set()
        self._wake()
        handled = self._handled
        if handled is not None:  # do not wait for a viewer that hangs
            with contextlib.suppress(OSError):
                handled.shutdown(socket.SHUT_RDWR)
        thread.join(1.0)

    def close(self) -> None:
        """Stop for good and remove the socket."""
        self.pause()
        self._close_sockets()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def abandon(self) -> None:
        """In a forked child: the socket is the parent's."""
        self._thread = None
        self._close_sockets()

    def _close_sockets(self) -> None:
        for each in (self._socket, self._waker, self._alarm):
            each.close()

    def _wake(self) -> None:
        """Make the thread look around: there may be something new to do."""
        with contextlib.suppress(OSError):  # it has been woken often enough
            self._alarm.send(b".")

    def _serve(self, stopping: threading.Event) -> None:
        silent: dict[socket.socket, float] = {}
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._socket, selectors.EVENT_READ)
                selector.register(self._waker, selectors.EVENT_READ)
                while not stopping.is_set():
                    self._round(selector, silent, stopping)
        except Exception:  # noqa: BLE001 - the application goes on without a listener
            log().warning("poolwatch no longer answers viewers", exc_info=True)
        finally:
            for connection in silent:
                connection.close()

    def _round(
        self,
        selector: selectors.BaseSelector,
        silent: dict[socket.socket, float],
        stopping: threading.Event,
    ) -> None:
        """Wait for something to happen and attend to it.

        ``silent`` are the connections that have not begun to speak, and until when they
        may keep silent. Nobody waits for them: they are read when there is something.
        """
        busy = self._idle() or silent
        left = max(0.0, self._next_tick - time.monotonic())
        for key, _ in selector.select(min(_HOUSEKEEPING_S, left) if busy else left):
            if key.fileobj is self._socket:
                self._accept(selector, silent)
            elif key.fileobj is self._waker:
                with contextlib.suppress(OSError):
                    self._waker.recv(4096)
            elif key.fileobj in silent:
                connection: Any = key.fileobj
                selector.unregister(connection)
                del silent[connection]
                self._handle(connection, stopping)
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + self._period_s
            self._tick()
        for connection in [c for c, until in silent.items() if until < now]:
            self._dismiss(connection, selector, silent)

    def _accept(
        self, selector: selectors.BaseSelector, silent: dict[socket.socket, float]
    ) -> None:
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:  # it has gone again
            return
        except OSError:  # the process has no file descriptor left
            time.sleep(0.1)
            return
        if not trusted(connection):
            connection.close()
            return
        silent[connection] = time.monotonic() + _PATIENCE_S
        selector.register(connection, selectors.EVENT_READ)
        if len(silent) > _MOST_SILENT:
            self._dismiss(next(iter(silent)), selector, silent)

    @staticmethod
    def _dismiss(
        connection: socket.socket,
        selector: selectors.BaseSelector,
        silent: dict[socket.socket, float],
    ) -> None:
        selector.unregister(connection)
        del silent[connection]
        connection.close()

    def _handle(self, connection: socket.socket, stopping: threading.Event) -> None:
        from poolwatch.agent.http import handle

        self._handled = connection
        try:
            if stopping.is_set():  # looked at after the line above: see pause()
                connection.close()
                return
            connection.settimeout(_PATIENCE_S)
            handle(connection, self._answer)
        except Exception:  # noqa: BLE001 - a strange client must not silence the agent
            log().debug("a request failed", exc_info=True)
            connection.close()
        finally:
            self._handled = None

    def _answer(
        self, target: str, reply: Callable[[int, str], None]
    ) -> Callable[[], None] | None:
        """Answer one GET; returns the work that must not hold up the next request."""
        try:
            parts = urlsplit(target)
        except ValueError:
            reply(400, _error("that is no path"))
            return None
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        if parts.path in self._slow:
            return partial(self._answer_slowly, self._slow[parts.path], query, reply)
        answer = self._quick.get(parts.path)
        if answer is None:
            known = ", ".join([*self._quick, *self._slow])
            reply(404, _error(f"there is {known}"))
        else:
            reply(200, answer(query))
        return None

    def _answer_slowly(
        self,
        answer: Answer,
        query: Mapping[str, str],
        reply: Callable[[int, str], None],
    ) -> None:
        if not self._busy.acquire(blocking=False):
            reply(503, _error("busy with the questions of other viewers"))
            return
        try:
            reply(200, answer(query))
        finally:
            self._busy.release()
            self._wake()  # the answer may have left a connection to be closed later


def trusted(connection: socket.socket) -> bool:
    """Whether the other end is the same user, or root."""
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
