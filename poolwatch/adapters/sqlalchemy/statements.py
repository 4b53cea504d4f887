"""What is sent through a held connection, seen at the dialect: the last statement and
its place, the time in SQL, and the time that a transaction stood open meanwhile.

Wrapped on the dialect of the one engine, because SQLAlchemy's own cursor events cost
every statement of an engine about 20 µs, whatever their listeners do (an engine with
events joins its dispatch into each new Connection).
"""

from __future__ import annotations

from asyncio import Task, current_task
from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable
from sys import _getframe as frame_at
from typing import Any
from weakref import ref

from sqlalchemy.engine import Dialect

from poolwatch.ledger.checkout import LIMIT, Checkout, Usage
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.capture import CallSites, Path
from poolwatch.stacks.greenlets import current_greenlet
from poolwatch.stacks.holder import get_ident

_STATEMENTS = ("do_execute", "do_executemany", "do_execute_no_params")
_ENDS = ("do_commit", "do_rollback")
_PLUMBING = 5
"""Frames between us and the application, at least."""


class StatementHooks:
    """What is attached to one dialect, and how it comes off again."""

    def __init__(
        self, dialect: Dialect, book: PoolLedger, sites: CallSites, guard: Guard
    ) -> None:
        self._dialect = ref(dialect)
        # Not the book: it leads to the hooks of the pool, and a dialect may be kept,
        # by a compiled statement say, when engine and pool are gone.
        self._shared, self._holds = book.shared, book.holds
        self._sites = sites
        self._guard = guard
        self._ours: dict[str, Callable[[], Any]] = {}
        """Weak references: what is wrapped leads to the dialect, which is to go with
        its engine.
        """
        for name in _STATEMENTS:
            bare = name == "do_execute_no_params"
            self._wrap(name, self._bare_wrapper if bare else self._wrapper)
        for name in _ENDS:
            self._wrap(name, self._end_wrapper)

    def _wrap(self, name: str, make: Callable[[Any], Any]) -> None:
        dialect = self._dialect()
        if dialect is not None:
            around = dialect.__dict__.get(name)
            ours: Any = make(getattr(dialect, name))
            if around is not None:
                ours.around = around
            self._ours[name] = ref(ours)
            setattr(dialect, name, ours)

    def remove(self) -> None:
        """Take the wrappers off where they are the outermost."""
        dialect = self._dialect()
        for name, reference in self._ours.items():
            ours = reference()
            if (
                dialect is None
                or ours is None
                or dialect.__dict__.get(name) is not ours
            ):
                continue  # under somebody else's wrapper it passes through
            around = getattr(ours, "around", None)
            if around is None:
                delattr(dialect, name)
            else:
                setattr(dialect, name, around)
        self._ours.clear()

    def _wrapper(self, original: Callable[..., None]) -> Callable[..., None]:  # noqa: C901 - written out
        """Around a method that takes parameters.

        This runs at every statement: what it needs is a local of this closure, and no
        call is made that can be spared.
        """
        guard, shared, holds = self._guard, self._shared, self._holds
        sites, across_greenlets = self._sites, self._across_greenlets
        capture, begun = sites.capture, self._begun

        def execute(  # noqa: C901 - every call would cost
            cursor: Any, statement: str, parameters: Any, context: Any = None
        ) -> None:
            usage = None
            if context is not None and not guard.tripped:
                try:
                    proxy = context.root_connection._dbapi_connection
                    key = proxy if shared else proxy._connection_record
                    hold = holds.get(id(key))
                    if hold is not None:
                        usage = hold.usage or begun(hold, proxy)
                        # do not keep a megabyte alive
                        usage.statement = (
                            statement if len(statement) <= LIMIT else statement[:LIMIT]
                        )
                        if getattr(context, "_is_server_side", False):
                            usage.streamed = True
                        if hold.task is None:
                            walk = capture
                            if hold.holder.ident != get_ident():
                                usage.by_others = True
                        else:
                            walk = across_greenlets
                            if not hold.task.is_of(_task()):
                                usage.by_others = True
                        usage.path = walk(_caller())
                        usage.begin()
                except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
                    guard.failed(error)
                    usage = None
            if usage is None:
                original(cursor, statement, parameters, context)
                return
            try:
                original(cursor, statement, parameters, context)
            finally:
                usage.ended(usage.transactional)

        return execute

    def _bare_wrapper(self, original: Callable[..., None]) -> Callable[..., None]:
        """Around the method for statements without parameters."""
        run = self._wrapper(
            lambda cursor, sql, _, context: original(cursor, sql, context)
        )

        def execute(cursor: Any, statement: str, context: Any = None) -> None:
            run(cursor, statement, None, context)

        return execute

    def _end_wrapper(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        """Around a commit or a rollback; the pool calls it too, at each return."""
        shared, holds = self._shared, self._holds

        def end(connection: Any) -> None:
            key = connection if shared else getattr(connection, _RECORD, None)
            hold = holds.get(id(key))
            usage = None if hold is None else hold.usage
            if usage is None or usage.idle_since is None:
                original(connection)
                return
            usage.begin()
            try:
                original(connection)
            finally:
                usage.ended(False)

        return end

    @staticmethod
    def _begun(hold: Checkout, proxy: Any) -> Usage:
        """Begin to record the statements of a hold."""
        usage = hold.usage = Usage()
        if getattr(proxy.dbapi_connection, "autocommit", False) is True:
            usage.transactional = False
        return usage

    def _across_greenlets(self, frame: Any) -> Path:
        greenlet = current_greenlet()
        if greenlet is None or greenlet.parent is None:
            return self._sites.capture(frame)
        return self._sites.capture_across_greenlets(frame, greenlet)


_RECORD = "_connection_record"


def _caller() -> Any:
    """The frame to begin with: near to the application, never beyond its own."""
    try:
        return frame_at(_PLUMBING)
    except ValueError:  # called by something other than SQLAlchemy
        return frame_at(1)


def _task() -> Task[Any] | None:
    """The task that is running in this thread."""
    loop = running_loop()
    return None if loop is None else current_task(loop)
