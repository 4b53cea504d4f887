"""Every pool is watched, also when a test has switched that off for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolwatch.agent.instrument import agent, instrument_without_agent, uninstrument
from poolwatch.ledger.settings import Settings

if TYPE_CHECKING:
    from poolwatch.ledger.pool import PoolLedger


class Watching:
    """Watches every pool, of whatever library, from the moment it is loaded."""

    def __init__(self) -> None:
        self._mine = False
        """Nobody else had asked for every pool."""
        self.seen = -1
        """The changes of the ledger that were looked at."""

    def begin(self) -> None:
        """Watch; loads no pool library."""
        if agent.pools is None or not agent.pools.watches_every:
            instrument_without_agent()
            self._mine = True

    def end(self) -> None:
        """Take it off again."""
        if self._mine:
            uninstrument()

    def again(self) -> None:
        """See to it that nothing got lost, after the ledger has changed."""
        self.seen = agent.ledger.changes
        if not self._mine:
            return
        if agent.pools is None or not agent.pools.watches_every:
            instrument_without_agent()
        elif any(map(_lives_on, agent.ledger.removed_pools)):
            agent.pools.watch_every(Settings())
        agent.ledger.removed_pools.clear()


def _lives_on(book: PoolLedger) -> bool:
    """Whether a pool is alive whose hooks were taken off."""
    hooks = getattr(book.gauges, "__self__", None)
    return getattr(hooks, "pool", None) is not None
