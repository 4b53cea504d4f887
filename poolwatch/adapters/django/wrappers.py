"""Wrappers of the methods of Django's database wrappers and cursors.

They apply to all aliases, and pass on the calls of aliases that are not instrumented.
An exception between the call of Django's method and ours leaves no connection behind:
Django's wrapper has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from poolwatch.adapters.django.hooks import AliasHooks, PooledAliasHooks
from poolwatch.adapters.patching import Method

HooksOf = Callable[[str], AliasHooks | PooledAliasHooks | None]
"""Returns the hooks of an alias; None if it is not instrumented."""


def connect(original: Method, hooks_of: HooksOf) -> Method:
    """Record the connection that a thread opens."""

    def connect(wrapper: Any) -> None:
        hooks = hooks_of(wrapper.alias)
        if hooks is None:
            original(wrapper)
            return
        try:
            hooks.begin_connect(wrapper)
            original(wrapper)
        except BaseException as error:
            hooks.end_connect(wrapper, error)
            raise
        hooks.end_connect(wrapper, None)

    return connect


def cursor(original: Method, hooks_of: HooksOf) -> Method:
    """Begin a hold with the first cursor; a cursor with a name is the server's."""

    def _cursor(wrapper: Any, *args: Any, **kwargs: Any) -> Any:
        hooks = hooks_of(wrapper.alias)
        if hooks is None:
            return original(wrapper, *args, **kwargs)
        if id(wrapper) not in hooks.holds and wrapper.connection is not None:
            hooks.use_again(wrapper)
        made = original(wrapper, *args, **kwargs)
        if kwargs.get("name") or any(args):
            hooks.begin_stream(wrapper)
        return made

    return _cursor


def close(original: Method, hooks_of: HooksOf) -> Method:
    """End the hold of a connection that was closed."""

    def close(wrapper: Any) -> None:
        try:
            original(wrapper)
        finally:
            hooks = hooks_of(wrapper.alias)
            if hooks is not None:
                hooks.close(wrapper)

    return close


def close_if_obsolete(original: Method, hooks_of: HooksOf) -> Method:
    """End the hold of a connection at the end of a unit of work."""

    def close_if_unusable_or_obsolete(wrapper: Any) -> None:
        try:
            original(wrapper)
        finally:
            hooks = hooks_of(wrapper.alias)
            if hooks is not None:
                hooks.release(wrapper)

    return close_if_unusable_or_obsolete


def end_transaction(original: Method, hooks_of: HooksOf) -> Method:
    """Record a commit or rollback."""

    def end_transaction(wrapper: Any) -> None:
        hooks = hooks_of(wrapper.alias)
        usage = None if hooks is None else hooks.begin_end_of_transaction(wrapper)
        try:
            original(wrapper)
        finally:
            if usage is not None:
                usage.ended(False)

    return end_transaction


def statement(original: Method, hooks_of: HooksOf) -> Method:
    """Record a statement that a cursor sends."""

    # callproc() has another name for its first argument than execute()
    def execute(cursor: Any, *args: Any, **kwargs: Any) -> Any:
        database = cursor.db
        hooks = hooks_of(database.alias)
        usage = None
        if hooks is not None and id(database) in hooks.holds:
            sql = args[0] if args else kwargs.get("sql")
            usage = hooks.begin_statement(database, sql)
        try:
            return original(cursor, *args, **kwargs)
        finally:
            if usage is not None:
                usage.ended(database.in_atomic_block or not database.autocommit)

    return execute
