"""pg8000, a driver without a pool."""

from collections.abc import Mapping
from typing import Any

from poolwatch.runtime.libraries import Driver, LibraryInfo


def _backend(connection: Any) -> tuple[int, tuple[Any, Any]]:
    own = connection._usock
    pid = int.from_bytes(connection._backend_key_data[:4], "big", signed=True)
    return pid, (own.getsockname(), own.getpeername())


def _from_libpq(parameters: Mapping[str, Any]) -> dict[str, Any]:
    from poolwatch.adapters.pg8000.connect import libpq_to_pg8000

    return libpq_to_pg8000(parameters)


LIBRARY = LibraryInfo(
    packages=("pg8000",),
    driver=Driver(
        name="pg8000",
        own_attribute="_backend_key_data",
        backend=_backend,
        connect_module="pg8000.dbapi",
        connect_timeout="timeout",
        accepts_ssl_context=True,
        from_libpq=_from_libpq,
    ),
)
