"""The last statement of a hold, and its time in SQL, at the dialect.

Wrapped on the dialect of the one engine, because SQLAlchemy's own cursor events cost
every statement of an engine about 20 µs, whatever their listeners do (an engine with
events joins its dispatch into each new Connection).
"""

from __future__ import annotations

from asyncio import Task, current_task
from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable
from threading import get_ident
from time import monotonic
from typing import Any
from weakref import ref

from sqlalchemy.engine import Dialect

from poolwatch.guard import Guard
from poolwatch.ledger import PoolBook, Usage
from poolwatch.masking import LIMIT

_METHODS = ("do_execute", "do_executemany", "do_execute_no_params")


class StatementHooks:
    """What is attached to one dialect, and how it comes off again."""

    def __init__(self, dialect: Dialect, book: PoolBook, guard: Guard) -> None:
        self._dialect = ref(dialect)
        self._book = book
        self._guard = guard
        self._ours: dict[str, tuple[Any, Any]] = {}
        for name in _METHODS:
            around = dialect.__dict__.get(name)
            make = self._bare_wrapper if name == _METHODS[2] else self._wrapper
            ours = make(getattr(dialect, name))
            self._ours[name] = ours, around
            setattr(dialect, name, ours)

    def remove(self) -> None:
        """Take the wrappers off where they are the outermost."""
        dialect = self._dialect()
        for name, (ours, around) in self._ours.items():
            if dialect is None or dialect.__dict__.get(name) is not ours:
                continue  # under somebody else's wrapper it passes through
            if around is None:
                delattr(dialect, name)
            else:
                setattr(dialect, name, around)
        self._ours.clear()

    def _wrapper(self, original: Callable[..., None]) -> Callable[..., None]:
        """Around a method that takes parameters. This runs at every statement."""
        guard, begin = self._guard, self._begin

        def execute(
            cursor: Any, statement: str, parameters: Any, context: Any = None
        ) -> None:
            usage = None if guard.tripped else begin(statement, context)
            if usage is None:
                original(cursor, statement, parameters, context)
                return
            began = usage.began = monotonic()
            try:
                original(cursor, statement, parameters, context)
            finally:
                usage.in_sql += monotonic() - began
                usage.began = None

        return execute

    def _bare_wrapper(self, original: Callable[..., None]) -> Callable[..., None]:
        """Around the method for statements without parameters."""
        run = self._wrapper(
            lambda cursor, sql, _, context: original(cursor, sql, context)
        )

        def execute(cursor: Any, statement: str, context: Any = None) -> None:
            run(cursor, statement, None, context)

        return execute

    def _begin(self, statement: str, context: Any) -> Usage | None:
        """Note the statement on the hold of its connection; None if there is none."""
        try:
            if context is None:  # somebody calls the dialect by itself
                return None
            proxy = context.root_connection._dbapi_connection
            shared = self._book.shared
            key = id(proxy) if shared else id(proxy._connection_record)
            hold = self._book.holds.get(key)
            if hold is None:
                return None
            usage = hold.usage
            if usage is None:
                usage = hold.usage = Usage()
            # do not keep a megabyte alive
            usage.statement = (
                statement if len(statement) <= LIMIT else statement[:LIMIT]
            )
            if hold.task is not None:
                usage.by_others = usage.by_others or not hold.task.is_of(_task())
            elif hold.holder.ident != get_ident():
                usage.by_others = True
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self._guard.failed(error)
            return None
        return usage


def _task() -> Task[Any] | None:
    """The task that is running in this thread."""
    loop = running_loop()
    return None if loop is None else current_task(loop)
