"""asyncpg and its pool."""

from collections.abc import Mapping
from typing import Any

from poolwatch.runtime.libraries import Driver, LibraryInfo, PoolOptions


def _backend(connection: Any) -> tuple[int, tuple[Any, Any]]:
    info = connection._transport.get_extra_info
    return connection.get_server_pid(), (info("sockname"), info("peername"))


def _to_libpq(arguments: Mapping[str, Any]) -> dict[str, Any]:
    from poolwatch.adapters.asyncpg_pool.connect import libpq_parameters

    return libpq_parameters(arguments)


LIBRARY = LibraryInfo(
    packages=("asyncpg",),
    module="asyncpg",
    adapter="asyncpg_pool.pools:AsyncpgPools",
    instrumentable="an asyncpg pool",
    driver=Driver(
        name="asyncpg",
        own_attribute="get_server_pid",
        backend=_backend,
        to_libpq=_to_libpq,
        raises_os_errors=True,
    ),
    options={
        "asyncpg.Pool": PoolOptions(
            made_by="asyncpg.create_pool",
            size="max_size",
            keep_options="min_size=<the peak>",
            closing_rule="connections idle for max_inactive_connection_lifetime "
            "are closed",
            test=None,
        )
    },
    pool_classes=(("asyncpg.pool", "Pool"), ("asyncpg.pool", "PoolConnectionHolder")),
)
