"""The recording document: the requests that one pool served for some seconds."""

from __future__ import annotations

from dataclasses import dataclass

from poolwatch.model import Frame, PoolStats


@dataclass(frozen=True, slots=True)
class Request:
    """One request that was served and has ended, or has not ended yet."""

    asked_s: float
    """Since the recording began."""
    held_s: float
    waited_s: float
    site: int
    """Index into the trace's sites; -1 if unknown."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What happened on one pool during a recording."""

    pool: PoolStats
    """As it was at the end."""
    seconds: float
    requests: tuple[Request, ...]
    """In the order they were asked."""
    sites: tuple[Frame, ...]
    timeouts: int
    connects: int
    """Connections opened meanwhile."""
    depth: int
    """The most connections that one thread or task wanted at once; 1 if never two."""
    nesting: int
    """The most holders at once that went on to want another one."""
