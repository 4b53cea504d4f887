"""A sink that pushes the nine metrics by OTLP; the only module that imports the SDK.

The SDK's reader, exporter and resource are configured by their own ``OTEL_*``
environment. The points are made here, not by instruments: an instrument has no way to
take over a histogram as it is, and would push the series of a process that has gone for
ever.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from importlib import import_module
from typing import Any, NamedTuple

from poolwatch.errors import MissingExtraError, UsageError
from poolwatch.model import BUCKETS, Distribution, Process
from poolwatch.protocol.pool_metrics import INSTRUMENTS, POOL_NAME, Instrument
from poolwatch.sidecar.looks import Look, Sink
from poolwatch.text.format import one_line
from poolwatch.text.naming import PoolNames
from poolwatch.version import VERSION

_MISSING = "--otlp needs OpenTelemetry", "otel"
try:
    from opentelemetry.sdk.metrics import Histogram as HistogramKind
    from opentelemetry.sdk.metrics import ObservableCounter, ObservableUpDownCounter
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        Histogram,
        HistogramDataPoint,
        Metric,
        MetricExporter,
        MetricsData,
        NumberDataPoint,
        PeriodicExportingMetricReader,
        ResourceMetrics,
        ScopeMetrics,
        Sum,
    )
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
except ModuleNotFoundError as error:
    raise MissingExtraError(*_MISSING) from error

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTERS = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.metric_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.metric_exporter",
}
"""Modules by protocol; that of gRPC takes 16 MiB."""
_KINDS: dict[str, type] = {
    "counter": ObservableCounter,
    "updowncounter": ObservableUpDownCounter,
    "histogram": HistogramKind,
}
_NAME = "poolwatch-sidecar"
_PATIENCE_S = 0.4
"""How long the end of the sidecar waits for the last push."""
_AGAIN_S = 600.0
"""How often the same warning is said."""
_REASON = re.compile(
    r"StatusCode\.[A-Z_]+|code: \d{3}|connection refused|timed? ?out|resolve",
    re.IGNORECASE,
)
"""What may be said of a failure. The SDK's own words have the receiver's URL or a
header, and these may have a token."""

_log = logging.getLogger("poolwatch.sidecar")

Attributes = dict[str, str | int]
Sent = tuple[float, ...]
"""A value, or the sum and the counts of the buckets of a histogram."""


class _Point(NamedTuple):
    """A value of one series, since the beginning of its process."""

    key: tuple[object, ...]
    attributes: Attributes
    start_ns: int
    value: Sent
    longest: float | None


class _Warnings(logging.Handler):
    """Takes the SDK's warnings: a few a minute for as long as a receiver is away."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._due: dict[str, float] = {}
        """By the name of the SDK's logger."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say now and then, in words of our own, that something is wrong."""
        now = time.monotonic()
        if now < self._due.get(record.name, 0.0):
            return
        self._due[record.name] = now + _AGAIN_S
        if record.name.startswith("opentelemetry.exporter."):
            reason = _REASON.search(record.getMessage())
            why = f" ({reason[0]})" if reason else ""
            _log.warning("the receiver of OTLP does not take the metrics%s", why)
        else:
            _log.warning(
                "OpenTelemetry refuses a setting, see OTEL_* (%s)", record.name
            )


class OtlpPush(Sink):
    """Pushes what the newest look says, at the SDK's own interval."""

    def __init__(self) -> None:
        """Raises UsageError if the environment cannot be used."""
        sdk = logging.getLogger("opentelemetry")
        sdk.handlers, sdk.propagate = [_Warnings()], False
        exporter = _exporter()
        self._newest: Look | None = None
        self._names: dict[tuple[object, ...], PoolNames] = {}
        """By process."""
        self._sent: dict[tuple[object, ...], Sent] = {}
        """By series: what it stood at."""
        self._sent_ns = 0
        try:
            self._resource = _resource()
            self._reader = PeriodicExportingMetricReader(exporter)
        except Exception as error:  # noqa: BLE001 - of whatever kind
            raise _refused(error) from None
        self._temporality = exporter._preferred_temporality or {}  # noqa: SLF001
        self._reader._set_collect_callback(self._collect)  # type: ignore[arg-type]  # noqa: SLF001

    def take(self, look: Look) -> None:
        """Keep the look."""
        self._newest = look

    def close(self) -> None:
        """Push a last time, but wait for no receiver."""
        end = threading.Thread(target=self._reader.shutdown, daemon=True)
        end.start()
        end.join(_PATIENCE_S)

    def _collect(self, *_: object, **__: object) -> MetricsData | None:
        try:
            return self._data()
        except Exception:  # noqa: BLE001 - it would end the reader's thread
            _log.exception("the metrics could not be pushed")
            return None

    def _data(self) -> MetricsData | None:
        look = self._newest
        if look is None or not look.snapshot.processes:
            return None
        processes = {_key(each): each for each in look.snapshot.processes}
        self._names = {key: self._names.get(key, PoolNames()) for key in processes}
        now_ns = int(look.at * 1e9)
        points: defaultdict[Instrument, list[_Point]] = defaultdict(list)
        for key, process in processes.items():
            for instrument, point in _points(key, process, self._names[key]):
                points[instrument].append(point)
        metrics = [
            Metric(
                name=each.name,
                description=each.description,
                unit=each.unit,
                data=self._data_of(each, points[each], now_ns),
            )
            for each in points
        ]
        self._sent = {p.key: p.value for found in points.values() for p in found}
        self._sent_ns = now_ns
        scope = ScopeMetrics(InstrumentationScope("poolwatch", VERSION), metrics, "")
        resource = ResourceMetrics(self._resource, [scope], self._resource.schema_url)
        return MetricsData([resource])

    def _data_of(
        self, instrument: Instrument, points: list[_Point], now_ns: int
    ) -> Sum | Histogram:
        kind = instrument.kind
        cumulative = AggregationTemporality.CUMULATIVE
        temporality = self._temporality.get(_KINDS[kind], cumulative)
        if temporality == AggregationTemporality.DELTA:
            points = [self._grown(each) for each in points]
        if kind == "histogram":
            return Histogram([_histogram(p, now_ns) for p in points], temporality)
        numbers = [
            NumberDataPoint(p.attributes, p.start_ns, now_ns, int(p.value[0]))
            for p in points
        ]
        return Sum(numbers, temporality, is_monotonic=kind == "counter")

    def _grown(self, point: _Point) -> _Point:
        """What is new since the last push."""
        before = self._sent.get(point.key)
        if before is None:
            return point
        value = tuple(max(0, a - b) for a, b in zip(point.value, before, strict=True))
        return point._replace(value=value, start_ns=self._sent_ns, longest=None)


def _exporter() -> MetricExporter:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        raise UsageError("--otlp would push nothing: OTEL_SDK_DISABLED is set")
    given = next((each for each in _PROTOCOLS if os.environ.get(each)), None)
    protocol = "grpc" if given is None else os.environ[given].strip()
    if protocol not in _EXPORTERS:
        raise UsageError(
            f"{given} must be {' or '.join(_EXPORTERS)}, not {one_line(protocol, 40)!r}"
        )
    try:
        kind: type[MetricExporter] = import_module(
            _EXPORTERS[protocol]
        ).OTLPMetricExporter
        return kind()
    except ModuleNotFoundError as error:
        raise MissingExtraError(*_MISSING) from error
    except Exception as error:  # noqa: BLE001 - of whatever kind
        raise _refused(error) from None


def _refused(error: Exception) -> UsageError:
    """The words of the error are left out: they may have the headers, with a token."""
    return UsageError(
        "--otlp: OpenTelemetry's exporter refuses its OTEL_* environment "
        f"({type(error).__name__})"
    )


def _resource() -> Resource:
    """The sidecar itself; the processes are told apart by attributes."""
    found = Resource.create()
    if str(found.attributes.get("service.name", "")).startswith("unknown_service"):
        found = found.merge(Resource({"service.name": _NAME}))
    return found


def _key(process: Process) -> tuple[object, ...]:
    return process.host, process.pid, process.started_at


def _points(
    key: tuple[object, ...], process: Process, names: PoolNames
) -> Iterator[tuple[Instrument, _Point]]:
    start_ns = int(datetime.fromisoformat(process.started_at).timestamp() * 1e9)
    of_process: Attributes = {
        "service.name": one_line(process.name or process.program, 128),
        "host.name": one_line(process.host, 128),
        "process.pid": process.pid,
    }
    names.keep({pool.id for pool in process.pools})
    for pool in process.pools:
        for instrument in INSTRUMENTS:
            for more, value in instrument.points(pool):
                attributes = of_process | {POOL_NAME: names.of(pool), **more}
                series = (*key, pool.id, instrument.name, *more.values())
                point = _Point(series, attributes, start_ns, (), None)
                if not isinstance(value, Distribution):
                    yield instrument, point._replace(value=(value,))
                elif (counts := value.in_buckets) is not None:
                    sent = (value.sum, *counts)
                    yield instrument, point._replace(value=sent, longest=value.max)


def _histogram(point: _Point, now_ns: int) -> HistogramDataPoint:
    seconds, *counts = point.value
    unknown: Any = None  # of the durations there is no least one
    return HistogramDataPoint(
        attributes=point.attributes,
        start_time_unix_nano=point.start_ns,
        time_unix_nano=now_ns,
        count=int(sum(counts)),
        sum=seconds,
        bucket_counts=[int(each) for each in counts],
        explicit_bounds=BUCKETS,
        min=unknown,
        max=unknown if point.longest is None else point.longest,
    )
