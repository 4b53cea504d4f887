"""The statements that are sent through the held connections of an asyncpg pool.

Everything that asyncpg sends for its own API goes through a few methods of the
connection, the ``BEGIN`` and ``COMMIT`` of ``transaction()`` included; after each of
them the driver knows whether a transaction is open. Only the rows of a cursor and the
calls of a prepared statement do not: a hold that has one of those is said to stream.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from sys import _getframe as frame_at
from typing import Any

from poolwatch.adapters import statements
from poolwatch.adapters.patching import (
    Method,
    original_class,
    restore_class,
    subclass,
)
from poolwatch.ledger.checkout import LIMIT, Checkout
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.capture import CallSites

_NOTED = ("_execute", "_executemany", "_copy_in", "_copy_out")
"""Coroutine functions whose first argument is a statement."""


class StatementHooks(statements.StatementHooks):
    """What is attached to the connections of one pool, and how it comes off again."""

    def __init__(
        self,
        hold_of: Callable[[Any], Checkout | None],
        ended: Callable[[Any], None],
        sites: CallSites,
        guard: Guard,
    ) -> None:
        """``hold_of`` finds the hold of a connection; ``ended`` is called when a
        connection is closed.
        """
        super().__init__(sites, guard)
        self._hold_of = hold_of
        self._ended = ended
        self._kinds: dict[type, type] = {}

    def adopt(self, connection: Any) -> None:
        """Attach to a connection, unless its class allows no such thing."""
        base = original_class(type(connection))
        with suppress(TypeError):
            ours = self._kinds.get(base)
            if ours is None:
                ours = self._kinds[base] = subclass(base, **self._methods(base))
            connection.__class__ = ours

    def release(self, connection: Any) -> None:
        """Give a connection its class again."""
        for ours in self._kinds.values():
            restore_class(connection, ours)

    def _methods(self, base: Any) -> dict[str, Method]:
        """The stand-ins for methods of ``base``.

        ``base`` is asked for its method at each call: another tool may wrap it.
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
            if self._sent(connection, query, frame_at(1), streams=True):
                self._answered(connection)
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
        methods: dict[str, Method] = {each.__name__: each for each in made}
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
        if not self._sent(connection, statement, frame_at(1), streams=streams):
            return await call()
        try:
            return await call()
        finally:
            self._answered(connection)

    def _sent(
        self, connection: Any, statement: Any, caller: Any, *, streams: bool
    ) -> bool:
        """Record a statement; False if its connection is not held."""
        if self._guard.tripped:
            return False
        try:
            hold = self._hold_of(connection)
            if hold is None:
                return False
            self.begin(hold, str(statement)[:LIMIT], caller, streams)
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self._guard.failed(error)
            return False
        return True

    def _answered(self, connection: Any) -> None:
        try:
            hold = self._hold_of(connection)
            if hold is not None and hold.usage is not None:
                protocol = connection._protocol  # None if it was aborted meanwhile
                hold.usage.ended(bool(protocol and protocol.is_in_transaction()))
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self._guard.failed(error)
