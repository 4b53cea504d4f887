"""One HTTP request on one connection, parsed by the standard library.

A module of its own because ``http.server`` takes 15 ms to import: only the agent's
thread loads it.
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

Later = Callable[[], None]
Answer = Callable[[str, Callable[[int, str], None]], Later | None]


def handle(connection: socket.socket, answer: Answer) -> None:
    """Read one request, answer it, close the connection.

    If ``answer`` returns work to be done later, a thread does it and closes then.
    """
    handler = _Handler(connection, answer)
    if handler.later is None:
        _close(connection)
    else:
        threading.Thread(
            target=handler.finish_later, name="poolwatch", daemon=True
        ).start()


class _Handler(BaseHTTPRequestHandler):
    server_version = f"poolwatch/{VERSION}"
    sys_version = ""
    protocol_version = request_version = default_request_version = "HTTP/1.1"
    command = requestline = ""
    raw_requestline = b""

    def __init__(self, connection: socket.socket, answer: Answer) -> None:
        self.later: Later | None = None
        self._answer = answer
        self._connection = connection
        super().__init__(connection, "unix", None)  # type: ignore[arg-type]

    def handle(self) -> None:
        """Take one request only: a viewer connects anew for each."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.handle_one_request()

    def parse_request(self) -> bool:
        """Refuse what is no HTTP/1.1: the library would answer it as HTTP/0.9."""
        if _REQUEST_LINE.fullmatch(self.raw_requestline):
            return super().parse_request()
        self.send_error(400, "that is no request line of HTTP/1.1")
        return False

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Answer with a status line and JSON, like every other answer."""
        why = message or explain or self.responses[code][0]
        self.reply(code, json.dumps({"error": why[:200]}))

    def do_GET(self) -> None:
        """Answer, or leave it for later."""
        try:
            self.later = self._answer(self.path, self.reply)
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
        """Keep the files open if the answer is still to come."""
        if self.later is None:
            self._finish()

    def finish_later(self) -> None:
        """Give the answer that took its time."""
        with contextlib.suppress(Exception):
            assert self.later is not None  # or nobody would call this
            self.later()
        self._finish()
        _close(self._connection)

    def _finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *args: Any) -> None:
        """Say nothing: stderr is the application's."""


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
