"""Webhook: one POST when an incident begins, and one when it ends."""

from __future__ import annotations

import json
import logging
import threading
from http.client import HTTPException
from queue import Full, Queue
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from poolwatch.client.calls import Calls
from poolwatch.errors import UsageError
from poolwatch.model import Incident
from poolwatch.protocol import document
from poolwatch.sidecar.looks import Look, Sink
from poolwatch.version import VERSION

TRIES = 3
TRY_S = 5.0
"""Seconds that one try may take."""
_PAUSE_S = 1.0
_MAX_WAITING = 256
"""POSTs that wait for their turn; later ones are dropped."""
_HEADERS = {
    "Content-Type": "application/json",
    "User-Agent": f"poolwatch/{VERSION}",
}
_NOT_SENT = "an incident was not sent to the webhook: %s"
_log = logging.getLogger("poolwatch.sidecar")


class Webhook(Sink):
    """Sends POSTs in a thread of its own. The URL is a secret: it is never logged."""

    def __init__(self, url: str, *, try_s: float = TRY_S) -> None:
        """Raises UsageError if nothing can be sent there."""
        self._url = _checked(url)
        self._try_s = try_s
        self._opener = build_opener(_NoRedirects)
        self._waiting: Queue[bytes | None] = Queue(_MAX_WAITING)
        self._closing = threading.Event()
        self._dropping = False
        self._thread = threading.Thread(
            target=self._work, name="poolwatch-webhook", daemon=True
        )
        self._thread.start()

    def take(self, look: Look) -> None:
        """Queue a POST for each incident that the look has begun or ended."""
        for began in look.changes.began:
            self._put("began", began.incident)
        for incident in look.changes.ended:
            self._put("ended", incident)

    def close(self) -> None:
        """Send what is left, without second tries; for half a second at most."""
        self._closing.set()
        try:
            self._waiting.put_nowait(None)
        except Full:
            return
        self._thread.join(0.5)

    def _put(self, event: Literal["began", "ended"], incident: Incident) -> None:
        body = {"event": event, **document.to_object(incident)}
        try:
            self._waiting.put_nowait(json.dumps(body).encode())
        except Full:
            if not self._dropping:
                _log.warning(
                    "the webhook is slower than the incidents: some are not sent"
                )
            self._dropping = True

    def _work(self) -> None:
        while (body := self._waiting.get()) is not None:
            try:
                self._send(body)
            except Exception as error:  # noqa: BLE001 - such as: no thread can be started
                _log.warning(_NOT_SENT, type(error).__name__)

    def _send(self, body: bytes) -> None:
        why: str | None = None
        for number in range(TRIES):
            if number and self._closing.wait(_PAUSE_S):
                break
            why = self._try(body)
            if why is None:
                self._dropping = False
                return
        _log.warning(_NOT_SENT, why)

    def _try(self, body: bytes) -> str | None:
        """Send once; returns why it failed. The time limit holds for all of it."""
        outcome = Calls().run({"post": lambda: self._post(body)}, self._try_s)["post"]
        if outcome.ended is None:
            return f"no answer within {self._try_s:g} s"
        if outcome.error is not None:
            raise outcome.error
        why: str | None = outcome.value
        return why

    def _post(self, body: bytes) -> str | None:
        request = Request(self._url, body, _HEADERS, method="POST")  # noqa: S310 - checked
        try:
            with self._opener.open(request, timeout=self._try_s):
                return None
        except HTTPError as error:
            error.close()
            return f"it answered {error.code}"
        except (OSError, HTTPException, ValueError) as error:
            # not its words: they may name the host
            reason = error.reason if isinstance(error, URLError) else error
            return type(reason).__name__


class _NoRedirects(HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without the incident."""

    def redirect_request(self, *_args: object) -> None:
        return None


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = (
            parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        )
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError("--webhook needs a complete URL: http://... or https://...")
    if "@" in parts.netloc:
        raise UsageError("--webhook takes no user name or password in its URL")
    return url
