"""Names of a pool's options, by the kind of pool: advice is a line to copy."""

from __future__ import annotations

from collections import ChainMap

from poolwatch.runtime.libraries import PoolOptions, libraries


def options_of(kind: str) -> PoolOptions:
    """The options of a kind of pool; SQLAlchemy's, if no driver has such a pool."""
    known = ChainMap(*(dict(each.options) for each in libraries()))
    return known.get(kind, known["*"])
