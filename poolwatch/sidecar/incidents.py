"""Incidents: when a finding begins, whether it is still the same one, when it ends."""

from __future__ import annotations

from typing import NamedTuple

from poolwatch.model import Incident, Process


class Began(NamedTuple):
    """An incident that has just begun."""

    incident: Incident
    process: Process
    """The process as it was at that moment."""


class Changes(NamedTuple):
    """What one look has changed."""

    began: tuple[Began, ...] = ()
    ended: tuple[Incident, ...] = ()
    lasting: tuple[Incident, ...] = ()
    """All that have begun and not ended, with a new ``last_seen_at``."""
