"""The facts of a pool's connections, for the lifetime of their records."""

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
    """The connections of one pool. The ledger's table has their facts, by record."""

    def __init__(self, table: dict[int, ConnectionFacts]) -> None:
        self.table = table
        self._records: dict[int, ref[Any]] = {}
        """Weak references whose callbacks remove the facts of a collected record."""

    def opened(self, dbapi_connection: Any, record: Any, connect_s: float) -> None:
        """Record a newly opened connection; ``connect_s`` is in seconds."""
        self._remember(record, facts_of(dbapi_connection, monotonic(), connect_s))

    def add_existing(self, proxy: Any) -> ConnectionFacts:
        """Record a connection that was opened before the pool was instrumented."""
        record = proxy._connection_record
        age = max(0.0, time.time() - record.starttime)
        facts = facts_of(proxy.dbapi_connection, monotonic() - age, None)
        return self._remember(record, facts)

    def _remember(self, record: Any, facts: ConnectionFacts) -> ConnectionFacts:
        key, table, records = id(record), self.table, self._records
        table[key] = facts
        records[key] = ref(record, _make_forget(key, table, records))
        return facts


def _make_forget(
    key: int, table: dict[int, ConnectionFacts], records: dict[int, Any]
) -> Callable[[Any], None]:
    def forget(dead: Any) -> None:
        if records.get(key) is dead:
            del records[key]
            table.pop(key, None)

    return forget


def _ref_with_callback(proxy: Any) -> Callable[[], Any]:
    return ref(proxy, _no_op)


def _no_op(_: object) -> None:
    """Do nothing."""


# A weak reference that is dead when the connection of a dropped proxy is returned. From
# Python 3.15 on that takes a callback if the proxy was in a cycle (cpython gh-135552).
proxy_ref: Callable[[Any], Callable[[], Any]] = (
    _ref_with_callback if sys.version_info >= (3, 15) else ref
)
