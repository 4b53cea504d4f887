"""Where connections go, in words that may leave the process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

_SECRET = re.compile("pass|pwd|secret|token|key|credential", re.IGNORECASE)
_PLACE = ("host", "hostaddr", "port")
"""What these say is needed to know the pool, and may well have "key" in it."""


def hidden(key: str, value: object) -> bool:
    """Whether a parameter may be a secret, by its name or by what it says."""
    if key in _PLACE:
        return False
    return bool(_SECRET.search(key) or _SECRET.search(str(value)))


def masked_url(parameters: Mapping[str, Any]) -> str:
    """A URL from libpq's parameters, password and whatever looks like a secret hidden.

    Parameters other than the usual ones are told, after a question mark.
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
    url = f"postgresql://{account}@{place}" if account else f"postgresql://{place}"
    url += "/" + quote(database, safe="")
    return f"{url}?{urlencode(told, safe='/*:,')}" if told else url
