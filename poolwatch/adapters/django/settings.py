"""What the settings of a database alias tell: its name, URL and connect parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from django.db import DEFAULT_DB_ALIAS

from poolwatch.adapters.sync_driver import CONNECT_TIMEOUT_S
from poolwatch.adapters.urls import masked_url

_PARAMETERS = {
    "NAME": "dbname",
    "USER": "user",
    "PASSWORD": "password",
    "HOST": "host",
    "PORT": "port",
}
_SCALARS = (str, int, float, bool)


def alias_name(target: Any) -> str:
    """The alias; the database for Django's default alias."""
    database = target.settings_dict.get("NAME")
    if target.alias != DEFAULT_DB_ALIAS or not database:
        return str(target.alias)
    return PurePath(str(database)).name if target.vendor == "sqlite" else str(database)


def alias_url(target: Any) -> str:
    """The URL of the database, with the password hidden."""
    settings = target.settings_dict
    if target.vendor == "sqlite":
        return f"sqlite:///{settings.get('NAME')}"
    parameters = {
        name: str(settings[key])
        for key, name in _PARAMETERS.items()
        if settings.get(key)
    }
    return masked_url(parameters | _scalars(settings.get("OPTIONS")), target.vendor)


def _scalars(options: Any) -> dict[str, Any]:
    given = options if isinstance(options, Mapping) else {}
    return {key: each for key, each in given.items() if type(each) in _SCALARS}


def server_connect(target: Any) -> Callable[[], Any] | None:
    """Return a function that connects as Django does; None if it is not PostgreSQL."""
    if target.vendor != "postgresql":
        return None
    kind, alias, settings = type(target), target.alias, target.settings_dict

    def connect() -> Any:
        # a wrapper of its own: Django's belong to one thread each
        own = kind(settings, alias)
        parameters = own.get_connection_params()
        parameters.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
        for name in ("cursor_factory", "context"):
            parameters.pop(name, None)
        return own.Database.connect(**parameters)

    return connect
