"""What an asyncpg pool connects with, and one more such connection for ourselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from poolwatch.adapters.sync_driver import connector
from poolwatch.adapters.urls import masked_url
from poolwatch.errors import ServerViewError

_OF_LIBPQ = frozenset(
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
"""What both asyncpg and libpq understand in a DSN; the rest is asyncpg's own."""
_SAME_WORDS = (
    "user",
    "passfile",
    "service",
    "target_session_attrs",
    "krbsrvname",
    "gsslib",
)
"""Keywords of asyncpg that libpq knows by the same name."""


def libpq_of_dsn(dsn: str | None) -> dict[str, str]:
    """Put asyncpg's DSN, which is always a URL, in libpq's words."""
    if not dsn:
        return {}
    parts = urlsplit(dsn)
    account, _, hosts = parts.netloc.rpartition("@")
    user, _, password = account.partition(":")
    pairs = [_host_and_port(each) for each in hosts.split(",")] if hosts else []
    words = {
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
    words |= {key: value for key, value in query.items() if key in _OF_LIBPQ}
    return {key: value for key, value in words.items() if value}


def _host_and_port(text: str) -> tuple[str, str]:
    if text.startswith("["):  # an IPv6 address
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":")
    host, _, port = text.partition(":")
    return unquote(host), port


def libpq_words(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Put asyncpg's arguments in libpq's words; an SSLContext is ``ssl_context``."""
    words = {key: arguments[key] for key in _SAME_WORDS if arguments.get(key)}
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
    """The database; None if it is left to the environment."""
    words = _words(pool)
    found = words.get("dbname") or words.get("user")
    return str(found) if found else None


def url_of(target: Any) -> str:
    """A URL without secrets."""
    return masked_url(_words(target))


def server_connect(reach: Callable[[], Any]) -> Callable[[], Any]:
    """Return the call that opens one connection like the pool's, by a sync driver.

    ``reach`` returns the pool, or None once it is gone. The call raises ServerViewError
    when there is no way to connect, and otherwise the errors of the driver.
    """

    def connect() -> Any:
        pool = reach()
        if pool is None:
            raise ServerViewError("the pool is gone")
        made_by = getattr(pool, "_connect", None)  # asyncpg 0.30 and later
        if not str(getattr(made_by, "__module__", "asyncpg")).startswith("asyncpg"):
            raise ServerViewError(
                "the pool connects through a connect= of its own, which only its event "
                "loop can call: give --dsn"
            )
        dsn, keywords = arguments_of(pool)
        words = {**libpq_of_dsn(dsn), **libpq_words(keywords)}
        return connector(words)()

    return connect


def _words(pool: Any) -> dict[str, Any]:
    """The words that make the URL; the password is masked there."""
    dsn, keywords = arguments_of(pool)
    words: dict[str, Any] = libpq_of_dsn(dsn)
    several = {
        key: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        for key, value in keywords.items()
    }
    names = {"database": "dbname"}
    for key in ("user", "host", "port", "database", "password"):
        if several.get(key):
            words[names.get(key, key)] = several[key]
    return words
