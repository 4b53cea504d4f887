"""The record of one leak, and its error and warning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from poolwatch.model import Frame

LeakKind = Literal["held", "collected", "detached"]
"""``held``: not returned. ``collected``: dropped, and then garbage-collected.
``detached``: detached from its pool, and not closed."""


@dataclass(frozen=True, slots=True)
class Leak:
    """One connection that was checked out and not returned."""

    kind: LeakKind
    pool: str
    """Name of the pool."""
    site: Frame | None
    """The line of the user's own code that checked out the connection."""
    stack: tuple[Frame, ...]
    """The stack at the checkout, innermost frame first."""
    held_s: float
    """Seconds until it was garbage-collected, or until the leak was found."""
    thread: str | None
    task: str | None
    """The thread and, under asyncio, the task that checked out the connection."""
    kept: str | None = None
    """The reference path that keeps the connection alive, from a variable on."""
    now: tuple[Frame, ...] = ()
    """The current stack of the holder, if that is another thread or a task."""
    statement: str | None = None
    """The last statement sent on the connection, with literals masked."""
    backend_pid: int | None = None


class PoolLeakError(AssertionError):
    """Connections were checked out and not returned; ``leaks`` has a record of each."""

    def __init__(self, text: str, leaks: Sequence[Leak] = ()) -> None:
        super().__init__(text)
        self.leaks = tuple(leaks)


class PoolLeakWarning(ResourceWarning):
    """Connections were checked out and not returned (``--pool-leaks=warn``)."""
