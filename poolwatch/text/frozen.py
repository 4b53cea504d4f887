"""Pictures of earlier trouble, for who looks at them: how to ask, and the words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

from poolwatch.model import Frozen, Process, Unreachable
from poolwatch.text.format import one_line

_HAPPENED: Mapping[str, tuple[str, str]] = {
    "exhausted": ("exhausted", "was exhausted"),
    "timeout": ("timed out", "had a timeout"),
    "pool_deadlock": ("deadlocked", "was deadlocked"),
}


@runtime_checkable
class KeepsPictures(Protocol):
    """A source that can also be asked for the pictures that are kept."""

    def all_frozen(self) -> tuple[tuple[Frozen, ...], tuple[Unreachable, ...]]:
        """Return the pictures of all processes, and who could not tell; may raise
        PoolwatchError.
        """
        ...


def happened(kind: str) -> tuple[str, str]:
    """The trouble that a pool had: in a word or two, and as the end of a sentence."""
    word = one_line(kind, 20)
    return _HAPPENED.get(kind, (word, f"had {word}"))


def moment(at: str) -> tuple[str, str]:
    """Split a time into its day and its time of the day, both in UTC."""
    try:
        when = datetime.fromisoformat(at)
        if when.tzinfo is not None:
            when = when.astimezone(UTC)
    except (ValueError, OverflowError):
        return "", one_line(at, 40)
    return f"{when:%Y-%m-%d}", f"{when:%H:%M:%S} UTC"


def pool_name(process: Process, pool: str) -> str:
    """Give the name of a pool by its id; the id when the pool is gone."""
    names = {each.id: each.name for each in process.pools}
    return one_line(names.get(pool, pool), 60)


def of_pool(process: Process, pool: str) -> Process:
    """What a picture says of one pool."""
    holds = tuple(hold for hold in process.holds if hold.pool == pool)
    waits = tuple(wait for wait in process.waits if wait.pool == pool)
    named = {hold.id for hold in holds} | {wait.id for wait in waits}
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
            or (finding.pool is None and named & {*finding.holds, *finding.waits})
        ),
        frozen=(),
    )
