"""The server view over a DSN given to the viewer.

This is the only viewer module that loads psycopg2, and SQLAlchemy for URLs that libpq
cannot parse; both are loaded on first use.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from poolwatch.errors import (
    MissingExtraError,
    PoolerError,
    PoolwatchError,
    ServerViewError,
)
from poolwatch.postgres.connection import (
    Facts,
    MonitoringConnection,
    Wanted,
    open_connection,
)
from poolwatch.postgres.errors import as_failure, was_cancelled
from poolwatch.protocol.records import ServerReading

MAX_BACKOFF_S = 15.0

DEFAULTS = {
    "connect_timeout": "3",
    # a dead network is detected within seconds, not after the kernel's two hours
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "2",
    "tcp_user_timeout": "5000",
}
"""libpq parameters of our own connections, unless the DSN has them."""
_KEYWORDS = """
host hostaddr port dbname user password passfile require_auth channel_binding service
connect_timeout client_encoding options application_name fallback_application_name
keepalives keepalives_idle keepalives_interval keepalives_count tcp_user_timeout
gssencmode sslmode sslnegotiation sslcert sslkey sslpassword sslrootcert sslcrl sslsni
sslcrldir requirepeer ssl_min_protocol_version ssl_max_protocol_version krbsrvname
gsslib gssdelegation target_session_attrs load_balance_hosts
"""
_LIBPQ_PARAMETERS = frozenset(_KEYWORDS.split())
_ENVIRONMENT = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE")
_URL = re.compile(r"\s*([a-z]\w*)(\+\w+)?://", re.IGNORECASE)
_SQLALCHEMY_HOSTS = re.compile(r"[?&]host=([^&/]*:\d|.*[?&]host=)")


def environment_dsn(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the DSN from the environment; None if there is none.

    That is DATABASE_URL if it is a PostgreSQL URL, or an empty libpq string if one of
    libpq's own variables is set, which libpq reads itself.
    """
    url = environ.get("DATABASE_URL", "")
    scheme = _URL.match(url)
    if scheme and scheme[1].lower() in ("postgres", "postgresql"):
        return url
    return "" if any(environ.get(name) for name in _ENVIRONMENT) else None


def libpq_parameters(dsn: str) -> dict[str, str]:
    """Parse a DSN to libpq parameters; raises ServerViewError if it is invalid.

    Accepts every libpq string and every PostgreSQL URL of libpq or SQLAlchemy.
    """
    scheme = _URL.match(dsn)
    if scheme and scheme[1].lower() not in ("postgres", "postgresql"):
        raise ServerViewError("the DSN is not a PostgreSQL DSN")
    try:
        if scheme and (scheme[2] or _SQLALCHEMY_HOSTS.search(dsn)):
            parameters = _parameters_of_url(dsn.strip())
        else:
            parameters = _psycopg2().extensions.parse_dsn(dsn)
    except PoolwatchError:
        raise
    except Exception:  # noqa: BLE001 - its message may quote the DSN
        raise as_failure(ValueError("invalid dsn")) from None
    for port in filter(None, parameters.get("port", "").split(",")):
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise as_failure(ValueError("invalid port"))
    return parameters


def connect(dsn: str, **changes: str) -> Any:
    """Open a psycopg2 connection; raises what psycopg2 and libpq_parameters() raise.

    ``changes`` replace parameters of the DSN.
    """
    defaults = dict(DEFAULTS)
    if os.environ.get("PGCONNECT_TIMEOUT"):
        del defaults["connect_timeout"]
    return _psycopg2().connect(**{**defaults, **libpq_parameters(dsn), **changes})


class DsnReader:
    """Reads the server of one DSN, over one persistent connection."""

    def __init__(
        self,
        dsn: str,
        facts: Facts,
        *,
        everyone: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``facts`` reads the backend pid and address of a driver's connection.

        ``everyone``: read all sessions, see :func:`poolwatch.postgres.activity.read`.
        """
        self._everyone = everyone
        self._dsn = dsn
        self._facts = facts
        self._clock = clock
        self._connection: MonitoringConnection | None = None
        self._failure: PoolwatchError | None = None
        self._failures = 0
        self._next_attempt_at = 0.0

    def read(self, pids: Collection[int], idle: Collection[int] = ()) -> ServerReading:
        """Read as AgentReader.read() does; not thread-safe.

        Raises MissingExtraError and ServerViewError. After a failure it raises the same
        error until the next attempt is due.
        """
        if self._failure is not None and self._clock() < self._next_attempt_at:
            raise self._failure.with_traceback(None)
        try:
            reading = self._read(Wanted(pids, idle, self._everyone))
        except PoolwatchError as error:
            self._back_off(error)
            raise
        self._failure, self._failures = None, 0
        return reading

    def close(self) -> None:
        """Close the connection, if any; the next read opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _read(self, wanted: Wanted) -> ServerReading:
        try:
            if self._connection is not None:
                return self._read_or_reconnect(self._connection, wanted)
            self._connection = open_connection(partial(connect, self._dsn), self._facts)
            return self._connection.read(*wanted)
        except PoolerError:
            raise ServerViewError(
                "the DSN goes through a pooler such as PgBouncer: give one that leads "
                "to PostgreSQL itself"
            ) from None
        except PoolwatchError:
            self.close()
            raise
        except Exception as error:  # noqa: BLE001 - turned into one sentence
            self.close()
            raise as_failure(error) from None

    def _read_or_reconnect(
        self, connection: MonitoringConnection, wanted: Wanted
    ) -> ServerReading:
        """Read over the open connection, or a new one if the server has closed it."""
        try:
            return connection.read(*wanted)
        except Exception as error:
            if was_cancelled(error):
                raise
            self.close()
            first = as_failure(error)
            try:
                self._connection = open_connection(
                    partial(connect, self._dsn), self._facts
                )
            except Exception:  # noqa: BLE001 - the first failure says more
                raise first from None
            return self._connection.read(*wanted)

    def _back_off(self, error: PoolwatchError) -> None:
        wait = min(MAX_BACKOFF_S, 2.0**self._failures)
        self._failure, self._failures = error, self._failures + 1
        self._next_attempt_at = self._clock() + wait


def _parameters_of_url(dsn: str) -> dict[str, str]:
    sqlalchemy = _import("sqlalchemy.engine.url")
    url = sqlalchemy.make_url(dsn).set(drivername="postgresql+psycopg2")
    _, parameters = url.get_dialect()().create_connect_args(url)
    if "ssl" in parameters:  # asyncpg's name of the parameter
        parameters["sslmode"] = parameters["ssl"]
    return {
        key: str(value) for key, value in parameters.items() if key in _LIBPQ_PARAMETERS
    }


def _psycopg2() -> Any:
    _import("psycopg2.extensions")
    return _import("psycopg2")


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(
            f"reading PostgreSQL over a DSN needs {module.partition('.')[0]}", "tui"
        ) from None
