"""Logs once that a server does not answer, and once that it answers again.

A pool that cannot connect notices it, or the reader of the server view. Nothing here
connects to a server.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import log
from poolwatch.runtime.libraries import by_package, libraries
from poolwatch.text.format import duration, one_line, server_in

_MOST = 64


@dataclass(frozen=True, slots=True)
class _Outage:
    began: float
    pool: str
    connects: int
    """Connections the pool had opened: if it opens one more, the server is back."""


class Outages:
    """The servers of this process that do not answer."""

    def __init__(self) -> None:
        self._down: dict[str, _Outage] = {}
        """By server, or by pool where the server is unknown."""

    def refused(self, book: PoolLedger, error: BaseException) -> None:
        """Examine an error that a pool raised instead of lending a connection."""
        if not _is_drivers(error, book):
            return
        from poolwatch.errors import ServerDownError
        from poolwatch.postgres.errors import as_failure

        failure = as_failure(error, alone=True)
        if isinstance(failure, ServerDownError):
            self.down(book, failure.words)

    def down(self, book: PoolLedger, words: str) -> None:
        """Log that the server of a pool does not answer, unless that is known."""
        server, new = _server(book), _Outage(time.monotonic(), book.id, book.connects)
        if len(self._down) < _MOST and self._down.setdefault(server, new) is new:
            log().warning(
                "PostgreSQL at %s does not answer: %s (pool %s)",
                one_line(server),
                words,
                one_line(repr(book.name)),
            )

    def answers(self, book: PoolLedger) -> None:
        """Log that the server of a pool answers again, if it did not before."""
        outage = self._down.pop(_server(book), None) if self._down else None
        if outage is not None:
            log().warning(
                "PostgreSQL at %s answers again, after %s",
                one_line(_server(book)),
                duration(time.monotonic() - outage.began),
            )

    def look(self, books: Iterable[PoolLedger]) -> None:
        """Log which servers answer again: a pool has opened a connection since."""
        if not self._down:
            return
        known = {book.id: book for book in books}
        for server, outage in list(self._down.items()):
            book = known.get(outage.pool)
            if book is None:
                self._down.pop(server, None)
            elif book.connects > outage.connects:
                self.answers(book)


def _server(book: PoolLedger) -> str:
    return server_in(book.url) or f"the address of pool {book.name}"


def _is_drivers(error: BaseException, book: PoolLedger) -> bool:
    """Whether an error is a driver's: ``str()`` of another may run other code."""
    kind: Any = type(error)
    module = str(kind.__module__).partition(".")[0]
    if module == "builtins" and issubclass(kind, OSError):
        return _passes_os_errors(book)
    library = by_package().get(module)
    return library is not None and library.driver is not None


def _passes_os_errors(book: PoolLedger) -> bool:
    """Whether the driver of a pool lets errors of a socket pass as they are."""
    for library in libraries():
        driver = library.driver
        if driver is not None and driver.raises_os_errors:
            named = f"+{driver.name}" in (book.url or "")
            if named or book.kind in library.options:
                return True
    return False
