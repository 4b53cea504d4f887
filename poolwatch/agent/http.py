"""One HTTP request on one connection, parsed by the standard library.

A separate module because importing ``http.server`` takes 15 ms: only the agent's
thread does it.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from poolwatch.version import VERSION

_REQUEST_LINE = re.compile(rb"[!-~]+ [!-~]+ HTTP/[1-9]\d*\.\d+\r?\n")

SlowWork = Callable[[], None]
Respond = Callable[[str, Callable[[int, str], None]], SlowWork | None]
"""Takes a request's target and a function that sends status and body."""


def handle(connection: socket.socket, respond: Respond) -> None:
    """Read one request, answer it, close the connection.

    Slow work that ``respond`` returns is done in another thread, which closes the
    connection.
    """
    handler = _Handler(connection, respond)
    if handler.slow_work is None:
        _close(connection)
    else:
        threading.Thread(
            target=handler.run_slow_work, name="poolwatch", daemon=True
        ).start()


class _Handler(BaseHTTPRequestHandler):
    server_version = f"poolwatch/{VERSION}"
    sys_version = ""
    protocol_version = request_version = default_request_version = "HTTP/1.1"
    command = requestline = ""
    raw_requestline = b""

    def __init__(self, connection: socket.socket, respond: Respond) -> None:
        self.slow_work: SlowWork | None = None
        self._respond = respond
        self._connection = connection
        super().__init__(connection, "unix", None)  # type: ignore[arg-type]

    def handle(self) -> None:
        """Handle one request only: viewers open a connection for each."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.handle_one_request()

    def parse_request(self) -> bool:
        """Reject other requests than HTTP/1.x: the library answers them as HTTP/0.9."""
        if _REQUEST_LINE.fullmatch(self.raw_requestline):
            return super().parse_request()
        self.send_error(400, "not an HTTP/1.1 request line")
        return False

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Send errors as JSON, like every other response."""
        why = message or explain or self.responses[code][0]
        self.reply(code, json.dumps({"error": why[:200]}))

    def do_GET(self) -> None:
        """Answer the request, or store its slow work."""
        try:
            self.slow_work = self._respond(self.path, self.reply)
        except Exception as error:
            self.reply(500, json.dumps({"error": type(error).__name__}))
            raise

    def reply(self, status: int, body: str) -> None:
        """Send a JSON body."""
        data = body.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def finish(self) -> None:
        """Close the files, unless slow work still needs them."""
        if self.slow_work is None:
            self._finish()

    def run_slow_work(self) -> None:
        """Send the response of a slow endpoint and close the connection."""
        with contextlib.suppress(Exception):
            assert self.slow_work is not None  # handle() starts this thread only then
            self.slow_work()
        self._finish()
        _close(self._connection)

    def _finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *args: Any) -> None:
        """Log nothing: stderr belongs to the application."""


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
