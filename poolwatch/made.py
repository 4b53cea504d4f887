"""What makes pools, as it is read: see makings."""

from __future__ import annotations

from typing import Literal, NamedTuple

from poolwatch.frame import Frame

Use = Literal[0, 1, 2]
"""Of a pool: nothing, it has opened a connection, one was taken from it."""


class Made(NamedTuple):
    """What one line has made for one database, at the moment somebody looks."""

    site: Frame
    url: str
    """The password hidden."""
    made: int
    pools: tuple[str, ...]
    """Ids of those that are alive, the newest last."""
    most_alive: int
    """The most that were alive at once."""
    latest_s: tuple[float, ...]
    """How long ago the latest calls were, the newest last."""
    together: int = 0
    """Pools that were made in the same call as one before: a fixed set."""
