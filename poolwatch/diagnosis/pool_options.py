"""What the options of a pool are called, by its kind: advice is a line to copy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """How a kind of pool is told what is advised."""

    made_by: str
    size: str
    """What says how many connections it may have."""
    keep: str | None
    """What to raise so that it keeps more of them; None if it keeps all, or none."""
    kept: str
    """What becomes of those that it does not keep."""
    test: str | None
    """What has it test connections before it lends them; None if nothing does."""

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
    """Those of a kind of pool: of SQLAlchemy's, if it is none of the drivers'."""
    return _KINDS.get(kind, _ENGINE)
