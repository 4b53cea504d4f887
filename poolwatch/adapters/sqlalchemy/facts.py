"""The facts of a pool's connections, for as long as their records live."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from time import monotonic
from typing import Any
from weakref import ref

from poolwatch.adapters.connection_facts import facts_of
from poolwatch.ledger.checkout import ConnectionFacts


class Connections:
    """The connections of one pool. Their facts are in the ledger's table, by record."""

    def __init__(self, table: dict[int, ConnectionFacts]) -> None:
        self.table = table
        self._records: dict[int, ref[Any]] = {}
        """Their callbacks forget the facts of a connection that is gone."""

    def opened(self, dbapi_connection: Any, record: Any, took: float) -> None:
        """Note a connection that was opened just now, in so many seconds."""
        self._remember(record, facts_of(dbapi_connection, monotonic(), took))

    def meet(self, proxy: Any) -> ConnectionFacts:
        """Note a connection that was opened before the pool was instrumented."""
        record = proxy._connection_record
        age = max(0.0, time.time() - record.starttime)
        facts = facts_of(proxy.dbapi_connection, monotonic() - age, None)
        return self._remember(record, facts)

    def _remember(self, record: Any, facts: ConnectionFacts) -> ConnectionFacts:
        key, table, records = id(record), self.table, self._records
        table[key] = facts
        records[key] = ref(record, _forgetting(key, table, records))
        return facts


def _forgetting(
    key: int, table: dict[int, ConnectionFacts], records: dict[int, Any]
) -> Callable[[Any], None]:
    def forget(dead: Any) -> None:
        if records.get(key) is dead:
            del records[key]
            table.pop(key, None)

    return forget


def _cleared_early(proxy: Any) -> Callable[[], Any]:
    return ref(proxy, _no_op)


def _no_op(_: object) -> None:
    """Do nothing."""


# A weak reference that is dead by the time a dropped proxy comes back. From Python 3.15
# on it needs a callback for that, if the proxy was in a cycle (cpython gh-135552).
watch: Callable[[Any], Callable[[], Any]] = (
    _cleared_early if sys.version_info >= (3, 15) else ref
)
