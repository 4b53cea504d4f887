"""What happened, in SQLite or PostgreSQL."""

from poolwatch.errors import MissingExtraError

try:
    import sqlalchemy  # noqa: F401 - every module of this folder needs it
except ImportError:
    raise MissingExtraError("the history needs SQLAlchemy", "sidecar") from None
