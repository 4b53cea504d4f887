"""Listeners of pool events.

Those of one pool are added and removed while other threads are calling them.
``event.listen`` appends to, and ``event.remove`` removes from, the very deque that is
iterated over: a thread in the middle of a checkout then gets "RuntimeError: deque
mutated during iteration". Here a changed copy takes the deque's place. And nothing is
entered in SQLAlchemy's registry of all listeners, which takes three times as long as
all the rest: a suite of tests may make an engine for each test.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterable
from types import FrameType
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool
from sqlalchemy.pool.base import _ConnectionRecord

_POOLS = Pool.recreate.__code__.co_filename
KNOWS_ITS_POOL = hasattr(_ConnectionRecord, "_ConnectionRecord__pool")
"""Whether the record of a connection tells its pool. No event does."""


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
            rest = [each for each in collection.listeners if each is not listener]
            collection.listeners = deque(rest)


class Common:
    """Listeners of all pools at once: each pool's own take a while to hang up.

    SQLAlchemy has nothing by which these could be added or removed in a safe way while
    another thread is calling them: it is not done while one is inside a pool.
    """

    def __init__(self) -> None:
        self._listeners: list[tuple[str, Any]] = []

    def __bool__(self) -> bool:
        """Whether they are listening."""
        return bool(self._listeners)

    def begin(self, listeners: Iterable[tuple[str, Any]]) -> None:
        """Have the events call these, if that can be; they must find out by themselves
        whose pool it is.
        """
        if not self._listeners and KNOWS_ITS_POOL and not _others_inside():
            self._listeners = list(listeners)
            for name, listener in self._listeners:
                event.listen(Pool, name, listener)

    def end(self) -> None:
        """Take them off again, if that can be: else they stay, and find no pool."""
        listeners, self._listeners = self._listeners, []
        if not _others_inside():
            for name, listener in listeners:
                if event.contains(Pool, name, listener):  # or somebody has cleared all
                    event.remove(Pool, name, listener)


def _others_inside() -> bool:
    """Whether another thread is executing code of SQLAlchemy's pools."""
    frames = sys._current_frames()
    frames.pop(threading.get_ident(), None)
    return any(map(_is_inside, frames.values()))


def _is_inside(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != _POOLS:
        frame = frame.f_back
    return frame is not None
