"""Records the statements sent over a held connection: the last statement and its call
site, the time in SQL, and the time that the transaction stayed idle.

The methods are wrapped on the engine's dialect. SQLAlchemy's own cursor events add
about 20 µs to every statement of an engine, whatever the listeners do (an engine with
events joins its dispatch into each new Connection).
"""

from __future__ import annotations

from asyncio import Task, current_task
from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable
from sys import _getframe as frame_at
from typing import TYPE_CHECKING, Any
from weakref import ref

from sqlalchemy.engine import Dialect

from poolwatch.ledger.checkout import (
    ADVISORY,
    MAX_LOCK_STATEMENT,
    MAX_STATEMENT_LENGTH,
    Checkout,
    Usage,
)
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.capture import CallSites, CapturedStack
from poolwatch.stacks.greenlets import current_greenlet
from poolwatch.stacks.holder import get_ident

if TYPE_CHECKING:
    from poolwatch.adapters.sqlalchemy.comments import Comments

_STATEMENTS = ("do_execute", "do_executemany", "do_execute_no_params")
_TRANSACTION_ENDS = ("do_commit", "do_rollback")
_TWO_PHASE_ENDS = ("do_prepare_twophase", "do_commit_twophase", "do_rollback_twophase")
_SQLALCHEMY_FRAMES = 5
"""Minimum number of frames between our wrapper and the application."""


class StatementHooks:
    """Wraps and restores the methods of one dialect."""

    def __init__(
        self, dialect: Dialect, ledger: PoolLedger, sites: CallSites, guard: Guard
    ) -> None:
        self._dialect = ref(dialect)
        # Not the ledger, which refers to the pool's hooks: the dialect may outlive
        # engine and pool, for example in a compiled statement.
        self._shared, self._holds = ledger.shared, ledger.holds
        ledger.records_statements = True
        self._concurrent = ledger.concurrent
        self._sites = sites
        self._guard = guard
        self._wrappers: dict[str, Callable[[], Any]] = {}
        """Weak references: a wrapper refers to the dialect, which must be freed with
        its engine.
        """
        self._comments: Comments | None = None
        for name in _STATEMENTS:
            bare = name == "do_execute_no_params"
            self._wrap(name, self._bare_wrapper if bare else self._wrapper)
        for name in _TRANSACTION_ENDS:
            self._wrap(name, self._end_wrapper)
        for name in _TWO_PHASE_ENDS:
            self._wrap(name, self._two_phase_wrapper)

    def _wrap(self, name: str, make: Callable[[Any], Any]) -> None:
        dialect = self._dialect()
        if dialect is not None:
            previous = dialect.__dict__.get(name)
            wrapper: Any = make(getattr(dialect, name))
            if previous is not None:
                wrapper.previous = previous
            self._wrappers[name] = ref(wrapper)
            setattr(dialect, name, wrapper)

    def comment(self, on: bool) -> None:
        """Have each statement carry a comment, or not."""
        dialect = self._dialect()
        if on is (self._comments is not None) or dialect is None:
            return
        comments = self._comments = self._make_comments(dialect) if on else None
        for name in _STATEMENTS:
            wrapper = self._wrappers[name]()
            if wrapper is not None:
                wrapper.comment(comments)

    def _make_comments(self, dialect: Dialect) -> Comments:
        from poolwatch.adapters.sqlalchemy.comments import Comments

        formats = dialect.paramstyle in ("format", "pyformat")
        # SQLAlchemy knows the drivers that format in another way
        doubles = getattr(dialect.identifier_preparer, "_double_percents", formats)
        return Comments(self._across_greenlets, self._hold_of, doubles)

    def _hold_of(self, connection: Any) -> Checkout | None:
        """The hold of a SQLAlchemy connection, if it is known."""
        proxy = connection._dbapi_connection
        key = proxy if self._shared else proxy._connection_record
        return self._holds.get(id(key))

    def remove(self) -> None:
        """Remove the wrappers, except where another tool has wrapped them."""
        self.comment(False)
        dialect = self._dialect()
        for name, reference in self._wrappers.items():
            wrapper = reference()
            if (
                dialect is None
                or wrapper is None
                or dialect.__dict__.get(name) is not wrapper
            ):
                continue  # another tool has wrapped it: calls pass through
            previous = getattr(wrapper, "previous", None)
            if previous is None:
                delattr(dialect, name)
            else:
                setattr(dialect, name, previous)
        self._wrappers.clear()

    def _wrapper(  # noqa: C901 - written out
        self, original: Callable[..., None], bare: bool = False
    ) -> Callable[..., None]:
        """Wrap a method that takes parameters.

        This runs at every statement: all it needs is a closure local, and calls are
        avoided.
        """
        guard, shared, holds = self._guard, self._shared, self._holds
        concurrent, across_greenlets = self._concurrent, self._across_greenlets
        capture, begin_transaction = self._sites.capture, self._begin_transaction
        send = original  # or what sends it with a comment

        def execute(  # noqa: C901, PLR0912 - every call would cost
            cursor: Any, statement: str, parameters: Any, context: Any = None
        ) -> None:
            usage = None
            if context is not None and not guard.tripped:
                try:
                    proxy = context.root_connection._dbapi_connection
                    key = proxy if shared else proxy._connection_record
                    hold = holds.get(id(key))
                    if hold is not None:
                        usage = hold.usage
                        if usage is None or usage.idle_since is None:
                            usage = begin_transaction(hold, proxy)
                        # do not keep a megabyte alive
                        usage.statement = statement[:MAX_STATEMENT_LENGTH]
                        if getattr(context, "_is_server_side", False):
                            usage.streamed = True
                        if hold.task is None:
                            runner = get_ident()
                            stack = capture(_caller())
                            if hold.holder.ident != runner:
                                usage.by_others = True
                        else:
                            task = _task()
                            runner = get_ident() if task is None else id(task)
                            stack = across_greenlets(_caller())
                            if not hold.task.is_of(task):
                                usage.by_others = True
                        if usage.began is not None and usage.runner != runner:
                            concurrent.note(hold, usage.stack, stack)
                        usage.stack, usage.runner = stack, runner
                        usage.begin()
                        if (
                            len(statement) <= MAX_LOCK_STATEMENT
                            and ADVISORY in statement
                        ):
                            hold.sent_advisory(statement)
                except Exception as error:  # noqa: BLE001 - the application must go on
                    guard.failed(error)
                    usage = None
            if usage is None:
                send(cursor, statement, parameters, context)
                return
            try:
                send(cursor, statement, parameters, context)
            finally:
                usage.ended(usage.transactional)

        def comment(comments: Comments | None) -> None:
            nonlocal send
            send = original if comments is None else comments.sender(original, bare)

        execute.comment = comment  # type: ignore[attr-defined]
        return execute

    def _bare_wrapper(self, original: Callable[..., None]) -> Callable[..., None]:
        """Wrap the method for statements without parameters."""
        run: Any = self._wrapper(
            lambda cursor, sql, _, context: original(cursor, sql, context), bare=True
        )

        def execute(cursor: Any, statement: str, context: Any = None) -> None:
            run(cursor, statement, None, context)

        execute.comment = run.comment  # type: ignore[attr-defined]
        return execute

    def _end_wrapper(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        """Wrap commit or rollback; the pool calls rollback at each return, too."""
        shared, holds = self._shared, self._holds

        def end(connection: Any) -> None:
            key = connection if shared else getattr(connection, _RECORD, None)
            hold = holds.get(id(key))
            usage = None if hold is None else hold.usage
            if usage is None or usage.idle_since is None:
                if hold is not None and usage is not None and usage.began is not None:
                    self._ends_during_a_statement(hold, usage)
                original(connection)
                return
            usage.begin()
            try:
                original(connection)
            finally:
                usage.ended(False)

        return end

    def _two_phase_wrapper(self, original: Callable[..., None]) -> Callable[..., None]:
        """Wrap a method that ends the part of a two-phase transaction on a connection:
        some drivers send no statement and no commit for it.
        """

        def end(connection: Any, *args: Any, **kwargs: Any) -> None:
            try:
                original(connection, *args, **kwargs)
            finally:
                try:
                    hold = self._hold_of(connection)
                    if hold is not None and hold.usage is not None:
                        hold.usage.ended(False)
                except Exception as error:  # noqa: BLE001 - the application must go on
                    self._guard.failed(error)

        return end

    def _ends_during_a_statement(self, hold: Checkout, usage: Usage) -> None:
        """Record a commit or rollback by another thread or task than the one whose
        statement is running.
        """
        try:
            task = None if hold.task is None else _task()
            if usage.runner != (get_ident() if task is None else id(task)):
                stack = self._across_greenlets(frame_at(2))
                self._concurrent.note(hold, usage.stack, stack)
        except Exception as error:  # noqa: BLE001 - the application must go on
            self._guard.failed(error)

    @staticmethod
    def _begin_transaction(hold: Checkout, proxy: Any) -> Usage:
        """The statistics of a hold, before a statement outside a transaction."""
        usage = hold.usage
        if usage is None:
            usage = hold.usage = Usage()
        # may be switched between two transactions
        autocommit = getattr(proxy.dbapi_connection, "autocommit", False) is True
        if usage.transactional is autocommit:
            usage.transactional = not autocommit
        return usage

    def _across_greenlets(self, frame: Any) -> CapturedStack:
        greenlet = current_greenlet()
        if greenlet is None or greenlet.parent is None:
            return self._sites.capture(frame)
        return self._sites.capture_across_greenlets(frame, greenlet)


_RECORD = "_connection_record"


def _caller() -> Any:
    """The frame to begin with: close to the application, never above its own."""
    try:
        return frame_at(_SQLALCHEMY_FRAMES)
    except ValueError:  # called by something other than SQLAlchemy
        return frame_at(1)


def _task() -> Task[Any] | None:
    """The running task of this thread."""
    loop = running_loop()
    return None if loop is None else current_task(loop)
