"""What one look at the source gave, and how far it can be trusted by now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from poolwatch.model import Snapshot, Unreachable

Mode = Literal[
    "starting", "live", "paused", "stale", "failed", "silent", "lost", "none", "frozen"
]


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer of the source, or why there is none."""

    asked_at: float
    """On the monotonic clock: the data is at least that old."""
    snapshot: Snapshot | None = None
    error: str | None = None
    no_process: bool = False
    """The source looked, and nobody is there."""

    @property
    def alive(self) -> bool:
        """Whether it shows at least one process."""
        return self.snapshot is not None and bool(self.snapshot.processes)

    @property
    def silent(self) -> tuple[Unreachable, ...]:
        """The processes that did not answer and are not known to have ended."""
        unreachable = self.snapshot.unreachable if self.snapshot else ()
        return tuple(each for each in unreachable if each.alive is not False)


def freshness(
    last: Reading | None, kept: Reading | None, age: float, refresh: float, paused: bool
) -> Mode:
    """Say in one word what the screen shows.

    ``kept`` is the last reading with a process in it, ``age`` how old it is.
    """
    if paused and last is not None:
        return "paused"
    if last is None:
        return "starting"
    if not last.alive:
        if last.error is not None and not last.no_process:
            return "failed"
        if last.silent:
            return "silent"
        return "none" if kept is None else "lost"
    return "stale" if age > refresh + max(2.0, refresh) else "live"
