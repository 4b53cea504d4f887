"""One HTTP request, parsed by the standard library.

A separate module because importing ``http.server`` takes 15 ms: only the agent's
thread does it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Any

from poolwatch.agent.exchanges import MAX_HEAD, REQUEST_LINE
from poolwatch.runtime.guard import log
from poolwatch.version import VERSION

Reply = tuple[int, str]
"""Status and JSON body."""
SlowReply = Callable[[], Reply]
Respond = Callable[[str], Reply | SlowReply]
"""Takes a request's target."""


def answer(received: bytes, respond: Respond) -> bytes | Callable[[], bytes]:
    """Answer one request; for a slow reply, return the function that makes it.

    The answer is empty if nothing was received.
    """
    handler = _Handler(received, ("", 0), None, respond)
    return handler.response() if handler.slow is None else handler.respond_slowly


class _Handler(BaseHTTPRequestHandler):
    """Reads the bytes that were received, and keeps those that are to be sent."""

    server_version = f"poolwatch/{VERSION}"
    sys_version = ""
    protocol_version = request_version = default_request_version = "HTTP/1.1"
    command = requestline = ""
    raw_requestline = b""

    def __init__(
        self, received: bytes, address: Any, server: Any, respond: Respond
    ) -> None:
        self.slow: SlowReply | None = None
        self._received = received
        self._respond = respond
        super().__init__(received, address, server)  # type: ignore[arg-type]

    def setup(self) -> None:
        """Do without a socket, as the library does for datagrams."""
        self.rfile, self.wfile = BytesIO(self._received), BytesIO()

    def handle(self) -> None:
        """Handle one request only: viewers open a connection for each."""
        self.close_connection = True
        self.handle_one_request()

    def finish(self) -> None:
        """Leave the files open: response() reads one, and slow work writes it."""

    def response(self) -> bytes:
        """Return the bytes to send."""
        return self.wfile.getvalue()  # type: ignore[attr-defined,no-any-return]

    def respond_slowly(self) -> bytes:
        """Do the slow work and return the bytes to send."""
        assert self.slow is not None  # answer() returns this method only then
        self._reply_with(self.slow)
        return self.response()

    def parse_request(self) -> bool:
        """Reject other requests than HTTP/1.x: the library answers them as HTTP/0.9."""
        if not REQUEST_LINE.fullmatch(self.raw_requestline):
            self.send_error(400, "not an HTTP/1.1 request line")
            return False
        if len(self._received) > MAX_HEAD:
            self.send_error(431)
            return False
        return super().parse_request()

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Send errors as JSON, like every other response."""
        why = message or explain or self.responses[code][0]
        self.reply(code, json.dumps({"error": why[:200]}))

    def do_GET(self) -> None:
        """Answer the request, or store its slow work."""
        self._reply_with(lambda: self._respond(self.path))

    def _reply_with(self, respond: Callable[[], Reply | SlowReply]) -> None:
        try:
            found = respond()
        except Exception as error:  # noqa: BLE001 - it may run the application's code
            log().debug("a request failed", exc_info=True)
            found = 500, json.dumps({"error": type(error).__name__})
        if callable(found):
            self.slow = found
        else:
            self.reply(*found)

    def reply(self, status: int, body: str) -> None:
        """Write a JSON body."""
        data = body.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Log nothing: stderr belongs to the application."""
