"""Every pool is watched, also when a test has switched that off for itself."""

from __future__ import annotations

from typing import Any

from poolwatch.agent import agent, uninstrument, watch_quietly
from poolwatch.settings import Settings


class Watching:
    """Watches every pool, of whatever library, from the moment it is loaded."""

    def __init__(self) -> None:
        self._mine = False
        """Nobody else had asked for every pool."""
        self._met: dict[str, Any] = {}
        """By book: the hooks, which do not keep their pool alive."""
        self.seen = -1
        """The changes of the ledger that were looked at."""

    def begin(self) -> None:
        """Watch; loads no pool library."""
        if agent.pools is None or not agent.pools.watches_every:
            watch_quietly()
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
            watch_quietly()
        elif self._lost():
            agent.pools.watch_every(Settings())
            self.seen = agent.ledger.changes
        books = list(agent.ledger.books.values())
        self._met = {book.id: _hooks(book) for book in books}

    def _lost(self) -> bool:
        """Whether a pool is alive whose hooks were taken off."""
        gone = self._met.keys() - agent.ledger.books.keys()
        return any(getattr(self._met[each], "pool", None) is not None for each in gone)


def _hooks(book: Any) -> Any:
    return getattr(book.gauges, "__self__", None)
