"""What makes pools, as it is read: see makings."""

from __future__ import annotations

from typing import NamedTuple

from poolwatch.frame import Frame


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
    """How long ago the latest were made, the newest last."""
