"""Every engine is watched, also when a test has switched that off for itself."""

from __future__ import annotations

from typing import Any

from poolwatch.agent import agent, uninstrument, watch_quietly
from poolwatch.importing import when_imported
from poolwatch.settings import Settings


class Watching:
    """Watches from the moment there is SQLAlchemy."""

    def __init__(self) -> None:
        self._wanted = False
        self._mine = False
        """Nobody else had asked for every engine."""
        self._met: dict[str, Any] = {}
        """By book: the hooks, which do not keep their pool alive."""

    def begin(self) -> None:
        """Watch now, or as soon as SQLAlchemy is imported."""
        self._wanted = True
        when_imported("sqlalchemy", self._watch)

    def end(self) -> None:
        """Take it off again."""
        self._wanted = False
        if self._mine:
            uninstrument()

    def again(self) -> None:
        """See to it that nothing got lost; quick if so."""
        if not self._mine:
            return
        if agent.engines is None or not agent.engines.watches_every:
            self._watch()
        elif agent.ledger.books.keys() != self._met.keys():
            if self._lost():
                agent.engines.watch_every(Settings())
            books = list(agent.ledger.books.values())
            self._met = {book.id: _hooks(book) for book in books}

    def _watch(self) -> None:
        if not self._wanted:
            return
        if agent.engines is None or not agent.engines.watches_every:
            watch_quietly()
            self._mine = True

    def _lost(self) -> bool:
        """Whether a pool is alive whose hooks were taken off."""
        gone = self._met.keys() - agent.ledger.books.keys()
        return any(getattr(self._met[each], "pool", None) is not None for each in gone)


def _hooks(book: Any) -> Any:
    return getattr(book.gauges, "__self__", None)
