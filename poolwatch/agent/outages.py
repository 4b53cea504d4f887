"""Logs once when a server stops answering, and once when it answers again.

The outage is reported by a pool that cannot connect, or by the reader of the server
view. This module opens no connection.
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

_MAX_OUTAGES = 64


@dataclass(frozen=True, slots=True)
class _Outage:
    began: float
    pool: str
    connects: int
    """Connections the pool had opened; one more means the server is back."""


class Outages:
    """The servers of this process that do not answer."""

    def __init__(self) -> None:
        self._down: dict[str, _Outage] = {}
        """By server, or by pool where the server is unknown."""

    def refused(self, pool: PoolLedger, error: BaseException) -> None:
        """Check the error of a failed checkout: is the server down?"""
        if not _is_driver_error(error, pool):
            return
        from poolwatch.errors import ServerDownError
        from poolwatch.postgres.errors import as_failure

        failure = as_failure(error, alone=True)
        if isinstance(failure, ServerDownError):
            self.down(pool, failure.words)

    def down(self, pool: PoolLedger, words: str) -> None:
        """Log that the server of a pool does not answer, once per outage."""
        server, new = _server(pool), _Outage(time.monotonic(), pool.id, pool.connects)
        if len(self._down) < _MAX_OUTAGES and self._down.setdefault(server, new) is new:
            log().warning(
                "PostgreSQL at %s does not answer: %s (pool %s)",
                one_line(server),
                words,
                one_line(repr(pool.name)),
            )

    def answers(self, pool: PoolLedger) -> None:
        """Log that the server of a pool answers again, if there was an outage."""
        outage = self._down.pop(_server(pool), None) if self._down else None
        if outage is not None:
            log().warning(
                "PostgreSQL at %s answers again, after %s",
                one_line(_server(pool)),
                duration(time.monotonic() - outage.began),
            )

    def check(self, pools: Iterable[PoolLedger]) -> None:
        """Log the servers that answer again: a pool has opened a connection since."""
        if not self._down:
            return
        by_id = {pool.id: pool for pool in pools}
        for server, outage in list(self._down.items()):
            pool = by_id.get(outage.pool)
            if pool is None:
                self._down.pop(server, None)
            elif pool.connects > outage.connects:
                self.answers(pool)


def _server(pool: PoolLedger) -> str:
    return server_in(pool.url) or f"the address of pool {pool.name}"


def _is_driver_error(error: BaseException, pool: PoolLedger) -> bool:
    """Whether an error is a driver's: ``str()`` of others may run other code."""
    kind: Any = type(error)
    module = str(kind.__module__).partition(".")[0]
    if module == "builtins" and issubclass(kind, OSError):
        return _driver_raises_os_errors(pool)
    library = by_package().get(module)
    return library is not None and library.driver is not None


def _driver_raises_os_errors(pool: PoolLedger) -> bool:
    """Whether the driver of a pool raises socket errors as plain OSError."""
    for library in libraries():
        driver = library.driver
        if driver is not None and driver.raises_os_errors:
            named = f"+{driver.name}" in (pool.url or "")
            if named or pool.kind in library.options:
                return True
    return False
