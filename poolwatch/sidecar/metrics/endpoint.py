"""The HTTP server that Prometheus scrapes: ``/metrics`` and ``/healthz``."""

from __future__ import annotations

import errno
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, cast

from poolwatch.errors import ForbiddenError, UsageError
from poolwatch.ledger.histogram import Histogram
from poolwatch.model import Snapshot
from poolwatch.sidecar.looks import Look, Sink
from poolwatch.sidecar.metrics.exposition import exposition
from poolwatch.sidecar.metrics.families import (
    DROPPED,
    FAILED_LOOKS,
    LOOK_SECONDS,
    LOOKS,
    MISSING,
    distribution_value,
)
from poolwatch.sidecar.metrics.series import Series, Values
from poolwatch.text.format import duration, one_line

DEFAULT_ADDRESS = "127.0.0.1:9646"
_ADDRESS = re.compile(r"(?:(\[[^\[\]]+\]|[^\[\]:\s]+):)?([0-9]{1,5})")
_PATIENCE_S = 10.0
"""A client that takes longer is left; and how long a look may be overdue before the
sidecar is called unwell."""
_MAX_OPEN = 64
"""Clients at one time: each has a thread."""

_log = logging.getLogger("poolwatch.sidecar")


class Metrics(Sink):
    """Serves what the newest look says. A scrape computes it, not the loop."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        by_label: Sequence[str] = (),
        pid_label: bool = True,
        every_s: float = 1.0,
        dropped: Callable[[], int] | None = None,
    ) -> None:
        """``address``: ``[HOST:]PORT``; ``dropped``: what the history could not keep.

        Raises UsageError or ForbiddenError if nothing can be served there.
        """
        if "" in by_label:
            raise UsageError("--by-label needs the name of a label")
        self._series = Series(by_label, pid_label=pid_label)
        self._every_s = every_s
        self._dropped = dropped
        self._lock = threading.Lock()
        self._took = Histogram()
        self._failed = 0
        self._newest: Look | None = None
        self._looked_at = time.monotonic()
        self._server = _listen(address, self)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            args=(0.1,),
            name="poolwatch-metrics",
            daemon=True,
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host, port = self._server.server_address[:2]
        host = str(host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def take(self, look: Look) -> None:
        """Keep the look."""
        with self._lock:
            self._looked_at = time.monotonic()
            self._newest = look
            self._took.add([look.took_s])
            self._failed += look.error is not None
            self._series.take(look)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(1.0)

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """Return the answer to a scrape, and its content type."""
        with self._lock:
            values = self._series.values() | self._own()
        return exposition(values, accept)

    def _own(self) -> Values:
        """Metrics of the sidecar itself."""
        took = distribution_value(self._took.distribution(buckets=True))
        own: Values = {
            LOOKS: {(): (self._took.count,)},
            FAILED_LOOKS: {(): (self._failed,)},
            LOOK_SECONDS: {(): took} if took else {},
        }
        if self._dropped is not None:
            own[DROPPED] = {(): (self._dropped(),)}
        if self._newest is not None:
            own[MISSING] = {
                (("what", what),): (count,)
                for what, count in _missing(self._newest.snapshot).items()
            }
        return own

    def health(self) -> tuple[HTTPStatus, str]:
        """Whether the looks go on, whatever they say of the application."""
        late_s = time.monotonic() - self._looked_at - self._every_s
        if late_s > _PATIENCE_S:
            return HTTPStatus.SERVICE_UNAVAILABLE, f"no look for {duration(late_s)}"
        newest = self._newest
        if newest is not None and newest.error is not None:
            return HTTPStatus.OK, f"ok, but the last look failed: {newest.error}"
        return HTTPStatus.OK, "ok"


def _missing(snapshot: Snapshot) -> dict[str, int]:
    silent = sum(each.alive is not False for each in snapshot.unreachable)
    servers = [s for process in snapshot.processes for s in process.servers]
    unread = sum(s.error is not None for s in servers if s.enabled)
    return {"process": silent, "server": unread}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with the usual 5, some of many at once wait for seconds
    allow_reuse_port = False  # or two sidecars would share one port, unnoticed

    def __init__(self, address: tuple[str, int], family: int, metrics: Metrics) -> None:
        self.address_family = family
        self.metrics = metrics
        self._open: dict[Any, float] = {}
        """Until when each client may take."""
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would ask a name server

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a client in a thread of its own, unless there are too many."""
        if len(self._open) >= _MAX_OPEN:
            self.shutdown_request(request)
            return
        self._open[request] = time.monotonic() + _PATIENCE_S
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close connections that take too long, even if bytes come now and then."""
        now = time.monotonic()
        for request, until in list(self._open.items()):
            if now > until:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - http.server's signature
        """Say nothing of a scraper that went away."""
        _log.debug("a scrape was given up", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE_S
    server_version, sys_version = "poolwatch", ""

    def do_GET(self) -> None:
        """Answer a scrape or a probe."""
        metrics = cast("_Server", self.server).metrics
        path = self.path.partition("?")[0]
        if path == "/metrics":
            try:
                body, kind = metrics.text(self.headers.get("Accept", ""))
            except Exception:  # noqa: BLE001 - the next scrape may succeed
                _log.exception("the metrics could not be written")
                self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            else:
                self._answer(HTTPStatus.OK, body, kind)
        elif path == "/healthz":
            status, text = metrics.health()
            self._answer(status, f"{text}\n".encode(), "text/plain; charset=utf-8")
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "only /metrics and /healthz")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing: a scrape is no event."""


def _listen(address: str, metrics: Metrics) -> _Server:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[2]) > 65535:
        raise UsageError(
            f"--metrics {one_line(address, 60)!r} is not an address: give PORT, "
            "HOST:PORT or [HOST]:PORT"
        )
    host = match[1] or "127.0.0.1"
    address = f"{host}:{match[2]}"
    try:
        family, _, _, _, found = socket.getaddrinfo(
            host.strip("[]"),
            int(match[2]),
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
        return _Server((str(found[0]), int(found[1])), family, metrics)
    except PermissionError:
        raise ForbiddenError(f"this user may not serve metrics at {address}") from None
    except (OSError, UnicodeError) as error:
        raise UsageError(_why(address, error)) from None


def _why(address: str, error: OSError | UnicodeError) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return (
            f"{address} is taken, perhaps by another sidecar: metrics need another "
            "address (--metrics [HOST:]PORT)"
        )
    why = getattr(error, "strerror", None) or "no such host"
    return f"metrics cannot be served at {address}: {why}"
