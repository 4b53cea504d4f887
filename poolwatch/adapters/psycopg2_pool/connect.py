"""The connect parameters of a psycopg2 pool, and a monitoring connection with them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import ref

import psycopg2
from psycopg2.extensions import parse_dsn

from poolwatch.adapters.sync_driver import CONNECT_TIMEOUT_S
from poolwatch.errors import ServerViewError


def server_connect(target: Any) -> Callable[[], Any]:
    """Return a function that opens a plain connection with the pool's arguments.

    It does not keep the pool alive. It raises ServerViewError once the pool was
    collected.
    """
    reference = ref(target)

    def connect() -> Any:
        alive = reference()
        if alive is None:
            raise ServerViewError("the pool is gone")
        parameters = {"connect_timeout": CONNECT_TIMEOUT_S, **parameters_of(alive)}
        return psycopg2.connect(**parameters)

    return connect


def parameters_of(target: Any) -> dict[str, Any]:
    """The libpq parameters from the pool's DSN and keywords.

    Empty if the DSN cannot be parsed.
    """
    keywords = dict(getattr(target, "_kwargs", None) or {})
    arguments = getattr(target, "_args", None) or ()
    dsn = arguments[0] if arguments else keywords.pop("dsn", None)
    for other in ("dsn", "connection_factory", "cursor_factory", "async", "async_"):
        keywords.pop(other, None)
    found: dict[str, Any] = {}
    if dsn:
        with suppress(Exception):
            found = parse_dsn(dsn)
    if "database" in keywords:  # psycopg2's alias
        keywords.setdefault("dbname", keywords.pop("database"))
    return {**found, **{k: v for k, v in keywords.items() if v is not None}}
