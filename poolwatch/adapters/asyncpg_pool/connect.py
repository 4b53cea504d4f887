"""The connect parameters of an asyncpg pool, and a monitoring connection with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from poolwatch.adapters.sync_driver import connect_function
from poolwatch.adapters.urls import masked_url
from poolwatch.errors import ServerViewError

_LIBPQ_KEYS = frozenset(
    {
        "host",
        "port",
        "user",
        "password",
        "dbname",
        "passfile",
        "service",
        "target_session_attrs",
        "krbsrvname",
        "gsslib",
        "sslmode",
        "sslcert",
        "sslkey",
        "sslrootcert",
        "sslcrl",
        "sslpassword",
        "sslnegotiation",
    }
)
"""Parameters of a DSN that asyncpg shares with libpq; others are asyncpg's own."""
_SAME_KEYS = (
    "user",
    "passfile",
    "service",
    "target_session_attrs",
    "krbsrvname",
    "gsslib",
)
"""Arguments of asyncpg with the same name in libpq."""


def dsn_to_libpq(dsn: str | None) -> dict[str, str]:
    """Translate asyncpg's DSN, which is always a URL, to libpq parameters."""
    if not dsn:
        return {}
    parts = urlsplit(dsn)
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    pairs = [_host_and_port(each) for each in hosts.split(",")] if hosts else []
    parameters = {
        "user": unquote(user),
        "password": unquote(password),
        "dbname": unquote(parts.path.removeprefix("/")),
        "host": ",".join(host for host, _ in pairs),
        "port": ",".join(port for _, port in pairs) if any(p for _, p in pairs) else "",
    }
    query = {
        "dbname" if key == "database" else key: value
        for key, value in parse_qsl(parts.query)
    }
    parameters |= {key: value for key, value in query.items() if key in _LIBPQ_KEYS}
    return {key: value for key, value in parameters.items() if value}


def _host_and_port(text: str) -> tuple[str, str]:
    if text.startswith("["):  # an IPv6 address
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":")
    host, _, port = text.partition(":")
    return unquote(host), port


def libpq_parameters(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Translate asyncpg's arguments to libpq parameters.

    An SSLContext becomes ``ssl_context``.
    """
    parameters = {key: arguments[key] for key in _SAME_KEYS if arguments.get(key)}
    if arguments.get("database"):
        parameters["dbname"] = arguments["database"]
    for key in ("host", "port"):
        value = arguments.get(key)
        if value:
            joined = value if isinstance(value, list | tuple) else [value]
            parameters[key] = ",".join(map(str, joined))
    password = arguments.get("password")
    if callable(password):
        password = password()
    if password is not None and not isinstance(password, str):
        if hasattr(password, "close"):
            password.close()  # a coroutine that will not be awaited
        raise ServerViewError(
            "the engine asks for its password asynchronously, which only its own event "
            "loop can do: give --dsn"
        )
    if password:
        parameters["password"] = password
    return parameters | _ssl(arguments)


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


def arguments_of(target: Any) -> tuple[str | None, Mapping[str, Any]]:
    """The DSN and the keywords of the pool's next connection."""
    positional = target._connect_args
    dsn = positional[0] if positional else None
    return dsn if isinstance(dsn, str) else None, target._connect_kwargs


def database_of(pool: Any) -> str | None:
    """The database; None if the environment sets it."""
    parameters = _parameters(pool)
    found = parameters.get("dbname") or parameters.get("user")
    return str(found) if found else None


def url_of(target: Any) -> str:
    """A URL without secrets."""
    return masked_url(_parameters(target))


def server_connect(get_pool: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that opens a connection like the pool's, with a sync driver.

    ``get_pool`` returns the pool, or None once it was collected. The function raises
    ServerViewError when it cannot connect in this way, and otherwise the errors of the
    driver.
    """

    def connect() -> Any:
        pool = get_pool()
        if pool is None:
            raise ServerViewError("the pool is gone")
        connector = getattr(pool, "_connect", None)  # asyncpg 0.30 and later
        if not str(getattr(connector, "__module__", "asyncpg")).startswith("asyncpg"):
            raise ServerViewError(
                "the pool connects through a connect= of its own, which only its event "
                "loop can call: give --dsn"
            )
        dsn, keywords = arguments_of(pool)
        parameters = {**dsn_to_libpq(dsn), **libpq_parameters(keywords)}
        return connect_function(parameters)()

    return connect


def _parameters(pool: Any) -> dict[str, Any]:
    """The libpq parameters for the URL, which masks the password."""
    dsn, keywords = arguments_of(pool)
    parameters: dict[str, Any] = dsn_to_libpq(dsn)
    joined = {
        key: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        for key, value in keywords.items()
    }
    names = {"database": "dbname"}
    for key in ("user", "host", "port", "database", "password"):
        if joined.get(key):
            parameters[names.get(key, key)] = joined[key]
    return parameters
