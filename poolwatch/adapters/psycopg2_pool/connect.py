"""What a psycopg2 pool connects with, and one more such connection for ourselves."""

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
    """Return the call that opens a plain connection with the pool's arguments.

    It does not keep the pool alive, and raises ServerViewError when the pool is gone.
    """
    reference = ref(target)

    def connect() -> Any:
        alive = reference()
        if alive is None:
            raise ServerViewError("the pool is gone")
        words = {"connect_timeout": CONNECT_TIMEOUT_S, **parameters_of(alive)}
        return psycopg2.connect(**words)

    return connect


def parameters_of(target: Any) -> dict[str, Any]:
    """The parameters for libpq: the words of its DSN, and its keywords.

    Empty if the DSN cannot be read.
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
    if "database" in keywords:  # psycopg2's own other name for it
        keywords.setdefault("dbname", keywords.pop("database"))
    return {**found, **{k: v for k, v in keywords.items() if v is not None}}
