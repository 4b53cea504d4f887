"""Imports what feeds OpenTelemetry, or says what to install."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolwatch.errors import MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType


def opentelemetry(what: str) -> ModuleType:
    """Import what feeds OpenTelemetry; ``what`` needs it, says the error if there is
    none.
    """
    try:
        from poolwatch.agent import otel
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise MissingExtraError(f"{what} needs OpenTelemetry", "otel") from error
    return otel
