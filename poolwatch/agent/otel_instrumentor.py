"""What ``opentelemetry-instrument`` finds: it watches every pool and exports metrics.

The only module that imports ``opentelemetry.instrumentation``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)

from poolwatch.agent.instrument import instrument, uninstrument
from poolwatch.agent.metrics import export_metrics
from poolwatch.agent.otel import stop_exports
from poolwatch.runtime.guard import log

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider


class PoolwatchInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """``instrument()`` and ``export_metrics()``, by the rules of OpenTelemetry."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: any version of any pool library may be there, or come later."""
        return ()

    def _instrument(
        self, meter_provider: MeterProvider | None = None, **_: Any
    ) -> None:
        try:
            instrument()
            export_metrics(meter_provider)
        except Exception:  # noqa: BLE001 - the other instrumentors go on
            log().exception("poolwatch could not be started for OpenTelemetry")

    def _uninstrument(self, **_: Any) -> None:
        stop_exports()
        uninstrument()
