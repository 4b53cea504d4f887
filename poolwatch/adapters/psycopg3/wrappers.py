"""What stands around the methods of a psycopg_pool pool, sync and async alike.

The inner wrappers refer weakly to their pool: whoever calls them has it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from inspect import iscoroutinefunction
from time import monotonic
from typing import Any
from weakref import ref

from poolwatch.adapters.cut_short import is_library_s
from poolwatch.adapters.patching.wrapping import unbound
from poolwatch.ledger.pool import PoolLedger

Method = Callable[..., Any]


def explaining(
    pool: Any,
    timeouts: tuple[type[Exception], ...],
    explain: Callable[[BaseException], None],
) -> Method:
    """Around ``getconn``, which raises a timeout error of its own.

    It keeps its pool alive, as the bound method does in whose place it stands, and has
    its signature: frameworks look at that.
    """
    method, original = pool.getconn, unbound(pool, "getconn")

    @wraps(method)
    def getconn(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(pool, *args, **kwargs)
        except timeouts as error:
            explain(error)
            raise

    @wraps(method)
    async def async_getconn(*args: Any, **kwargs: Any) -> Any:
        try:
            return await original(pool, *args, **kwargs)
        except timeouts as error:
            explain(error)
            raise

    return async_getconn if iscoroutinefunction(method) else getconn


def requesting(  # noqa: C901, PLR0915, PLR0917 - twice the same
    pool: Any,
    name: str,
    book: PoolLedger,
    asked: Callable[[], tuple[Any, int]],
    lent: Callable[[Any, Any], None],
    goes_on: Callable[[BaseException, Any, bool], bool],
) -> Method:
    """Around the way from a request to the connection that serves it.

    ``asked`` returns the wait, None if the pool is not watched, and its key among the
    waits of ``book``. ``lent`` takes the wait and the connection. ``goes_on`` takes an
    exception, the wait, and whether the library has raised it; it returns whether the
    application gets a connection all the same.
    """
    original, weakly, waits = unbound(pool, name), ref(pool), book.waits

    def request(*args: Any, **kwargs: Any) -> Any:
        wait: Any = None
        key, connection, called = 0, None, False
        try:
            try:
                wait, key = asked()
                called = True
                connection = original(weakly(), *args, **kwargs)
            except BaseException:  # also if what follows is cut short
                if key in waits:
                    del waits[key]
                book.waited(wait, monotonic())
                raise
            if wait is not None:
                lent(wait, connection)
            return connection  # noqa: TRY300 - also here the hold would be left behind
        except BaseException as error:
            if key in waits:
                del waits[key]
            refused = connection is None and is_library_s(error, called, original)
            if not goes_on(error, wait, refused):
                if connection is not None:
                    with suppress(Exception):
                        weakly().putconn(connection)  # type: ignore[union-attr]
                raise
        return original(weakly(), *args, **kwargs) if connection is None else connection

    async def async_request(*args: Any, **kwargs: Any) -> Any:  # noqa: C901 - as request
        wait: Any = None
        key, connection, called = 0, None, False
        try:
            try:
                wait, key = asked()
                called = True
                connection = await original(weakly(), *args, **kwargs)
            except BaseException:  # also if what follows is cut short
                if key in waits:
                    del waits[key]
                book.waited(wait, monotonic())
                raise
            if wait is not None:
                lent(wait, connection)
            return connection  # noqa: TRY300 - also here the hold would be left behind
        except BaseException as error:
            if key in waits:
                del waits[key]
            refused = connection is None and is_library_s(error, called, original)
            if not goes_on(error, wait, refused):
                if connection is not None:
                    with suppress(Exception):
                        await weakly().putconn(connection)  # type: ignore[union-attr]
                raise
        if connection is None:
            return await original(weakly(), *args, **kwargs)
        return connection

    asynchronous = iscoroutinefunction(getattr(pool, name))
    return _called(name, async_request if asynchronous else request)


def connecting(pool: Any, name: str, connected: Callable[[Any, float], None]) -> Method:
    """Around the making of a connection; ``connected`` is told when that began."""
    original, weakly = unbound(pool, name), ref(pool)

    def connect(*args: Any, **kwargs: Any) -> Any:
        began = monotonic()
        connection = original(weakly(), *args, **kwargs)
        connected(connection, began)
        return connection

    async def async_connect(*args: Any, **kwargs: Any) -> Any:
        began = monotonic()
        connection = await original(weakly(), *args, **kwargs)
        connected(connection, began)
        return connection

    asynchronous = iscoroutinefunction(getattr(pool, name))
    return _called(name, async_connect if asynchronous else connect)


def after(pool: Any, name: str, then: Callable[[Any], None]) -> Method:
    """Around a plain method that takes a connection, and may refuse it."""
    original, weakly = unbound(pool, name), ref(pool)

    def method(connection: Any) -> Any:
        found = original(weakly(), connection)
        then(connection)
        return found

    return _called(name, method)


def before(pool: Any, name: str, first: Callable[[Any], None]) -> Method:
    """Around a method that takes a connection; an async pool's gives an awaitable."""
    original, weakly = unbound(pool, name), ref(pool)

    def method(connection: Any) -> Any:
        first(connection)
        return original(weakly(), connection)

    return _called(name, method)


def _called(name: str, wrapper: Method) -> Method:
    wrapper.__name__ = name
    return wrapper
