"""The libraries whose pools or connections poolwatch supports: one record each.

The record of a library is in its folder in ``poolwatch/adapters/``, and has everything
that code elsewhere needs to know about it. A record does not import its library. So a
viewer on a machine without the library reaches the same conclusions as the application.
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
    "django",
    "asyncpg_pool",
    "pg8000",
    "aiosqlite",
)
"""In ``poolwatch/adapters/``. The package of each has a ``LIBRARY``."""

Parameters = Mapping[str, Any]
"""Arguments for a connection, by name."""
SocketEnds = int | tuple[Any, Any]
"""A connected socket: its file descriptor, or its own name and its peer's."""
_MAX_PID = 2**22
"""The largest pid of Linux; other systems stay below it."""


def is_made_up(pid: int) -> bool:
    """Whether no process can have this pid.

    PgBouncer and other poolers give each client a random number for its backend's pid,
    of 31 or 32 bits.
    """
    return not 0 < pid <= _MAX_PID


class PoolOptions(NamedTuple):
    """The names of the options of one kind of pool, for advice that can be copied."""

    made_by: str
    """The function or class that creates such a pool."""
    size: str
    """The option that limits the number of connections."""
    keep_options: str | None
    """Options that make the pool keep more connections open; None if it keeps all,
    or none.
    """
    closing_rule: str
    """When the pool closes connections, as a clause for advice."""
    test: str | None
    """The option that tests connections at checkout; None if there is none."""
    give_back: str = "close()"
    """The call that returns a connection to the pool."""

    def line(self, options: str) -> str:
        """A line of code that creates such a pool with these options."""
        return f"{self.made_by}(..., {options})"


class Driver(NamedTuple):
    """How to read and open the connections of one driver."""

    name: str
    """As in SQLAlchemy's URLs."""
    own_attribute: str
    """An attribute that only this driver's connections have. It identifies the driver,
    instead of the class, since a connection may be wrapped.
    """
    backend: Callable[[Any], tuple[int | None, SocketEnds]]
    """Reads the backend pid and the socket of a connection; may raise anything."""
    connect_module: str | None = None
    """The module whose ``connect()`` opens a synchronous connection."""
    connect_timeout: str | None = None
    """The timeout argument of ``connect()``, in seconds."""
    accepts_ssl_context: bool = False
    """``connect()`` accepts an SSLContext; libpq has only SSL modes."""
    to_libpq: Callable[[Parameters], dict[str, Any]] = dict
    """Translates the arguments of the driver to libpq parameters."""
    from_libpq: Callable[[Parameters], dict[str, Any]] | None = None
    """Translates libpq parameters to arguments of ``connect()``; None if it takes them
    as they are.
    """
    raises_os_errors: bool = False
    """The driver does not wrap the OSError of a failed socket."""


class LibraryInfo(NamedTuple):
    """The record of one library: what an adapter author fills in."""

    packages: tuple[str, ...]
    """Top-level packages of the library."""
    module: str | None = None
    """The module that is loaded when the application uses pools of the library."""
    adapter: str | None = None
    """The adapter for its pools, ``module:class`` in ``poolwatch.adapters``."""
    instrumentable: str = ""
    """What ``instrument()`` accepts of this library, for error messages."""
    driver: Driver | None = None
    options: Mapping[str, PoolOptions] = MappingProxyType({})
    """By the class name of the pool; ``*`` for classes that no library lists."""
    further_makers: tuple[str, ...] = ()
    """Functions that make pools, besides those in ``options``."""
    pool_classes: tuple[tuple[str, str], ...] = ()
    """Module and name of the pool's classes that refer to lent connections. Such a
    reference does not count as a use of the connection.
    """
    searched_modules: tuple[str, ...] = ()
    """Prefixes of modules whose objects may be on a reference path to a connection;
    empty for all modules.
    """
    not_searched: frozenset[str] = frozenset()
    """Classes and packages whose objects are never on a useful reference path."""


@cache
def libraries() -> tuple[LibraryInfo, ...]:
    """All records."""
    return tuple(
        import_module(f"poolwatch.adapters.{folder}").LIBRARY for folder in FOLDERS
    )


def with_pools() -> dict[str, LibraryInfo]:
    """The libraries whose pools can be instrumented, by the module that the application
    loads to use them.
    """
    return {each.module: each for each in libraries() if each.module is not None}


def drivers() -> tuple[Driver, ...]:
    """All known drivers."""
    return tuple(each.driver for each in libraries() if each.driver is not None)


def driver_named(name: str) -> Driver | None:
    """The driver with this name in SQLAlchemy's URLs."""
    return next((each for each in drivers() if each.name == name), None)


@cache
def makers() -> frozenset[str]:
    """The names of the functions and classes that make pools, without modules."""
    return frozenset(
        name.rpartition(".")[2]
        for each in libraries()
        for name in (
            *each.further_makers,
            *(options.made_by for options in each.options.values()),
        )
    )


@cache
def by_package() -> dict[str, LibraryInfo]:
    """The libraries, by each of their top-level packages."""
    return {name: each for each in libraries() for name in each.packages}
