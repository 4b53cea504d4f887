"""The names and URLs of engines and pools."""

from __future__ import annotations

from sqlalchemy.engine import URL, Engine
from sqlalchemy.pool import Pool

from poolwatch.adapters.urls import hidden, uncut


def pool_url(target: Engine | Pool) -> str | None:
    """The URL of an engine; the password and likely secrets are masked."""
    url = getattr(target, "url", None)
    if not isinstance(url, URL):
        return None
    if url.query:
        secrets = {k: "***" for k, value in url.query.items() if hidden(k, value)}
        url = url.update_query_dict(secrets)
    if url.host:
        url = url.set(host=uncut(url.host), database=uncut(url.database or ""))
    return url.render_as_string(hide_password=True)


def pool_name(target: Engine | Pool) -> str:
    """The default name: the logging name, the database, or the class."""
    pool = target.pool if isinstance(target, Engine) else target
    if pool._orig_logging_name:
        return pool._orig_logging_name
    url = getattr(target, "url", None)
    if isinstance(url, URL):
        name = url.database or url.get_backend_name()
        return uncut(name) if url.host else name
    return type(pool).__name__
