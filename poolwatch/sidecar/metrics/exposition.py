"""Prometheus's text formats, by prometheus-client: the only module that imports it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from poolwatch.model import BUCKETS
from poolwatch.sidecar.metrics.families import FAMILIES, Family, Labels, Value
from poolwatch.sidecar.metrics.series import Values

_LE = (*(str(float(bound)) for bound in BUCKETS), "+Inf")


def exposition(values: Values, accept: str) -> tuple[bytes, str]:
    """Return the text in the format that a scraper accepts, and its content type."""
    registry = CollectorRegistry()
    registry.register(_Collected(values))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Collected(Collector):
    def __init__(self, values: Values) -> None:
        self._values = values

    def describe(self) -> Iterable[Metric]:
        return ()  # or it would be collected twice

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            series = self._values.get(family.name)
            if series:
                yield _metric(family, series)


def _metric(family: Family, series: dict[Labels, Value]) -> Metric:
    metric = Metric(family.name, family.text, family.kind)
    for pairs, value in series.items():
        labels = dict(pairs)
        if family.kind == "histogram":
            *up_to, total = value
            for bound, count in zip(_LE, up_to, strict=True):
                name = f"{family.name}_bucket"
                metric.add_sample(name, {**labels, "le": bound}, count)
            metric.add_sample(f"{family.name}_count", labels, up_to[-1])
            metric.add_sample(f"{family.name}_sum", labels, total)
        else:
            suffix = "_total" if family.kind == "counter" else ""
            metric.add_sample(family.name + suffix, labels, value[0])
    return metric
