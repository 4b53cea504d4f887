"""Records the statements sent over the held connections of an asyncpg pool.

asyncpg sends everything through a few methods of the connection, including the
``BEGIN`` and ``COMMIT`` of ``transaction()``; after each of them the driver knows
whether a transaction is open. Two exceptions are not seen: the rows of a cursor and the
calls of a prepared statement. A hold with one of those is marked as streaming.
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
from poolwatch.ledger.checkout import MAX_STATEMENT_LENGTH, Checkout
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.capture import CallSites

_STATEMENT_METHODS = ("_execute", "_executemany", "_copy_in", "_copy_out")
"""Coroutine functions whose first argument is a statement."""


class StatementHooks(statements.StatementHooks):
    """Wraps and restores the connections of one pool."""

    def __init__(
        self,
        hold_of: Callable[[Any], Checkout | None],
        on_closed: Callable[[Any], None],
        sites: CallSites,
        guard: Guard,
    ) -> None:
        """``hold_of`` returns the hold of a connection; ``on_closed`` is called when a
        connection is closed.
        """
        super().__init__(sites, guard)
        self._hold_of = hold_of
        self._on_closed = on_closed
        self._subclasses: dict[type, type] = {}

    def attach(self, connection: Any) -> None:
        """Attach to a connection, unless its class cannot be subclassed."""
        base = original_class(type(connection))
        with suppress(TypeError):
            subclassed = self._subclasses.get(base)
            if subclassed is None:
                subclassed = self._subclasses[base] = subclass(
                    base, **self._methods(base)
                )
            connection.__class__ = subclassed

    def detach(self, connection: Any) -> None:
        """Restore the class of a connection."""
        for subclassed in self._subclasses.values():
            restore_class(connection, subclassed)

    def _methods(self, base: Any) -> dict[str, Method]:
        """Make the wrappers for methods of ``base``.

        ``base`` is looked up at each call, since another tool may wrap its methods.
        """
        record, on_closed = self._record, self._on_closed

        def execute(connection: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
            if args:  # it calls _execute(), which is wrapped
                return base.execute(connection, query, *args, **kwargs)
            return record(
                lambda: base.execute(connection, query, **kwargs), connection, query
            )

        def prepare(connection: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
            return record(
                lambda: base.prepare(connection, query, *args, **kwargs),
                connection,
                query,
                streams=True,
            )

        def cursor(connection: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
            if self._statement_begun(connection, query, frame_at(1), streams=True):
                self._statement_ended(connection)
            return base.cursor(connection, query, *args, **kwargs)

        def copy_records_to_table(
            connection: Any, table_name: Any, **kwargs: Any
        ) -> Any:
            return record(
                lambda: base.copy_records_to_table(connection, table_name, **kwargs),
                connection,
                f"COPY {table_name} FROM STDIN",
            )

        def _cleanup(connection: Any) -> None:
            on_closed(connection)
            base._cleanup(connection)

        overrides = (execute, prepare, cursor, copy_records_to_table, _cleanup)
        methods: dict[str, Method] = {each.__name__: each for each in overrides}
        return methods | {name: self._method(base, name) for name in _STATEMENT_METHODS}

    def _method(self, base: Any, name: str) -> Callable[..., Any]:
        record = self._record

        def method(connection: Any, statement: Any, *args: Any, **kwargs: Any) -> Any:
            return record(
                lambda: getattr(base, name)(connection, statement, *args, **kwargs),
                connection,
                statement,
            )

        return method

    async def _record(
        self,
        call: Callable[[], Any],
        connection: Any,
        statement: Any,
        *,
        streams: bool = False,
    ) -> Any:
        if not self._statement_begun(
            connection, statement, frame_at(1), streams=streams
        ):
            return await call()
        try:
            return await call()
        finally:
            self._statement_ended(connection)

    def _statement_begun(
        self, connection: Any, statement: Any, caller: Any, *, streams: bool
    ) -> bool:
        """Record a statement; False if its connection is not held."""
        if self._guard.tripped:
            return False
        try:
            hold = self._hold_of(connection)
            if hold is None:
                return False
            self.begin(hold, str(statement)[:MAX_STATEMENT_LENGTH], caller, streams)
        except Exception as error:  # noqa: BLE001 - the application must go on
            self._guard.failed(error)
            return False
        return True

    def _statement_ended(self, connection: Any) -> None:
        try:
            hold = self._hold_of(connection)
            if hold is not None and hold.usage is not None:
                protocol = connection._protocol  # None if it was aborted meanwhile
                hold.usage.ended(bool(protocol and protocol.is_in_transaction()))
        except Exception as error:  # noqa: BLE001 - the application must go on
            self._guard.failed(error)
