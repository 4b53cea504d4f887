"""The application's own look at its servers, when a viewer asks for it.

One reader per database URL, over a connection made the way the engine makes its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from poolwatch.errors import NO_ANSWER, ServerDownError, ServerViewError
from poolwatch.postgres.agent_reader import InProcessReader
from poolwatch.postgres.join import AgentReading
from poolwatch.protocol.readings import ServerReading
from poolwatch.runtime.guard import log

if TYPE_CHECKING:
    from poolwatch.agent.outages import Outages
    from poolwatch.ledger.checkout import ConnectionFacts
    from poolwatch.ledger.ledger import Ledger
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.postgres.connection import Facts

_MOST_READERS = 16
"""Different databases of one process that are read in one go."""
_PATIENCE_S = 2.5
"""A server that takes longer does not answer: the viewer's own patience is 3 s."""


class ServerSide:
    """Reads pg_stat_activity for the pools of this process, on request."""

    def __init__(self, ledger: Ledger, facts: Facts, outages: Outages) -> None:
        """``facts`` tells the backend pid of a DBAPI connection."""
        self._outages = outages
        self._ledger = ledger
        self._facts = facts
        self._readers: dict[str, InProcessReader] = {}
        self._lock = threading.Lock()

    def readings(self, linger: float) -> Sequence[AgentReading]:
        """Read every server once; keep the connections for ``linger`` seconds."""
        groups: dict[str, list[PoolLedger]] = {}
        for book in list(self._ledger.books.values()):
            if book.server_connect is not None:
                groups.setdefault(_server_of(book), []).append(book)
        self._forget_others(groups)
        chosen = list(groups.items())[:_MOST_READERS]
        answers: dict[str, AgentReading] = {}

        def read(key: str, books: list[PoolLedger]) -> None:
            try:
                answers[key] = self._read(key, books, linger)
            except Exception as error:  # noqa: BLE001 - it is the application's process
                log().debug("a server view failed", exc_info=True)
                why = f"the server view failed with {type(error).__name__}"
                answers[key] = AgentReading(_ids(books), None, why)

        threads = [
            threading.Thread(target=read, args=group, name="poolwatch", daemon=True)
            for group in chosen
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + _PATIENCE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        told = {key: answers.get(key) or _silent(books) for key, books in chosen}
        for key, books in chosen:
            self._note(books[0], told[key])
        return list(told.values())

    def _note(self, book: PoolLedger, answer: AgentReading) -> None:
        """Log when a server stops answering or answers again."""
        if answer.down is not None:
            self._outages.down(book, answer.down)
        elif answer.reading is not None:
            self._outages.answers(book)

    def close_idle(self) -> bool:
        """Close connections that were kept long enough; True while any is kept."""
        kept = False
        for reader in list(self._readers.values()):
            reader.close_idle()
            kept = kept or reader.keeps
        return kept

    def close(self) -> None:
        """Close all connections."""
        for reader in list(self._readers.values()):
            reader.close()

    def _read(self, key: str, books: list[PoolLedger], linger: float) -> AgentReading:
        pools, address = _ids(books), _address(books)
        willing = [
            book.server_connect
            for book in books
            if book.server_view and book.server_connect is not None
        ]
        if not willing:
            return AgentReading(pools, None, None, enabled=False)
        reader = self._reader(key, partial(_connect, willing))
        try:
            return AgentReading(pools, self._ask(reader, books, linger), None)
        except ServerDownError as error:
            return AgentReading(
                pools, None, str(error), down=error.words, address=address
            )
        except ServerViewError as error:
            return AgentReading(pools, None, str(error), address=address)

    @staticmethod
    def _ask(
        reader: InProcessReader, books: Collection[PoolLedger], linger: float
    ) -> ServerReading:
        known = [
            hold.facts
            for book in books
            for hold in book.open_holds()
            if hold.facts is not None
        ]
        known += [facts for book in books for _, facts in list(book.departed)]
        pids = {each.backend_pid for each in known if each.backend_pid is not None}
        return reader.read(pids, linger=linger)

    def _reader(self, key: str, connect: Callable[[], Any]) -> InProcessReader:
        with self._lock:
            reader = self._readers.get(key)
            if reader is None:
                reader = self._readers[key] = InProcessReader(connect, self._facts)
            reader.connect = connect  # the pool that it began with may be gone
            return reader

    def _forget_others(self, groups: Mapping[str, object]) -> None:
        with self._lock:
            gone = [key for key in self._readers if key not in groups]
            readers = [self._readers.pop(key) for key in gone]
        for reader in readers:
            reader.close()


def _connect(ways: Sequence[Callable[[], Any]]) -> Any:
    """Connect as the first pool does that still can; the last one says why not."""
    *others, last = ways
    for way in others:
        with suppress(ServerViewError):  # its engine is gone, or connects otherwise
            return way()
    return last()


def _silent(books: Collection[PoolLedger]) -> AgentReading:
    """The answer for a server whose reading has not come back."""
    why = f"PostgreSQL has not answered for {_PATIENCE_S:g} s"
    return AgentReading(_ids(books), None, why, down=NO_ANSWER, address=_address(books))


def _ids(books: Iterable[PoolLedger]) -> tuple[str, ...]:
    return tuple(book.id for book in books)


def _address(books: Iterable[PoolLedger]) -> str | None:
    """Where the open connections of the pools are, if all are in one place."""
    found = {facts.address for book in books for facts in _connections(book)}
    return found.pop() if len(found) == 1 else None


def _connections(book: PoolLedger) -> list[ConnectionFacts]:
    return list(book.connections.values())


def _server_of(book: PoolLedger) -> str:
    """What pools of one server have in common; apart when in doubt.

    The URL alone does not tell: connect_args or a creator may name the host.
    """
    addresses = {facts.address for facts in _connections(book)}
    if len(addresses) != 1 or book.url is None:
        return book.id
    return f"{book.url} {addresses.pop()}"
