"""An OTLP receiver over HTTP, and what it has received by metric and attributes."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

Attributes = frozenset[tuple[str, Any]]


class Receiver:
    """Keeps the newest point of every series."""

    def __init__(self) -> None:
        receiver = self
        self.requests = 0
        self.bodies: list[bytes] = []
        """Of all requests, to any path."""
        self.units: dict[str, str] = {}
        self.newest: dict[str, dict[Attributes, Any]] = {}
        """The series of the newest request alone."""
        self.series: dict[str, dict[Attributes, Any]] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.bodies.append(body)
                if self.path == "/v1/metrics":
                    receiver._take(ExportMetricsServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environ(self) -> dict[str, str]:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
        }

    def _take(self, request: ExportMetricsServiceRequest) -> None:
        newest: dict[str, dict[Attributes, Any]] = {}
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points = getattr(metric, metric.WhichOneof("data")).data_points
                    self.units[metric.name] = metric.unit
                    found = newest.setdefault(metric.name, {})
                    for point in points:
                        found[_attributes(point)] = point
        for name, points in newest.items():
            self.series.setdefault(name, {}).update(points)
        self.newest = newest
        self.requests += 1

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _attributes(point: Any) -> Attributes:
    return frozenset(
        (each.key, getattr(each.value, each.value.WhichOneof("value")))
        for each in point.attributes
    )
