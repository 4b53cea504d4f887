"""Connect the way an asynchronous pool does, through a synchronous driver.

The agent has a thread of its own, where no event loop runs, and must not use the
application's. So the arguments of the pool are put in libpq's words, and those in the
words of a synchronous driver that is installed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from poolwatch.errors import ServerViewError
from poolwatch.runtime.libraries import Driver, driver_called, drivers

CONNECT_TIMEOUT_S = 3


def libpq_of_driver(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Put the arguments of a driver in libpq's words; an SSLContext is ``ssl_context``.

    ``name`` is SQLAlchemy's name of the driver.
    """
    driver = driver_called(name)
    return dict(arguments) if driver is None else driver.to_libpq(arguments)


def connector(words: Mapping[str, Any]) -> Callable[[], Any]:
    """Return the call that connects with libpq's words.

    Raises ServerViewError if no synchronous driver is installed.
    """
    driver, module = _driver(takes_ssl_context=words.get("ssl_context") is not None)
    given = (driver.from_libpq or libpq_of_context)(words)
    return lambda: module.connect(**given)


def libpq_of_context(words: Mapping[str, Any]) -> dict[str, Any]:
    """What libpq takes; a TLS context is never weakened, at most made stricter.

    A context's certificates cannot be read back, so a private authority is one that
    libpq will not know: then the connection fails, and says so.
    """
    given = {"connect_timeout": CONNECT_TIMEOUT_S, **words}
    context = given.pop("ssl_context", None)
    if context is not None:
        if context.verify_mode.name == "CERT_NONE":
            given["sslmode"] = "require"
        else:
            given |= {"sslmode": "verify-full", "sslrootcert": "system"}
    return given


def _driver(*, takes_ssl_context: bool) -> tuple[Driver, Any]:
    """A synchronous driver and its module: one that is loaded already, or else one that
    can be. Best one that takes an SSLContext, if that is wanted.
    """
    order = sorted(
        (each for each in drivers() if each.connects is not None),
        key=lambda each: (
            takes_ssl_context and not each.takes_ssl_context,
            each.name not in sys.modules,
        ),
    )
    for driver in order:
        try:
            return driver, importlib.import_module(str(driver.connects))
        except Exception:  # noqa: BLE001, S112 - a broken installation counts as none
            continue
    raise ServerViewError(
        "the engine is asynchronous and no synchronous driver is installed to read the "
        "server with: install psycopg2-binary, or give --dsn"
    )
