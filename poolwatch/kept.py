"""Pictures of earlier trouble, for who looks at them: how to ask, and the words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

from poolwatch.model import Frozen, FrozenKind, FrozenMark, Process, Unreachable
from poolwatch.text import one_line

HAPPENED: dict[FrozenKind, str] = {
    "exhausted": "exhausted",
    "timeout": "timed out",
    "pool_deadlock": "deadlocked",
}
"""What came upon the pool."""


@runtime_checkable
class KeepsPictures(Protocol):
    """A source that can also be asked for the pictures that are kept."""

    def all_frozen(self) -> tuple[tuple[Frozen, ...], tuple[Unreachable, ...]]:
        """Return the pictures of all processes, and who could not tell; may raise
        PoolwatchError.
        """
        ...


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


def mark_in_words(process: Process, mark: FrozenMark | Frozen) -> str:
    """``orders exhausted at 03:12:44 UTC``."""
    at = moment(mark.at)[1]
    return f"{pool_name(process, mark.pool)} {HAPPENED[mark.kind]} at {at}"
