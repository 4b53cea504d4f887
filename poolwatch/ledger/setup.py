"""How a pool is set up: the line that made it, what it is for, when it was used."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from poolwatch.model import PoolSetup

if TYPE_CHECKING:
    from poolwatch.model import Frame


class Setup:
    """The set-up of one pool. The adapter fills it in when the pool is instrumented."""

    def __init__(self) -> None:
        self.made_at: Frame | None = None
        """The line that made the pool; None if unknown."""
        self.purpose: Hashable = None
        """Equal for pools that are set up alike; None if unknown."""
        self.own_creator = False
        """Whether a function of the application provides the connections."""
        self.trace_waits = False
        """Whether long waits become events on the spans of OpenTelemetry."""
        self.hands_over = False
        """Whether a returned connection goes to the next request as it is, without a
        statement in between.
        """
        self.behind_pooler = False
        """Whether a pooler such as PgBouncer is known to be in between."""
        self.restart(0.0)

    def restart(self, now: float) -> None:
        """Forget the use of the pool: at the beginning, and in a forked child."""
        self._checkouts = 0
        self._noted_at = now
        self._used_after: float | None = None

    def note(self, checkouts: int, now: float) -> None:
        """Note the number of checkouts so far.

        If there are new ones, they were made after the previous note.
        """
        if checkouts != self._checkouts:
            self._checkouts, self._used_after = checkouts, self._noted_at
        self._noted_at = now

    def record(self, begun: float, now: float) -> PoolSetup:
        """Return the record for a snapshot taken at ``now`` (``time.monotonic()``)."""
        used = self._used_after
        return PoolSetup(
            self.purpose,
            self.own_creator,
            now - begun,
            None if used is None else now - used,
        )
