"""Connect the way an async engine does, through a sync driver that is installed.

The agent lives in a thread of its own, where no event loop runs, and must not borrow
the application's. So the arguments of asyncpg or async psycopg are put in the words of
libpq, or of pg8000.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from poolwatch.errors import ServerViewError

CONNECT_TIMEOUT_S = 3

_DRIVERS = ("psycopg2", "psycopg", "pg8000")
_LIBPQ_OF_ASYNCPG = (
    "user",
    "passfile",
    "service",
    "target_session_attrs",
    "krbsrvname",
    "gsslib",
)
NOT_LIBPQ = {
    "autocommit",
    "context",
    "cursor_factory",
    "prepare_threshold",
    "row_factory",
    "server_cursor_factory",
    "async_creator_fn",
}
"""Arguments of psycopg, or of SQLAlchemy, that libpq has no word for."""


def connector(async_driver: str, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """Return the call that connects; raises ServerViewError if none is possible.

    ``async_driver`` is SQLAlchemy's name of it, ``arguments`` what it would be given.
    """
    words = arguments
    if async_driver == "asyncpg":
        words = libpq_of_asyncpg(arguments)
    else:
        words = {key: v for key, v in arguments.items() if key not in NOT_LIBPQ}
    context = words.get("ssl_context")
    module = _driver("pg8000" if context is not None else None)
    if module.__name__ == "pg8000.dbapi":
        given = pg8000_of_libpq(words)
    else:
        given = libpq_of_context(words)
    return lambda: module.connect(**given)


def libpq_of_asyncpg(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Put asyncpg's arguments in libpq's words; an SSLContext is ``ssl_context``."""
    words = {key: arguments[key] for key in _LIBPQ_OF_ASYNCPG if arguments.get(key)}
    if arguments.get("database"):
        words["dbname"] = arguments["database"]
    for key in ("host", "port"):
        value = arguments.get(key)
        if value:
            several = value if isinstance(value, list | tuple) else [value]
            words[key] = ",".join(map(str, several))
    password = arguments.get("password")
    if callable(password):
        password = password()
    if password is not None and not isinstance(password, str):
        if hasattr(password, "close"):
            password.close()  # a coroutine that nobody will await
        raise ServerViewError(
            "the engine asks for its password asynchronously, which only its own event "
            "loop can do: give --dsn"
        )
    if password:
        words["password"] = password
    return words | _ssl(arguments)


def libpq_of_context(words: Mapping[str, Any]) -> dict[str, Any]:
    """What libpq takes; a TLS context is never weakened, at most made stricter.

    A context's certificates cannot be read back, so a private authority is one that
    libpq will not know: then the connection fails, and says so.
    """
    given = {"connect_timeout": CONNECT_TIMEOUT_S, **words}
    context = given.pop("ssl_context", None)
    if context is not None:
        if context.verify_mode.name == "CERT_NONE":
            given["sslmode"] = "require"
        else:
            given |= {"sslmode": "verify-full", "sslrootcert": "system"}
    return given


def pg8000_of_libpq(words: Mapping[str, Any]) -> dict[str, Any]:
    """What pg8000 takes: one host, a TLS context instead of a mode."""
    host = str(words.get("host") or "localhost").split(",")[0]
    port = int(str(words.get("port") or "5432").split(",")[0])
    given: dict[str, Any] = {
        "user": words.get("user"),
        "password": words.get("password"),
        "database": words.get("dbname"),
        "timeout": CONNECT_TIMEOUT_S,
    }
    if host.startswith("/"):
        given["unix_sock"] = f"{host}/.s.PGSQL.{port}"
    else:
        given |= {"host": host, "port": port}
    context = words.get("ssl_context") or _context(words.get("sslmode"))
    if context is not None:
        given["ssl_context"] = context
    return given


def _ssl(arguments: Mapping[str, Any]) -> dict[str, Any]:
    value = arguments.get("ssl")
    if value is None:
        return {}
    if value is True:
        return {"sslmode": "verify-full", "sslrootcert": "system"}
    if value is False:
        return {"sslmode": "disable"}
    if isinstance(value, str):
        return {"sslmode": value}
    return {"ssl_context": value}


def _context(mode: str | None) -> Any:
    """For pg8000: False is no TLS, None is TLS if the server has it."""
    if mode in (None, "prefer", "allow"):
        return None
    if mode == "disable":
        return False
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = mode == "verify-full"
    if mode == "require":
        context.verify_mode = ssl.CERT_NONE
    return context


def _driver(preferred: str | None) -> Any:
    """A sync driver: one that is loaded already, or else one that can be."""
    loaded = sorted(_DRIVERS, key=lambda name: name not in sys.modules)
    order = sorted(loaded, key=lambda name: name != preferred) if preferred else loaded
    for name in order:
        try:
            return importlib.import_module("pg8000.dbapi" if name == "pg8000" else name)
        except Exception:  # noqa: BLE001, S112 - a broken installation counts as none
            continue
    raise ServerViewError(
        "the engine is asynchronous and no synchronous driver is installed to read the "
        "server with: install psycopg2-binary, or give --dsn"
    )
