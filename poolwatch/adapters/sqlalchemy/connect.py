"""Make a connection the way an engine makes its own, outside of its pool.

The pool's creator is called, not the pool: ``creator=``, ``connect_args`` and
``do_connect`` listeners (tokens in place of passwords) apply, while no pool event
fires, no slot is taken, and nothing that instruments the pool is involved.

SQLAlchemy is not imported here; what is needed hangs on the engine.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.runtime.libraries import driver_called

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import Pool

    from poolwatch.errors import ServerViewError

    Target = Engine | AsyncEngine | Pool

__all__ = ["connect_arguments", "connection_facts", "server_connect"]

Recipe = tuple[list[Any], dict[str, Any]]


def server_connect(target: Target) -> Callable[[], Any] | None:
    """Return the call that opens one DBAPI connection like those of ``target``.

    None if ``target`` is not on PostgreSQL. Nothing is kept alive by the call, and it
    follows ``engine.dispose()``. It raises ServerViewError when there is no such way,
    and otherwise what the driver raises. A bare Pool, which knows no dialect, may turn
    out to be on another database: that is said once and remembered.
    """
    owner: Any = getattr(target, "sync_engine", target)
    dialect = _dialect(owner)
    if dialect is not None and dialect.name != "postgresql":
        return None
    reference = weakref.ref(owner)
    foreign = False

    def connect() -> Any:
        nonlocal foreign
        alive = reference()
        if alive is None:
            raise _no_way("the engine is gone")
        if foreign:
            raise _foreign()
        connection = _connect(getattr(alive, "pool", alive), _dialect(alive))
        if connection_facts(connection)[0] is None:
            foreign = dialect is None
            connection.close()
            raise _foreign()
        return connection

    return connect


def _no_way(why: str) -> ServerViewError:
    from poolwatch.errors import ServerViewError  # once somebody wants to connect

    return ServerViewError(why)


def _foreign() -> ServerViewError:
    return _no_way("the pool's connections are not known as PostgreSQL's")


def _dialect(owner: Any) -> Any | None:
    """The engine's dialect; None for a Pool that no engine has adopted."""
    found = getattr(owner, "dialect", None) or getattr(owner, "_dialect", None)
    return found if hasattr(found, "dispatch") else None


def _connect(pool: Any, dialect: Any | None) -> Any:
    recipe = connect_arguments(pool)
    if dialect is not None and dialect.is_async:
        return _connect_async(dialect, recipe)
    if recipe is None or dialect is None:
        # made anew: what the pool holds as its own may be wrapped by a measurement
        return pool._should_wrap_creator(pool._creator)(None)
    positional, keywords = recipe
    from poolwatch.adapters.sync_driver import CONNECT_TIMEOUT_S

    driver = driver_called(dialect.driver)
    if driver is not None and driver.connect_timeout is not None:
        keywords.setdefault(driver.connect_timeout, CONNECT_TIMEOUT_S)
    made = _listeners(dialect, positional, keywords)
    return made if made is not None else dialect.connect(*positional, **keywords)


def _connect_async(dialect: Any, recipe: Recipe | None) -> Any:
    if recipe is None or "async_creator_fn" in recipe[1]:
        raise _no_way(
            "the engine connects through an async_creator of its own, which only its "
            "event loop can call: give --dsn"
        )
    positional, keywords = recipe
    if _listeners(dialect, positional, keywords) is not None:
        raise _no_way(
            "the engine's do_connect listener connects by itself, asynchronously: "
            "give --dsn"
        )
    from poolwatch.adapters.sync_driver import connector, libpq_of_driver

    return connector(libpq_of_driver(dialect.driver, keywords))()


def _listeners(dialect: Any, positional: list[Any], keywords: dict[str, Any]) -> Any:
    """Let ``do_connect`` listeners change the arguments, or connect themselves."""
    if dialect._has_events:
        for listener in dialect.dispatch.do_connect:
            made = listener(dialect, None, positional, keywords)
            if made is not None:
                return made
    return None


def connect_arguments(pool: Any) -> Recipe | None:
    """The driver's arguments, copied out of the closure create_engine() has made.

    There is no other place that has ``connect_args``. None if the creator is somebody
    else's, or no longer looks like this.
    """
    creator = pool._creator
    code = getattr(creator, "__code__", None)
    if not str(getattr(creator, "__module__", "")).startswith("sqlalchemy."):
        return None
    cells = getattr(creator, "__closure__", None) or ()
    held = {
        name: cell.cell_contents
        for name, cell in zip(code.co_freevars if code else (), cells, strict=False)
    }
    positional, keywords = held.get("cargs_tup"), held.get("cparams")
    if not isinstance(positional, list | tuple) or not isinstance(keywords, Mapping):
        return None
    return list(positional), dict(keywords)
