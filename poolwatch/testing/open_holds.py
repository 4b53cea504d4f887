"""Whether a hold is open, where its end may not be recorded (yet)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout

_STEP_S = 0.005
_COLLECTION_S = 1.0
"""Longest wait for a garbage collection in another thread."""


def steps(grace: float) -> Iterator[float]:
    """Yield the seconds to sleep between two checks, until ``grace`` seconds are over.

    On a busy machine each step takes longer, and so does what the steps wait for: there
    are always as many as fit into the grace.
    """
    until, left = time.monotonic() + grace, grace / _STEP_S
    while left > 0 or time.monotonic() < until:
        yield _STEP_S
        left -= 1


def wait_for_collections(holds: Iterable[Checkout]) -> None:
    """Wait until the end of a hold is recorded whose proxy is just being collected.

    Another thread may run the garbage collector: it clears the reference first, and
    calls the pool later. ``holds`` shrinks when an end is recorded.
    """
    until = time.monotonic() + _COLLECTION_S
    while any(hold.proxy() is None for hold in list(holds)):
        if time.monotonic() >= until:
            return  # poolwatch.uninstrument() was called: no end is recorded
        time.sleep(_STEP_S)


def is_open(hold: Checkout) -> bool:
    """Whether the connection was not returned, according to its proxy.

    Returns are not recorded after ``poolwatch.uninstrument()`` was called.
    """
    proxy = hold.proxy()
    return proxy is not None and getattr(proxy, "dbapi_connection", proxy) is not None
