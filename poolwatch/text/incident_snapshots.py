"""Incident snapshots: the source that provides them, and their text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Protocol, runtime_checkable

from poolwatch.model import IncidentSnapshot, Process, Unreachable
from poolwatch.text.format import one_line

_INCIDENT_WORDS: Mapping[str, tuple[str, str]] = {
    "exhausted": ("exhausted", "was exhausted"),
    "timeout": ("timed out", "had a timeout"),
    "pool_deadlock": ("deadlocked", "was deadlocked"),
}


@runtime_checkable
class IncidentSnapshotSource(Protocol):
    """A source that also has incident snapshots."""

    def all_incident_snapshots(
        self,
    ) -> tuple[tuple[IncidentSnapshot, ...], tuple[Unreachable, ...]]:
        """Return the incident snapshots of all processes, and the processes that did
        not answer; may raise PoolwatchError.
        """
        ...


def incident_words(kind: str) -> tuple[str, str]:
    """Return what happened to a pool: in one or two words, and as a predicate."""
    word = one_line(kind, 20)
    return _INCIDENT_WORDS.get(kind, (word, f"had {word}"))


def date_and_time(at: str) -> tuple[str, str]:
    """Split an ISO 8601 time into date and time of day, both in UTC.

    Rounded up to a second: what was taken at that time is then found with ``--at``.
    """
    try:
        when = datetime.fromisoformat(at)
        if when.tzinfo is not None:
            when = when.astimezone(UTC)
        if when.microsecond:
            when = when.replace(microsecond=0) + timedelta(seconds=1)
    except (ValueError, OverflowError):
        return "", one_line(at, 40)
    return f"{when:%Y-%m-%d}", f"{when:%H:%M:%S} UTC"


def pool_name(process: Process, pool: str) -> str:
    """Return the name of a pool by its id; the id if the pool is gone."""
    names = {each.id: each.name for each in process.pools}
    return one_line(names.get(pool, pool), 60)


def limited_to_pool(process: Process, pool: str) -> Process:
    """Return the part of an incident snapshot that is about one pool."""
    holds = tuple(hold for hold in process.holds if hold.pool == pool)
    waits = tuple(wait for wait in process.waits if wait.pool == pool)
    ids = {hold.id for hold in holds} | {wait.id for wait in waits}
    return replace(
        process,
        pools=tuple(each for each in process.pools if each.id == pool),
        holds=holds,
        waits=waits,
        sites=tuple(site for site in process.sites if site.pool == pool),
        callers=tuple(each for each in process.callers if each.pool == pool),
        findings=tuple(
            finding
            for finding in process.findings
            if finding.pool == pool
            or (finding.pool is None and ids & {*finding.holds, *finding.waits})
        ),
        frozen=(),
    )
