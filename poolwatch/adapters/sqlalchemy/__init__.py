"""SQLAlchemy's pools, sync and async."""
