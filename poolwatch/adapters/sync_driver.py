"""Connects with the parameters of an asynchronous pool, through a synchronous driver.

The agent's thread has no event loop and must not use the application's. So the
arguments of the pool are translated to libpq parameters, and those to the arguments of
an installed synchronous driver.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from poolwatch.errors import ServerViewError
from poolwatch.runtime.libraries import Driver, driver_named, drivers

CONNECT_TIMEOUT_S = 3


def driver_to_libpq(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the arguments of a driver to libpq parameters.

    ``name`` is SQLAlchemy's name of the driver. An SSLContext becomes ``ssl_context``.
    """
    driver = driver_named(name)
    return dict(arguments) if driver is None else driver.to_libpq(arguments)


def connect_function(parameters: Mapping[str, Any]) -> Callable[[], Any]:
    """Return a function that connects with these libpq parameters.

    Raises ServerViewError if no synchronous driver is installed.
    """
    driver, module = _choose_driver(
        accepts_ssl_context=parameters.get("ssl_context") is not None
    )
    arguments = (driver.from_libpq or libpq_arguments)(parameters)
    return lambda: module.connect(**arguments)


def libpq_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the SSLContext by libpq's SSL mode, as strict or stricter.

    The certificates of a context cannot be read back, so libpq does not know a private
    certificate authority: then the connection fails with a clear error.
    """
    arguments = {"connect_timeout": CONNECT_TIMEOUT_S, **parameters}
    context = arguments.pop("ssl_context", None)
    if context is not None:
        if context.verify_mode.name == "CERT_NONE":
            arguments["sslmode"] = "require"
        else:
            arguments |= {"sslmode": "verify-full", "sslrootcert": "system"}
    return arguments


def _choose_driver(*, accepts_ssl_context: bool) -> tuple[Driver, Any]:
    """Choose a synchronous driver, and import it: a loaded one before an installed one.
    A driver that accepts an SSLContext is preferred if there is one to pass.
    """
    order = sorted(
        (each for each in drivers() if each.connect_module is not None),
        key=lambda each: (
            accepts_ssl_context and not each.accepts_ssl_context,
            each.name not in sys.modules,
        ),
    )
    for driver in order:
        try:
            return driver, importlib.import_module(str(driver.connect_module))
        except Exception:  # noqa: BLE001, S112 - a broken installation counts as none
            continue
    raise ServerViewError(
        "the engine is asynchronous and no synchronous driver is installed to read the "
        "server with: install psycopg2-binary, or give --dsn"
    )
