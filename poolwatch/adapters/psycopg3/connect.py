"""What a psycopg_pool pool connects with, and one more such connection for ourselves.

That connection is opened with the arguments of the pool, not by the pool: it takes no
slot, and no event loop of the application is needed.
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

from poolwatch.adapters.psycopg3 import libpq_words
from poolwatch.adapters.sync_driver import CONNECT_TIMEOUT_S
from poolwatch.adapters.urls import masked_url
from poolwatch.errors import ServerViewError

_BY_NUMBER = re.compile(r"pool-\d+")
"""The name that a pool gives itself."""


def pool_name(target: Any) -> str:
    """The name that the user gave the pool, its database, or its own name."""
    if not _BY_NUMBER.fullmatch(target.name):
        return str(target.name)
    return str(_known_parameters(target).get("dbname") or target.name)


def pool_url(target: Any) -> str | None:
    """The URL; None if only calling the application's function could tell."""
    return url_of(_known_parameters(target))


def url_of(parameters: dict[str, Any]) -> str | None:
    """A URL without secrets; None without parameters."""
    return masked_url(parameters) if parameters else None


def server_connect(target: Any) -> Callable[[], Any]:
    """Return the call that opens one synchronous connection like those of the pool.

    The call does not keep the pool alive. It raises ServerViewError when there is no
    way to connect, and otherwise the errors of psycopg.
    """
    reference = ref(target)

    def connect() -> Any:
        alive: Any = reference()
        if alive is None:
            raise ServerViewError("the pool is gone")
        conninfo = str(_resolved(alive.conninfo) or "")
        given = libpq_words(_resolved(alive.kwargs) or {})
        if "connect_timeout" not in conninfo_to_dict(conninfo):
            given.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
        # a class of the user's own may bring a token in place of a password
        sync = isinstance(alive, ConnectionPool)
        kind: Any = alive.connection_class if sync else psycopg.Connection
        connection = kind.connect(conninfo, **given)
        connection.row_factory = tuple_row
        return connection

    return connect


def _known_parameters(pool: Any) -> dict[str, Any]:
    """The parameters for libpq, unless a function of the application gives them."""
    if callable(pool.conninfo) or callable(getattr(pool, "kwargs", None)):
        return {}
    with suppress(Exception):
        return conninfo_to_dict(pool.conninfo or "", **libpq_words(pool.kwargs or {}))
    return {}


def _resolved(given: Any) -> Any:
    if not callable(given):
        return given
    if not iscoroutinefunction(given):
        given = given()
        if not hasattr(given, "__await__"):
            return given
        with suppress(AttributeError):
            given.close()  # nobody will await it
    raise ServerViewError(
        "the pool asks for its connection parameters asynchronously, which only its "
        "own event loop can do: give --dsn"
    )
