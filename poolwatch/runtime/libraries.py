"""The libraries whose pools or connections poolwatch knows: one record each.

The record of a library is in its folder in ``poolwatch/adapters/``, and says all that
other rooms have to know of it. A record does not import its library. So a viewer on a
machine without the library comes to the same conclusions as the application.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

FOLDERS = (
    "sqlalchemy",
    "psycopg2_pool",
    "psycopg3",
    "asyncpg_pool",
    "pg8000",
    "aiosqlite",
)
"""In ``poolwatch/adapters/``. The package of each has a ``LIBRARY``."""

Words = Mapping[str, Any]
"""Arguments for a connection, by name."""
Ends = int | tuple[Any, Any]
"""A connected socket: its file descriptor, or its own name and its peer's."""


class PoolOptions(NamedTuple):
    """What the options of one kind of pool are called: advice is a line to copy."""

    made_by: str
    """The call that makes such a pool."""
    size: str
    """The option that limits the number of connections."""
    keep: str | None
    """What to change so that the pool keeps more connections; None if it keeps all of
    them, or none."""
    kept: str
    """What becomes of the connections that it does not keep."""
    test: str | None
    """The option that tests connections before they are lent; None if there is none."""

    def line(self, options: str) -> str:
        """The line that makes such a pool with these options."""
        return f"{self.made_by}(..., {options})"


class Driver(NamedTuple):
    """How to read and open the connections of one driver."""

    name: str
    """As in SQLAlchemy's URLs."""
    mark: str
    """An attribute that its connections have, and no other driver's. Told by that and
    not by the class: a connection may be wrapped."""
    backend: Callable[[Any], tuple[int | None, Ends]]
    """Reads the backend pid and the socket of a connection; may raise anything."""
    connects: str | None = None
    """The module whose ``connect()`` opens a synchronous connection."""
    connect_timeout: str | None = None
    """The argument of ``connect()`` that limits its time, in seconds."""
    takes_ssl_context: bool = False
    """``connect()`` takes an SSLContext; libpq has only modes."""
    to_libpq: Callable[[Words], dict[str, Any]] = dict
    """Puts the arguments of the driver in libpq's words."""
    from_libpq: Callable[[Words], dict[str, Any]] | None = None
    """Puts libpq's words in the arguments of ``connect()``; None if it takes them."""
    raises_os_errors: bool = False
    """The driver lets errors of a socket pass as they are."""


class LibraryInfo(NamedTuple):
    """All there is to say of one library."""

    packages: tuple[str, ...]
    """Top-level packages that are its code."""
    module: str | None = None
    """The module that is loaded when the application uses pools of the library."""
    adapter: str | None = None
    """The adapter for its pools, ``module:class`` in ``poolwatch.adapters``."""
    takes: str = ""
    """What of it can be given to ``instrument()``, in words."""
    driver: Driver | None = None
    options: Mapping[str, PoolOptions] = MappingProxyType({})
    """By the kind of pool; ``*`` for all kinds that no library names."""
    lenders: tuple[tuple[str, str], ...] = ()
    """Module and name of classes that keep references to the connections that are out:
    such a reference is no use of the connection."""
    followed: tuple[str, ...] = ()
    """Prefixes of the modules whose objects may lead to a held connection; all modules
    if empty."""
    unfollowed: frozenset[str] = frozenset()
    """Classes, and whole packages, whose objects lead nowhere or everywhere."""


@cache
def libraries() -> tuple[LibraryInfo, ...]:
    """All records."""
    return tuple(
        import_module(f"poolwatch.adapters.{folder}").LIBRARY for folder in FOLDERS
    )


def with_pools() -> dict[str, LibraryInfo]:
    """The libraries whose pools can be instrumented, by the module that is loaded when
    the application uses them.
    """
    return {each.module: each for each in libraries() if each.module is not None}


def drivers() -> tuple[Driver, ...]:
    """All drivers that are known."""
    return tuple(each.driver for each in libraries() if each.driver is not None)


def driver_called(name: str) -> Driver | None:
    """The driver with that name in SQLAlchemy's URLs."""
    return next((each for each in drivers() if each.name == name), None)


@cache
def by_package() -> dict[str, LibraryInfo]:
    """The libraries, by each top-level package that is their code."""
    return {name: each for each in libraries() for name in each.packages}
