"""Names of pool options by kind of pool, so that advice is a line to copy."""

from __future__ import annotations

from collections import ChainMap

from poolwatch.runtime.libraries import PoolOptions, libraries


def options_of(kind: str) -> PoolOptions:
    """The options of a kind of pool; those of SQLAlchemy for an unknown kind."""
    known = ChainMap(*(dict(each.options) for each in libraries()))
    return known.get(kind, known["*"])
