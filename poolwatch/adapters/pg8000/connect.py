"""The arguments of pg8000's ``connect()``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poolwatch.adapters.sync_driver import CONNECT_TIMEOUT_S


def arguments_of_libpq(words: Mapping[str, Any]) -> dict[str, Any]:
    """Put libpq's words in pg8000's: one host, a TLS context instead of a mode."""
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


def _context(mode: str | None) -> Any:
    """False for no TLS, None for TLS if the server has it."""
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
