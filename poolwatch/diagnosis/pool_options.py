"""Names of a pool's options, by the kind of pool: advice is a line to copy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """The option names of one kind of pool."""

    made_by: str
    size: str
    """The option for the number of connections."""
    keep: str | None
    """Options that make it keep more connections; None if it keeps all, or none."""
    kept: str
    """What happens to connections that it does not keep."""
    test: str | None
    """The option to test connections before they are lent; None if there is none."""

    def line(self, options: str) -> str:
        """The line that makes such a pool with these options."""
        return f"{self.made_by}(..., {options})"


_ENGINE = Options(
    made_by="create_engine",
    size="pool_size",
    keep="pool_size=<the peak>, max_overflow=0",
    kept="what overflows is closed at its return and opened again",
    test="pool_pre_ping=True",
)


def _of_psycopg(kind: str, keeps: bool) -> Options:
    return Options(
        made_by=kind,
        size="max_size",
        keep="min_size=<the peak>" if keeps else None,
        kept="what is beyond min_size is closed once it was idle for max_idle",
        test=f"check={kind}.check_connection",
    )


def _of_psycopg2(kind: str) -> Options:
    return Options(
        made_by=kind,
        size="maxconn",
        keep="minconn=<the peak>",
        kept="what is beyond minconn is closed at its return and opened again",
        test=None,
    )


_KINDS = {
    "ConnectionPool": _of_psycopg("ConnectionPool", keeps=True),
    "AsyncConnectionPool": _of_psycopg("AsyncConnectionPool", keeps=True),
    "NullConnectionPool": _of_psycopg("NullConnectionPool", keeps=False),
    "AsyncNullConnectionPool": _of_psycopg("AsyncNullConnectionPool", keeps=False),
    "SimpleConnectionPool": _of_psycopg2("SimpleConnectionPool"),
    "ThreadedConnectionPool": _of_psycopg2("ThreadedConnectionPool"),
    "asyncpg.Pool": Options(
        made_by="asyncpg.create_pool",
        size="max_size",
        keep="min_size=<the peak>",
        kept="what is idle for max_inactive_connection_lifetime is closed",
        test=None,
    ),
}


def options_of(kind: str) -> Options:
    """The options of a kind of pool: SQLAlchemy's, unless it is a driver's."""
    return _KINDS.get(kind, _ENGINE)
