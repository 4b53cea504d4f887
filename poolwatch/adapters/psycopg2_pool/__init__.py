"""psycopg2's own pools."""

from typing import Any

from poolwatch.runtime.libraries import Driver, LibraryInfo, PoolOptions


def _backend(connection: Any) -> tuple[int, int]:
    return connection.get_backend_pid(), connection.fileno()


def _options(kind: str) -> PoolOptions:
    return PoolOptions(
        made_by=kind,
        size="maxconn",
        keep_options="minconn=<the peak>",
        closing_rule="connections beyond minconn are closed when returned, "
        "and opened again",
        test=None,
    )


LIBRARY = LibraryInfo(
    packages=("psycopg2", "psycopg2cffi"),
    module="psycopg2.pool",
    adapter="psycopg2_pool.pools:Psycopg2Pools",
    instrumentable="a psycopg2 pool",
    driver=Driver(
        name="psycopg2",
        own_attribute="get_backend_pid",
        backend=_backend,
        connect_module="psycopg2",
        connect_timeout="connect_timeout",
    ),
    options={
        kind: _options(kind)
        for kind in ("SimpleConnectionPool", "ThreadedConnectionPool")
    },
    pool_classes=(("psycopg2.pool", "AbstractConnectionPool"),),
)
