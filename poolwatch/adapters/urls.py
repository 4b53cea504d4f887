"""The URL of a pool's database, without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

_SECRET = re.compile("pass|pwd|secret|token|key|credential", re.IGNORECASE)
_ADDRESS = ("host", "hostaddr", "port")
"""Never hidden: they identify the pool, and a host name may contain "key"."""


def hidden(key: str, value: object) -> bool:
    """Whether a parameter may be a secret, judged by its name and its value."""
    if key in _ADDRESS:
        return False
    return bool(_SECRET.search(key) or _SECRET.search(str(value)))


def uncut(name: str) -> str:
    """The name of a host or database, without the part of a password that it may have.

    A password with an ``@`` or ``/`` that is not escaped is cut there, and what follows
    is taken for the host or the database.
    """
    return name.rpartition("@")[2]


def masked_url(parameters: Mapping[str, Any], scheme: str = "postgresql") -> str:
    """Build a URL from libpq parameters; passwords and likely secrets are masked.

    Parameters other than the usual ones go into the query string.
    """
    rest = {key: str(value) for key, value in parameters.items() if value is not None}
    user, password = rest.pop("user", ""), rest.pop("password", None)
    given = rest.pop("dbname", rest.pop("database", ""))
    database = uncut(given)
    if database != given:  # then the user has the beginning of the password
        user = user.partition(":")[0]
    host = rest["host"] = uncut(rest.get("host", ""))
    if not host:
        del rest["host"]
    authority = ""
    if host and not host.startswith("/") and "," not in host:
        port = rest.pop("port", "")
        authority = (f"[{host}]" if ":" in host else host) + (
            f":{port}" if port else ""
        )
        del rest["host"]
    credentials = quote(user, safe="") + (":***" if password is not None else "")
    query = {key: "***" if hidden(key, value) else value for key, value in rest.items()}
    url = (
        f"{scheme}://{credentials}@{authority}"
        if credentials
        else f"{scheme}://{authority}"
    )
    url += "/" + quote(database, safe="")
    return f"{url}?{urlencode(query, safe='/*:,')}" if query else url
