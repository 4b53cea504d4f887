"""The arguments of pg8000's ``connect()``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poolwatch.adapters.sync_driver import CONNECT_TIMEOUT_S


def libpq_to_pg8000(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Translate libpq parameters: one host, a TLS context instead of a mode."""
    host = str(parameters.get("host") or "localhost").split(",")[0]
    port = int(str(parameters.get("port") or "5432").split(",")[0])
    arguments: dict[str, Any] = {
        "user": parameters.get("user"),
        "password": parameters.get("password"),
        "database": parameters.get("dbname"),
        "timeout": CONNECT_TIMEOUT_S,
    }
    if host.startswith("/"):
        arguments["unix_sock"] = f"{host}/.s.PGSQL.{port}"
    else:
        arguments |= {"host": host, "port": port}
    context = parameters.get("ssl_context") or _context(parameters.get("sslmode"))
    if context is not None:
        arguments["ssl_context"] = context
    return arguments


def _context(mode: str | None) -> Any:
    """The TLS context; False for no TLS, None for TLS if the server offers it."""
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
