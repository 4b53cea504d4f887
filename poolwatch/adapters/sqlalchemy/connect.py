"""Opens a connection in the same way as an engine, outside its pool.

The pool's creator is called, not the pool: ``creator=``, ``connect_args`` and
``do_connect`` listeners (tokens as passwords) apply, but no pool event fires, no slot
is taken, and no instrumentation of the pool is involved.

SQLAlchemy is not imported here; everything needed is reached from the engine.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.runtime.libraries import driver_named, libraries

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import Pool

    from poolwatch.errors import ServerViewError

    Target = Engine | AsyncEngine | Pool

__all__ = ["connect_arguments", "connection_facts", "server_connect"]

Arguments = tuple[list[Any], dict[str, Any]]


def server_connect(target: Target) -> Callable[[], Any] | None:
    """Return a function that opens one DBAPI connection like those of ``target``.

    None if ``target`` is not on PostgreSQL. The function keeps nothing alive and
    follows ``engine.dispose()``. It raises ServerViewError when it cannot connect in
    this way, and otherwise the errors of the driver. A bare Pool has no dialect and may
    turn out to be on another database: after the first connection, the function raises
    at once.
    """
    owner: Any = getattr(target, "sync_engine", target)
    dialect = _dialect(owner)
    if dialect is not None and dialect.name != "postgresql":
        return None
    reference = weakref.ref(owner)
    not_postgres = False

    def connect() -> Any:
        nonlocal not_postgres
        alive = reference()
        if alive is None:
            raise _cannot_connect("the engine is gone")
        if not_postgres:
            raise _not_postgres()
        connection = _connect(getattr(alive, "pool", alive), _dialect(alive))
        if connection_facts(connection)[0] is None:
            not_postgres = dialect is None
            connection.close()
            raise _not_postgres()
        return connection

    return connect


def _cannot_connect(why: str) -> ServerViewError:
    from poolwatch.errors import ServerViewError  # loaded on first use

    return ServerViewError(why)


def _not_postgres() -> ServerViewError:
    return _cannot_connect(
        "the connections of the pool are not recognised as PostgreSQL connections"
    )


def _dialect(owner: Any) -> Any | None:
    """The engine's dialect; None for a Pool without an engine."""
    found = getattr(owner, "dialect", None) or getattr(owner, "_dialect", None)
    return found if hasattr(found, "dispatch") else None


def _connect(pool: Any, dialect: Any | None) -> Any:
    arguments = connect_arguments(pool)
    if arguments is None and _is_of_pool(pool._creator):
        raise _cannot_connect(
            "the engine takes its connections from another pool: instrument that pool, "
            "or give --dsn"
        )
    if dialect is not None and dialect.is_async:
        return _connect_async(dialect, arguments)
    if arguments is None or dialect is None:
        # a fresh wrapper: an instrumentation may have wrapped pool._invoke_creator
        return pool._should_wrap_creator(pool._creator)(None)
    positional, keywords = arguments
    from poolwatch.adapters.sync_driver import CONNECT_TIMEOUT_S

    driver = driver_named(dialect.driver)
    if driver is not None and driver.connect_timeout is not None:
        keywords.setdefault(driver.connect_timeout, CONNECT_TIMEOUT_S)
    connection = _run_do_connect(dialect, positional, keywords)
    return (
        connection
        if connection is not None
        else dialect.connect(*positional, **keywords)
    )


def _is_of_pool(creator: Any) -> bool:
    """Whether the creator is a method of another library's pool."""
    known = {each for library in libraries() for each in library.pool_classes}
    classes = type(getattr(creator, "__self__", None)).__mro__
    return any((each.__module__, each.__name__) in known for each in classes)


def _connect_async(dialect: Any, arguments: Arguments | None) -> Any:
    if arguments is None or "async_creator_fn" in arguments[1]:
        raise _cannot_connect(
            "the engine connects through an async_creator of its own, which only its "
            "event loop can call: give --dsn"
        )
    positional, keywords = arguments
    if _run_do_connect(dialect, positional, keywords) is not None:
        raise _cannot_connect(
            "the engine's do_connect listener connects by itself, asynchronously: "
            "give --dsn"
        )
    from poolwatch.adapters.sync_driver import connect_function, driver_to_libpq

    return connect_function(driver_to_libpq(dialect.driver, keywords))()


def _run_do_connect(
    dialect: Any, positional: list[Any], keywords: dict[str, Any]
) -> Any:
    """Let ``do_connect`` listeners change the arguments, or connect themselves."""
    if dialect._has_events:
        for listener in dialect.dispatch.do_connect:
            connection = listener(dialect, None, positional, keywords)
            if connection is not None:
                return connection
    return None


def connect_arguments(pool: Any) -> Arguments | None:
    """The driver's arguments, copied from the closure that create_engine() made.

    No other place has ``connect_args``. None if the creator is the application's, or if
    the closure of this SQLAlchemy version has other names. The positional arguments are
    ``cargs`` in early releases of 2.0, ``cargs_tup`` in later ones.
    """
    creator = pool._creator
    code = getattr(creator, "__code__", None)
    if not str(getattr(creator, "__module__", "")).startswith("sqlalchemy."):
        return None
    cells = getattr(creator, "__closure__", None) or ()
    variables = {
        name: cell.cell_contents
        for name, cell in zip(code.co_freevars if code else (), cells, strict=False)
    }
    positional = variables.get("cargs_tup", variables.get("cargs"))
    keywords = variables.get("cparams")
    if not isinstance(positional, list | tuple) or not isinstance(keywords, Mapping):
        return None
    return list(positional), dict(keywords)
