"""The requests of viewers, each read and answered beside the others.

No viewer is waited for: a slow or stopped one costs a place in a table until its
deadline, however it spreads its bytes. All of it happens in the agent's thread.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from poolwatch.runtime.guard import log

REQUEST_LINE = re.compile(rb"[!-~]+ [!-~]+ HTTP/[1-9]\d*\.\d+\r?\n")
MAX_HEAD = 65536
"""Limit of a request in bytes; the parser has the same limit for each line."""
_REQUEST_S = 2.0
"""Time for a viewer to send its request."""
_ANSWER_S = 5.0
"""Time for a viewer to read the answer."""
_MAX_OPEN = 64
"""Open connections; the oldest is closed."""
_MAX_UNREAD = 64 * 2**20
"""Bytes of answers that viewers have yet to read; the oldest answers are dropped."""


class Exchange:
    """One request and its answer, on one connection."""

    __slots__ = ("answer", "connection", "deadline", "received", "selector", "sent")

    def __init__(
        self, connection: socket.socket, selector: selectors.BaseSelector
    ) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.selector = selector
        self.deadline = time.monotonic() + _REQUEST_S
        self.received = bytearray()
        self.answer = b""
        self.sent = 0

    def receive(self) -> bool:
        """Read what has come; True once the request can be answered."""
        try:
            read = self.connection.recv(MAX_HEAD)
        except BlockingIOError:
            return False
        self.received += read
        line = self.received.find(b"\n") + 1
        return (
            not read
            or len(self.received) > MAX_HEAD
            or b"\n\r\n" in self.received
            or b"\n\n" in self.received
            or bool(line and not REQUEST_LINE.fullmatch(self.received, 0, line))
        )

    def send(self) -> bool:
        """Send what the connection takes; True once everything is sent."""
        view = memoryview(self.answer)
        with suppress(BlockingIOError):
            while self.sent < len(view):
                self.sent += self.connection.send(view[self.sent :])
        return self.sent == len(view)

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


class Exchanges:
    """The exchanges that wait for their viewer, oldest first."""

    def __init__(self, answer: Callable[[Exchange], bytes | None]) -> None:
        """``answer`` returns None if send() will be called with the answer later."""
        self._answer = answer
        self._waiting: dict[Exchange, None] = {}

    def __bool__(self) -> bool:
        """Whether any exchange waits for its viewer."""
        return bool(self._waiting)

    def begin(
        self, connection: socket.socket, selector: selectors.BaseSelector
    ) -> None:
        """Wait for the request on a new connection."""
        exchange = Exchange(connection, selector)
        try:
            self._wait(exchange, selectors.EVENT_READ)
        except OSError:  # the kernel has no memory for it
            exchange.close()
            return
        if len(self._waiting) > _MAX_OPEN:
            self._end(next(iter(self._waiting)))
        self.go_on(exchange)  # most have sent their request by now

    def go_on(self, exchange: Exchange) -> None:
        """Read or send what is possible now."""
        if exchange not in self._waiting:  # begin() may have ended it meanwhile
            return
        try:
            if exchange.answer:
                if exchange.send():
                    self._end(exchange)
            elif exchange.receive():
                self._leave(exchange)  # the thread of a fork may go on with the others
                answer = self._answer(exchange)
                if answer is not None:
                    self.send(exchange, answer)
        except Exception:  # noqa: BLE001 - a broken viewer must not stop the agent
            log().debug("a request failed", exc_info=True)
            self._end(exchange)

    def send(self, exchange: Exchange, answer: bytes) -> None:
        """Send the answer, and wait for the viewer if it does not take all of it."""
        exchange.answer = answer
        exchange.deadline = time.monotonic() + _ANSWER_S
        try:
            if exchange.send():
                exchange.close()
                return
            self._wait(exchange, selectors.EVENT_WRITE)
        except OSError:  # the viewer has closed it
            exchange.close()
            return
        unread = [each for each in self._waiting if each.answer]
        while len(unread) > 1 and sum(len(e.answer) for e in unread) > _MAX_UNREAD:
            self._end(unread.pop(0))

    def expire(self, now: float) -> None:
        """End the exchanges whose deadline is over."""
        for exchange in [each for each in self._waiting if each.deadline < now]:
            self._end(exchange)

    def close(self) -> None:
        """Close all connections; in a forked child they stay the parent's."""
        for exchange in list(self._waiting):
            exchange.connection.close()
        self._waiting.clear()

    def _wait(self, exchange: Exchange, event: int) -> None:
        exchange.selector.register(exchange.connection, event, exchange)
        self._waiting[exchange] = None

    def _leave(self, exchange: Exchange) -> None:
        if exchange in self._waiting:
            del self._waiting[exchange]
            exchange.selector.unregister(exchange.connection)

    def _end(self, exchange: Exchange) -> None:
        self._leave(exchange)
        exchange.close()
