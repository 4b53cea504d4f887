"""The handle that ``instrument()`` returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolwatch.agent.instrument import Agent
    from poolwatch.model import Hold, Snapshot


class Watch:
    """Returned by :func:`instrument`: a handle on one pool, or on every pool."""

    def __init__(self, agent: Agent, pool_id: str | None) -> None:
        self._agent = agent
        self._pool_id = pool_id

    def snapshot(self) -> Snapshot:
        """Return the snapshot of this process (of all its pools)."""
        return self._agent.source.snapshot()

    def holds(self) -> tuple[Hold, ...]:
        """Return the open holds, oldest first: of this pool, or of every pool."""
        holds = self._agent.source.process().holds
        if self._pool_id is None:
            return holds
        return tuple(hold for hold in holds if hold.pool == self._pool_id)

    def __repr__(self) -> str:
        """Return a text with the id of the pool."""
        return f"<poolwatch.Watch on {self._pool_id or 'every pool'}>"
