"""``create_engine(url, plugins=["poolwatch"])``, or ``?plugin=poolwatch`` in the URL.

Settings go into the URL: ``poolwatch_name`` and ``poolwatch_long_after`` (seconds).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import URL, CreateEnginePlugin, Engine

from poolwatch.agent.instrument import instrument
from poolwatch.runtime.guard import log


class PoolwatchPlugin(CreateEnginePlugin):
    """Instruments the engine for which SQLAlchemy creates the plugin."""

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        self._settings = {
            key: url.query[f"poolwatch_{key}"]
            for key in ("name", "long_after")
            if f"poolwatch_{key}" in url.query
        }

    def update_url(self, url: URL) -> URL:
        """Remove our settings before the driver sees them."""
        return url.difference_update_query(
            [key for key in url.query if key.startswith("poolwatch_")]
        )

    def engine_created(self, engine: Engine) -> None:
        """Instrument the engine; an invalid setting is logged and ignored."""
        settings: dict[str, Any] = dict(self._settings)
        try:
            if "long_after" in settings:
                settings["long_after"] = float(settings["long_after"])
            instrument(engine, **settings)
        except (TypeError, ValueError) as error:
            log().warning("poolwatch: %s in the database URL; ignored", error)
            instrument(engine)
        except Exception:  # noqa: BLE001 - the application gets its engine in any case
            log().exception("poolwatch could not instrument an engine")
