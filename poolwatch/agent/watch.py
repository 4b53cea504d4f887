"""The handle that ``instrument()`` returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolwatch.agent.snapshots import LedgerSource
    from poolwatch.model import Hold, Snapshot


class Watch:
    """Returned by :func:`instrument`: a handle on one pool, or on every pool."""

    def __init__(self, source: Callable[[], LedgerSource], pool_id: str | None) -> None:
        self._source = source
        self._pool_id = pool_id

    def snapshot(self) -> Snapshot:
        """Return the snapshot of this process (of all its pools)."""
        return self._source().snapshot()

    def holds(self) -> tuple[Hold, ...]:
        """Return the open holds, oldest first: of this pool, or of every pool."""
        holds = self._source().process().holds
        if self._pool_id is None:
            return holds
        return tuple(hold for hold in holds if hold.pool == self._pool_id)

    def __repr__(self) -> str:
        """Return a text with the id of the pool."""
        return f"<poolwatch.Watch on {self._pool_id or 'every pool'}>"
