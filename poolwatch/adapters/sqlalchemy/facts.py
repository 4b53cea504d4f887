"""The facts of a pool's connections, for the lifetime of their records."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Container, Iterator
from functools import partial
from time import monotonic
from typing import Any
from weakref import ref

from poolwatch.adapters.adoption import Unheld
from poolwatch.adapters.connection_facts import facts_of
from poolwatch.ledger.checkout import ConnectionFacts


class Connections:
    """The connections of one pool. The ledger's table has their facts, by record."""

    def __init__(self, table: dict[int, ConnectionFacts]) -> None:
        self.table = table
        self.records: dict[int, ref[Any]] = {}
        """Weak references whose callbacks remove the facts of a collected record."""
        self._shared: dict[int, Callable[[], Any]] = {}
        """Weak references to proxies that a pool of shared connections has lent."""

    def opened(
        self, dbapi_connection: Any, record: Any, connect_s: float
    ) -> ConnectionFacts:
        """Record a newly opened connection; ``connect_s`` is in seconds."""
        facts = facts_of(dbapi_connection, monotonic(), connect_s)
        return self._remember(record, facts)

    def add_existing(self, proxy: Any, record: Any = None) -> ConnectionFacts:
        """Record a connection that was opened before the pool was instrumented.

        Another thread may return the proxy meanwhile: then give its ``record``.
        """
        record = record or proxy._connection_record
        age = max(0.0, time.time() - record.starttime)
        facts = facts_of(proxy.dbapi_connection, monotonic() - age, None)
        return self._remember(record, facts)

    def meet(self, proxy: Any, *, shared: bool) -> None:
        """Take note of a proxy that may have been checked out unseen."""
        record = proxy._connection_record
        if record is None:  # it was returned, or detached
            return
        if id(record) not in self.table:
            self.add_existing(proxy, record)
        if shared:
            self._shared[id(proxy)] = proxy_ref(proxy)

    def unheld(
        self, holds: Container[int], returning: Container[int]
    ) -> Iterator[Unheld]:
        """The checkouts without a hold; ``returning`` are the ids of records."""
        for key, reference in list(self.records.items()):
            record = reference()
            proxy = None if record is None else record.fairy_ref
            if key in holds or key in returning or self._shared or proxy is None:
                continue
            if proxy() is not None:
                is_out = partial(_has_proxy, reference, proxy)
                yield Unheld(key, id(proxy), proxy, self.table.get(key), is_out)
        for key, proxy in list(self._shared.items()):
            record = getattr(proxy(), "_connection_record", None)
            if record is None:
                del self._shared[key]
            elif key not in holds:
                facts, is_out = self.table.get(id(record)), partial(_is_lent, proxy)
                yield Unheld(key, id(proxy), proxy, facts, is_out)

    def _remember(self, record: Any, facts: ConnectionFacts) -> ConnectionFacts:
        key, table, records = id(record), self.table, self.records
        table[key] = facts
        records[key] = ref(record, _make_forget(key, table, records))
        return facts


def _has_proxy(record: ref[Any], proxy: Callable[[], Any]) -> bool:
    return getattr(record(), "fairy_ref", None) is proxy and proxy() is not None


def _is_lent(proxy: Callable[[], Any]) -> bool:
    return getattr(proxy(), "_connection_record", None) is not None


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
