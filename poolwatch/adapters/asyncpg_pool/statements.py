"""What is sent through a held asyncpg connection: the last statement and its place, the
time in SQL, and the time that a transaction stood open meanwhile.

Everything that asyncpg sends for its own API goes through a few methods of the
connection, the ``BEGIN`` and ``COMMIT`` of ``transaction()`` included; after each of
them the driver knows whether a transaction is open. Only the rows of a cursor and the
calls of a prepared statement go past: whoever takes one of those is said to stream.
"""

from __future__ import annotations

from asyncio import current_task
from collections.abc import Callable
from contextlib import suppress
from sys import _getframe as frame_at
from typing import Any

from poolwatch.adapters.asyncpg_pool.classes import give_back, subclass, theirs
from poolwatch.ledger.checkout import LIMIT, Checkout, Usage
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.capture import CallSites

_NOTED = ("_execute", "_executemany", "_copy_in", "_copy_out")
"""Coroutine functions whose first argument is a statement."""


class StatementHooks:
    """What is attached to the connections of one pool, and how it comes off again."""

    def __init__(
        self,
        hold_of: Callable[[Any], Checkout | None],
        ended: Callable[[Any], None],
        sites: CallSites,
        guard: Guard,
    ) -> None:
        """Take how to find the hold of a connection, and who is told of its end."""
        self._hold_of = hold_of
        self._ended = ended
        self._sites = sites
        self._guard = guard
        self._kinds: dict[type, type] = {}

    def adopt(self, connection: Any) -> None:
        """Attach to a connection; one that cannot be changed goes unseen."""
        base = theirs(type(connection))
        with suppress(
            TypeError
        ):  # the connection_class of the pool allows no such thing
            ours = self._kinds.get(base)
            if ours is None:
                ours = self._kinds[base] = subclass(base, self._methods(base))
            connection.__class__ = ours

    def release(self, connection: Any) -> None:
        """Give a connection its class again."""
        for ours in self._kinds.values():
            give_back(connection, ours)

    def _methods(self, base: Any) -> dict[str, Any]:
        """What stands before the methods of ``base``; those are looked up when they are
        called, since somebody may have wrapped them meanwhile.
        """
        noted, ended = self._noted, self._ended

        def execute(connection: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
            if args:  # goes on to _execute()
                return base.execute(connection, query, *args, **kwargs)
            return noted(
                lambda: base.execute(connection, query, **kwargs), connection, query
            )

        def prepare(connection: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
            return noted(
                lambda: base.prepare(connection, query, *args, **kwargs),
                connection,
                query,
                streams=True,
            )

        def cursor(connection: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
            if self._begin(connection, query, frame_at(1), streams=True):
                self._end(connection)
            return base.cursor(connection, query, *args, **kwargs)

        def copy_records_to_table(
            connection: Any, table_name: Any, **kwargs: Any
        ) -> Any:
            return noted(
                lambda: base.copy_records_to_table(connection, table_name, **kwargs),
                connection,
                f"COPY {table_name} FROM STDIN",
            )

        def _cleanup(connection: Any) -> None:
            ended(connection)
            base._cleanup(connection)

        made = (execute, prepare, cursor, copy_records_to_table, _cleanup)
        methods: dict[str, Any] = {each.__name__: each for each in made}
        return methods | {name: self._method(base, name) for name in _NOTED}

    def _method(self, base: Any, name: str) -> Callable[..., Any]:
        noted = self._noted

        def method(connection: Any, statement: Any, *args: Any, **kwargs: Any) -> Any:
            return noted(
                lambda: getattr(base, name)(connection, statement, *args, **kwargs),
                connection,
                statement,
            )

        return method

    async def _noted(
        self,
        call: Callable[[], Any],
        connection: Any,
        statement: Any,
        *,
        streams: bool = False,
    ) -> Any:
        if not self._begin(connection, statement, frame_at(1), streams=streams):
            return await call()
        try:
            return await call()
        finally:
            self._end(connection)

    def _begin(
        self, connection: Any, statement: Any, caller: Any, *, streams: bool
    ) -> bool:
        if self._guard.tripped:
            return False
        try:
            hold = self._hold_of(connection)
            if hold is None:
                return False
            usage = hold.usage
            if usage is None:
                usage = hold.usage = Usage()
            # do not keep a megabyte alive
            usage.statement = str(statement)[:LIMIT]
            usage.path = self._sites.capture(caller)
            usage.streamed = usage.streamed or streams
            if hold.task is not None and not hold.task.is_of(current_task()):
                usage.by_others = True
            usage.begin()
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self._guard.failed(error)
            return False
        return True

    def _end(self, connection: Any) -> None:
        try:
            hold = self._hold_of(connection)
            if hold is not None and hold.usage is not None:
                protocol = connection._protocol  # None if it was aborted meanwhile
                hold.usage.ended(bool(protocol and protocol.is_in_transaction()))
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self._guard.failed(error)
