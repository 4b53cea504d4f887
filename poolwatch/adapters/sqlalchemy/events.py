"""Adds and removes listeners of one pool's events.

Other threads may be calling the listeners meanwhile. ``event.listen`` and
``event.remove`` modify the deque that such a thread iterates over, and its checkout
fails with "RuntimeError: deque mutated during iteration". Here the deque is replaced by
a changed copy. Also, SQLAlchemy's registry of all listeners is bypassed: it takes three
times as long as the rest, and a test suite may create an engine for each test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any


def listen(dispatch: Any, name: str, listener: Any) -> None:
    """Add a listener for the event ``name`` of the pool with this ``dispatch``.

    Pools made from it by ``recreate()`` inherit the listener, like any other.
    """
    collection = getattr(dispatch, name).for_modify(dispatch)
    collection.listeners = deque([*collection.listeners, listener])


def unlisten(dispatches: Iterable[Any], name: str, listener: Any) -> None:
    """Remove the listener from all pools that may have it."""
    for dispatch in dispatches:
        collection = getattr(dispatch, name)
        if listener in collection.listeners:
            rest = [each for each in collection.listeners if each != listener]
            collection.listeners = deque(rest)
