"""The waits of a snapshot, one by one or grouped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from poolwatch.model import PoolStats, Process, Wait
from poolwatch.tui.state.rows import ProcessKey


@dataclass(frozen=True, slots=True, eq=False)
class WaitGroup:
    """One row: a wait, or several of one call site and pool."""

    key: Any
    process: Process
    pool: PoolStats | None
    """None if the pool is gone."""
    waits: tuple[Wait, ...]
    """The longest first."""
    members: tuple[Any, ...]
    """The keys of these waits."""
    owners: frozenset[ProcessKey]
    """The processes that wait."""

    @property
    def processes(self) -> int:
        """Number of processes that wait."""
        return len(self.owners)

    @property
    def longest(self) -> Wait:
        """The longest wait, which the row is drawn from."""
        return self.waits[0]

    @property
    def pool_name(self) -> str:
        """Name of the pool, or its id when the pool is gone."""
        return self.pool.name if self.pool else self.longest.pool

    @property
    def share(self) -> float:
        """The longest wait as a share of the pool's timeout."""
        timeout = self.pool.timeout_s if self.pool else None
        return self.longest.known_s / timeout if timeout else 0.0
