"""The URL of a pool's database, without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

_SECRET = re.compile("pass|pwd|secret|token|key|credential", re.IGNORECASE)
_PLACE = ("host", "hostaddr", "port")
"""Never hidden: they identify the pool, and a host may have "key" in its name."""


def hidden(key: str, value: object) -> bool:
    """Whether a parameter may be a secret, by its name or its value."""
    if key in _PLACE:
        return False
    return bool(_SECRET.search(key) or _SECRET.search(str(value)))


def masked_url(parameters: Mapping[str, Any], scheme: str = "postgresql") -> str:
    """A URL from libpq's parameters; passwords and whatever looks secret are hidden.

    Parameters other than the usual ones follow a question mark.
    """
    rest = {key: str(value) for key, value in parameters.items() if value is not None}
    user, password = rest.pop("user", ""), rest.pop("password", None)
    database = rest.pop("dbname", rest.pop("database", ""))
    host = rest.get("host", "")
    place = ""
    if host and not host.startswith("/") and "," not in host:
        port = rest.pop("port", "")
        place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
        del rest["host"]
    account = quote(user, safe="") + (":***" if password is not None else "")
    told = {key: "***" if hidden(key, value) else value for key, value in rest.items()}
    url = f"{scheme}://{account}@{place}" if account else f"{scheme}://{place}"
    url += "/" + quote(database, safe="")
    return f"{url}?{urlencode(told, safe='/*:,')}" if told else url
