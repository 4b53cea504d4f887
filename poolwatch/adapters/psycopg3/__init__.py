"""psycopg, and the pools of psycopg_pool, sync and async."""

from collections.abc import Mapping
from typing import Any

from poolwatch.runtime.libraries import Driver, LibraryInfo, PoolOptions

_NOT_LIBPQ = frozenset({
    "autocommit", "context", "cursor_factory", "prepare_threshold", "row_factory",
    "server_cursor_factory", "async_creator_fn",
})  # fmt: skip
"""Arguments of psycopg or SQLAlchemy that libpq does not have."""


def libpq_parameters(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that psycopg passes on to libpq."""
    return {key: each for key, each in arguments.items() if key not in _NOT_LIBPQ}


def _backend(connection: Any) -> tuple[int, int]:
    return connection.pgconn.backend_pid, connection.pgconn.socket


def _options(kind: str) -> PoolOptions:
    return PoolOptions(
        made_by=kind,
        size="max_size",
        keep_options=None if "Null" in kind else "min_size=<the peak>",
        closing_rule="connections beyond min_size are closed after max_idle "
        "seconds idle",
        test=f"check={kind}.check_connection",
    )


_KINDS = (
    "ConnectionPool",
    "AsyncConnectionPool",
    "NullConnectionPool",
    "AsyncNullConnectionPool",
)

LIBRARY = LibraryInfo(
    packages=("psycopg", "psycopg_pool"),
    module="psycopg_pool",
    adapter="psycopg3.pools:PsycopgPools",
    instrumentable="a psycopg_pool pool",
    driver=Driver(
        name="psycopg",
        own_attribute="pgconn",
        backend=_backend,
        connect_module="psycopg",
        connect_timeout="connect_timeout",
        to_libpq=libpq_parameters,
    ),
    options={kind: _options(kind) for kind in _KINDS},
    pool_classes=(("psycopg_pool.base", "BasePool"),),
    # a worker of psycopg_pool keeps a reference to its last job and connection
    not_searched=frozenset(
        {"psycopg_pool", "AdaptersMap", "TypesRegistry", "Transformer"}
    ),
)
