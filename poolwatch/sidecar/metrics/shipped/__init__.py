"""A dashboard for Grafana and alert rules for Prometheus, to be written out."""

from __future__ import annotations

from importlib import resources
from typing import Literal

_FILES = {"dashboard": "dashboard.json", "alerts": "alerts.yml"}


def shipped(name: Literal["dashboard", "alerts"]) -> str:
    """Return the text of a file."""
    return resources.files(__name__).joinpath(_FILES[name]).read_text("utf-8")
