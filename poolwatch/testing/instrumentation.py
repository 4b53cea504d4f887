"""Keeps every pool instrumented for a whole run, even if a test uninstruments it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolwatch.agent.instrument import agent, instrument_without_agent, uninstrument
from poolwatch.ledger.settings import Settings

if TYPE_CHECKING:
    from poolwatch.ledger.pool import PoolLedger


class Instrumentation:
    """Instruments every pool of every library, as soon as the library is imported."""

    def __init__(self) -> None:
        self._is_ours = False
        """Whether this object instrumented every pool, not the application."""
        self.changes_seen = -1
        """The value of ``ledger.changes`` at the last call of ``restore``."""

    def begin(self) -> None:
        """Instrument every pool; imports no pool library."""
        if agent.pools is None or not agent.pools.watches_all:
            instrument_without_agent()
            self._is_ours = True

    def end(self) -> None:
        """Uninstrument every pool, unless the application had instrumented them."""
        if self._is_ours:
            uninstrument()

    def restore(self) -> None:
        """Instrument pools again that were uninstrumented since the last call."""
        self.changes_seen = agent.ledger.changes
        if not self._is_ours:
            return
        if agent.pools is None or not agent.pools.watches_all:
            instrument_without_agent()
        elif any(map(_is_alive, agent.ledger.removed_pools)):
            agent.pools.watch_all(Settings())
        agent.ledger.removed_pools.clear()


def _is_alive(pool: PoolLedger) -> bool:
    """Whether an uninstrumented pool is still alive."""
    hooks = getattr(pool.gauges, "__self__", None)
    return getattr(hooks, "pool", None) is not None
