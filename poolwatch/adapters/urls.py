"""Where connections go, in words that may leave the process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

SECRET = re.compile("pass|pwd|secret|token|key|credential", re.IGNORECASE)
"""In the name or the value of a parameter: then it is not told."""


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
    told = {
        key: "***" if SECRET.search(key) or SECRET.search(value) else value
        for key, value in rest.items()
    }
    url = f"postgresql://{account}@{place}" if account else f"postgresql://{place}"
    url += "/" + quote(database, safe="")
    return f"{url}?{urlencode(told, safe='/*:,')}" if told else url
