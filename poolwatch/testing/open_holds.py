"""Whether a hold is open, where its end may not be recorded (yet)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout

STEP_S = 0.005
"""Seconds between two checks whether other threads have returned their connections."""
_COLLECTION_S = 1.0
"""Longest wait for a garbage collection in another thread."""


def wait_for_collections(holds: Iterable[Checkout]) -> None:
    """Wait until the end of a hold is recorded whose proxy is just being collected.

    Another thread may run the garbage collector: it clears the reference first, and
    calls the pool later. ``holds`` shrinks when an end is recorded.
    """
    until = time.monotonic() + _COLLECTION_S
    while any(hold.proxy() is None for hold in list(holds)):
        if time.monotonic() >= until:
            return  # poolwatch.uninstrument() was called: no end is recorded
        time.sleep(STEP_S)


def is_open(hold: Checkout) -> bool:
    """Whether the connection was not returned, according to its proxy.

    Returns are not recorded after ``poolwatch.uninstrument()`` was called.
    """
    proxy = hold.proxy()
    return proxy is not None and getattr(proxy, "dbapi_connection", proxy) is not None
