"""One leak, and the two ways to hear of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from poolwatch.model import Frame

LeakKind = Literal["held", "collected", "detached"]
"""Still out; dropped, so that the garbage collector returned it; or still open after
it was taken out of its pool."""


@dataclass(frozen=True, slots=True)
class Leak:
    """One connection that was taken and not given back."""

    kind: LeakKind
    pool: str
    """Name of the pool."""
    site: Frame | None
    """The line of the user's own code that took it."""
    stack: tuple[Frame, ...]
    """Where it was taken, innermost frame first."""
    held_s: float
    """Until it came back, or until it was noticed."""
    thread: str | None
    task: str | None
    """The thread and, under asyncio, the task that took it."""
    kept: str | None = None
    """What keeps it alive: the chain of references, from a variable on."""
    now: tuple[Frame, ...] = ()
    """Where its holder is now, if that is another thread or a task."""
    statement: str | None = None
    """The last statement sent through it, literals masked."""
    backend_pid: int | None = None


class PoolLeakError(AssertionError):
    """Connections were taken and not given back; ``leaks`` are the records."""

    def __init__(self, text: str, leaks: Sequence[Leak] = ()) -> None:
        super().__init__(text)
        self.leaks = tuple(leaks)


class PoolLeakWarning(ResourceWarning):
    """Connections were taken and not given back, and nobody asked for an error."""
