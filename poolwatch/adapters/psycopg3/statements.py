"""Records the statements sent over the held connections of a psycopg_pool pool.

psycopg sends everything through ``connection.wait``, which takes a generator. The
generator of a statement has the query among its arguments. So one wrapper on the
instance records all statements, including those of cursors and transactions, and the
class of the connection stays unchanged. libpq knows whether a transaction is open
without asking the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import iscoroutinefunction
from sys import _getframe as frame_at
from types import FrameType
from typing import Any
from weakref import ref

from psycopg import sql

from poolwatch.adapters import statements
from poolwatch.adapters.patching import Wrapped, unbound
from poolwatch.adapters.psycopg3.contention import (
    MAX_LOOKS,
    waiting_tasks,
    waiting_threads,
)
from poolwatch.ledger.checkout import MAX_STATEMENT_LENGTH, Usage
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.capture import CallSites

_METHOD = "wait"
_ARGUMENTS = {
    "_execute_gen": "query",
    "_executemany_gen_pipeline": "query",
    "_executemany_gen_no_pipeline": "query",
    "_stream_send_gen": "query",
    "_declare_gen": "query",
    "_start_copy_gen": "statement",
}
"""By the generator that sends a statement: the argument with the statement."""
_NOTIFICATIONS = "notifies"
"""Waits for notifications, so the server is idle."""
_IN_TRANSACTION = (2, 3)
"""Values of TransactionStatus: in a transaction, and in a failed transaction."""
_HIDDEN = "?"

Recorder = Callable[[Any], Usage | None]
Waiting = Callable[[Any], Iterator[list[FrameType]]]


class StatementHooks(statements.StatementHooks):
    """Wraps the connections of one pool."""

    def __init__(self, ledger: PoolLedger, sites: CallSites, guard: Guard) -> None:
        super().__init__(sites, guard, ledger.concurrent)
        self._holds = ledger.holds
        self._looks = MAX_LOOKS

    def wrap(self, connection: Any) -> Wrapped:
        """Record the statements of a connection, until the result is unwrapped."""
        is_async = iscoroutinefunction(getattr(type(connection), _METHOD))
        wrapper = self._async_wrapper if is_async else self._wrapper
        wrappers = [wrapper(connection)]
        wrapped = Wrapped(connection, wrappers)
        wrapped.wrap(wrappers)
        return wrapped

    def _wrapper(self, connection: Any) -> Callable[..., Any]:
        """Keep only a weak reference to the connection, so as not to hide a leak."""
        original, reference = unbound(connection, _METHOD), ref(connection)
        record, ended = self._make_recorder(id(connection)), self._ended
        look, find = self._look_for_others, waiting_threads

        def wait(generator: Any, *args: Any, **kwargs: Any) -> Any:
            usage, connection = record(generator), reference()
            if usage is None:
                return original(connection, generator, *args, **kwargs)
            try:
                return original(connection, generator, *args, **kwargs)
            finally:
                if usage.by_others:
                    look(connection, find)
                ended(usage, connection)

        return wait

    def _async_wrapper(self, connection: Any) -> Callable[..., Any]:
        original, reference = unbound(connection, _METHOD), ref(connection)
        record, ended = self._make_recorder(id(connection)), self._ended
        look, find = self._look_for_others, waiting_tasks

        async def wait(generator: Any, *args: Any, **kwargs: Any) -> Any:
            usage, connection = record(generator), reference()
            if usage is None:
                return await original(connection, generator, *args, **kwargs)
            try:
                return await original(connection, generator, *args, **kwargs)
            finally:
                if getattr(getattr(connection, "lock", None), "_waiters", None):
                    look(connection, find)
                ended(usage, connection)

        return wait

    def _make_recorder(self, key: int) -> Recorder:
        """Make the function that runs before psycopg sends something.

        It returns None if nothing is recorded.
        """
        guard, holds, begin = self._guard, self._holds, self.begin

        def record(generator: Any) -> Usage | None:
            hold = holds.get(key)
            if hold is None or guard.tripped:
                return None
            try:
                name = getattr(generator, "__name__", "")
                argument = _ARGUMENTS.get(name)
                if argument is not None:
                    text = _text(_argument_of(generator, argument))
                    return begin(hold, text, frame_at(2))
                usage = hold.usage
                if usage is None or name == _NOTIFICATIONS:
                    return None
                usage.begin()
            except Exception as error:  # noqa: BLE001 - the application must go on
                guard.failed(error)
                return None
            return usage

        return record

    def _look_for_others(self, connection: Any, find: Waiting) -> None:
        """Record the code that waits for the end of the running statement."""
        try:
            hold = self._holds.get(id(connection))
            if hold is None or hold.usage is None or self._looks <= 0:
                return
            self._looks -= 1
            running = hold.usage.stack
            for frames in find(connection):
                self._concurrent.note(hold, running, self._sites.capture_frames(frames))
        except Exception as error:  # noqa: BLE001 - the application must go on
            self._guard.failed(error)

    def _ended(self, usage: Usage, connection: Any) -> None:
        try:
            usage.ended(connection.pgconn.transaction_status in _IN_TRANSACTION)
        except Exception as error:  # noqa: BLE001 - the application must go on
            self._guard.failed(error)


def _argument_of(generator: Any, argument: str) -> Any:
    """An argument of a generator that has not started."""
    frame = getattr(generator, "gi_frame", None)
    return None if frame is None else frame.f_locals.get(argument)


def _text(query: Any) -> str | None:
    """The text of a statement, without running code of the application.

    Truncated, so as not to keep a megabyte alive.
    """
    if isinstance(query, str):
        return (
            query
            if len(query) <= MAX_STATEMENT_LENGTH
            else query[:MAX_STATEMENT_LENGTH]
        )
    if isinstance(query, bytes):
        return query[:MAX_STATEMENT_LENGTH].decode("utf-8", "replace")
    if isinstance(query, sql.Composable):
        return _composed(query)[:MAX_STATEMENT_LENGTH]
    strings = getattr(query, "strings", None)  # a template string of Python 3.14
    return (
        _HIDDEN.join(strings)[:MAX_STATEMENT_LENGTH]
        if isinstance(strings, tuple)
        else None
    )


def _composed(part: sql.Composable) -> str:
    """Composed SQL without its values."""
    inside: Any = part._obj
    if isinstance(part, sql.SQL):
        return str(inside)
    if isinstance(part, sql.Identifier):
        return ".".join(f'"{name}"' for name in inside)
    if isinstance(part, sql.Composed):
        return "".join(_composed(each) for each in inside)
    return _HIDDEN
