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
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from poolwatch.guard import log

Answer = Callable[[Mapping[str, str]], str]
"""Takes the query parameters of a request, returns JSON text."""

_PATIENCE_S = 2.0
"""How long a client may take to send its request or take its answer."""
_HOUSEKEEPING_S = 1.0
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
    ) -> None:
        """Listen on ``path`` (mode 0600); raises OSError if that cannot be.

        ``idle`` is called from time to time after slow answers, until it says False.
        """
        self.path = path
        self.pid = os.getpid()
        self._quick, self._slow, self._idle = dict(quick), dict(slow), idle
        self._under_way = 0
        self._busy = threading.BoundedSemaphore(_MOST_SLOW)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            previous = os.umask(0o177)
            try:
                self._socket.bind(os.fspath(path))
            finally:
                os.umask(previous)
            path.chmod(0o600)
            self._socket.listen(16)
        except OSError:
            self._socket.close()
            raise

    def start(self) -> None:
        """Begin to answer."""
        self._stopping.clear()
        self._thread = threading.Thread(
            target=self._serve, name="poolwatch", daemon=True
        )
        self._thread.start()

    def pause(self) -> None:
        """Stop answering and wait until the thread is gone, a second at most."""
        thread = self._thread
        if thread is None:
            return
        self._stopping.set()
        with contextlib.suppress(OSError), _connected(self.path):
            pass  # wakes it up
        thread.join(1.0)
        self._thread = None

    def close(self) -> None:
        """Stop for good and remove the socket."""
        self.pause()
        self._socket.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def abandon(self) -> None:
        """In a forked child: the socket is the parent's."""
        self._thread = None
        self._socket.close()

    def _serve(self) -> None:
        from poolwatch.http import handle

        while not self._stopping.is_set():
            busy = self._idle() or self._under_way > 0
            self._socket.settimeout(_HOUSEKEEPING_S if busy else None)
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            try:
                if self._stopping.is_set() or not trusted(connection):
                    connection.close()
                    continue
                connection.settimeout(_PATIENCE_S)
                handle(connection, self._answer)
            except Exception:  # noqa: BLE001 - a strange client must not silence the agent
                log.debug("a request failed", exc_info=True)
                connection.close()

    def _answer(
        self, target: str, reply: Callable[[int, str], None]
    ) -> Callable[[], None] | None:
        """Answer one GET; returns the work that must not hold up the next request."""
        parts = urlsplit(target)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        if parts.path in self._slow:
            self._under_way += 1
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
            self._under_way -= 1
            reply(503, _error("busy with the questions of other viewers"))
            return
        try:
            reply(200, answer(query))
        finally:
            self._under_way -= 1
            self._busy.release()


def trusted(connection: socket.socket) -> bool:
    """Whether the other end is the same user, or root."""
    if sys.platform != "linux":
        return True  # the directory is 0700 and the socket 0600
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    uid = struct.unpack("3i", credentials)[1]
    return uid in (os.getuid(), 0)


@contextlib.contextmanager
def _connected(path: Path) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waker:
        waker.settimeout(0.2)
        waker.connect(os.fspath(path))
        yield waker


def _error(why: str) -> str:
    return '{"error": "' + why.replace('"', "'") + '"}'
