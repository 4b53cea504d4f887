"""Listeners of one pool's events.

They are added and removed while other threads are calling them. ``event.listen``
appends to, and ``event.remove`` removes from, the very deque that is iterated over: a
thread in the middle of a checkout then gets "RuntimeError: deque mutated during
iteration". Here a changed copy takes the deque's place. And nothing is entered in
SQLAlchemy's registry of all listeners, which takes three times as long as all the rest:
a suite of tests may make an engine for each test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any


def listen(dispatch: Any, name: str, listener: Any) -> None:
    """Have the event ``name`` of a pool, whose ``dispatch`` that is, call us, too.

    Pools that are made of it by ``recreate()`` take our listeners over, as any others.
    """
    collection = getattr(dispatch, name).for_modify(dispatch)
    collection.listeners = deque([*collection.listeners, listener])


def unlisten(dispatches: Iterable[Any], name: str, listener: Any) -> None:
    """Undo it, in all pools that may have it."""
    for dispatch in dispatches:
        collection = getattr(dispatch, name)
        if listener in collection.listeners:
            rest = [each for each in collection.listeners if each != listener]
            collection.listeners = deque(rest)
