"""aiosqlite, a driver that is used by SQLAlchemy."""

from poolwatch.runtime.libraries import LibraryInfo

LIBRARY = LibraryInfo(packages=("aiosqlite",))
