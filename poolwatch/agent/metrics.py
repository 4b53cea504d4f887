"""export_metrics(): the pools' metrics, for an application with OpenTelemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolwatch.agent.instrument import agent, instrument
from poolwatch.agent.otel_import import opentelemetry
from poolwatch.ledger.settings import disabled

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider


def export_metrics(meter_provider: MeterProvider | None = None) -> None:
    """Feed OpenTelemetry's nine metrics of connection pools to a MeterProvider.

    They are read from the ledger when a reader of the provider collects: nothing is
    added to a checkout. All instrumented pools have them; if none is instrumented yet,
    every pool of the process is, as by ``instrument()``.

    Args:
        meter_provider: the global one by default, also if it is set later.

    Calling it again changes nothing. With POOLWATCH_DISABLE=1 in the environment it
    does nothing.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
        TypeError: for something that is no MeterProvider.
    """
    if disabled():
        return
    opentelemetry("export_metrics()").export(agent.ledger, meter_provider)
    if not agent.ledger.pools and (agent.pools is None or not agent.pools.watches_all):
        instrument()
