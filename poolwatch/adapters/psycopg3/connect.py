"""The connect parameters of a psycopg_pool pool, and a monitoring connection with them.

That connection is opened with the pool's arguments but outside the pool: it takes no
slot, and needs no event loop of the application.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from inspect import iscoroutinefunction
from typing import Any
from weakref import ref

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool

from poolwatch.adapters.psycopg3 import libpq_parameters
from poolwatch.adapters.sync_driver import CONNECT_TIMEOUT_S
from poolwatch.adapters.urls import masked_url, uncut
from poolwatch.errors import ServerViewError

_BY_NUMBER = re.compile(r"pool-\d+")
"""The default name of a pool."""


def pool_name(target: Any) -> str:
    """The name given by the user, the database, or the pool's default name."""
    if not _BY_NUMBER.fullmatch(target.name):
        return str(target.name)
    return uncut(str(_known_parameters(target).get("dbname") or target.name))


def pool_url(target: Any) -> str | None:
    """The URL; None if the application computes the parameters in a function."""
    return url_of(_known_parameters(target))


def url_of(parameters: dict[str, Any]) -> str | None:
    """A URL without secrets; None without parameters."""
    return masked_url(parameters) if parameters else None


def server_connect(target: Any) -> Callable[[], Any]:
    """Return a function that opens a synchronous connection like the pool's.

    The function does not keep the pool alive. It raises ServerViewError when it cannot
    connect in this way, and otherwise the errors of psycopg.
    """
    reference = ref(target)

    def connect() -> Any:
        alive: Any = reference()
        if alive is None:
            raise ServerViewError("the pool is gone")
        conninfo = str(_resolved(alive.conninfo) or "")
        given = libpq_parameters(_resolved(alive.kwargs) or {})
        if "connect_timeout" not in conninfo_to_dict(conninfo):
            given.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
        # a connection class of the application may use a token as password
        sync = isinstance(alive, ConnectionPool)
        kind: Any = alive.connection_class if sync else psycopg.Connection
        connection = kind.connect(conninfo, **given)
        connection.row_factory = tuple_row
        return connection

    return connect


def _known_parameters(pool: Any) -> dict[str, Any]:
    """The libpq parameters; empty if a function of the application returns them."""
    if callable(pool.conninfo) or callable(getattr(pool, "kwargs", None)):
        return {}
    with suppress(Exception):
        return conninfo_to_dict(
            pool.conninfo or "", **libpq_parameters(pool.kwargs or {})
        )
    return {}


def _resolved(given: Any) -> Any:
    if not callable(given):
        return given
    if not iscoroutinefunction(given):
        given = given()
        if not hasattr(given, "__await__"):
            return given
        with suppress(AttributeError):
            given.close()  # it will not be awaited
    raise ServerViewError(
        "the pool asks for its connection parameters asynchronously, which only its "
        "own event loop can do: give --dsn"
    )
