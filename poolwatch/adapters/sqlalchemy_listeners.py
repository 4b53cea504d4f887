"""Add and remove event listeners while other threads are calling them.

SQLAlchemy appends to, and removes from, the very deque that its dispatch iterates over:
a thread that is in the middle of a checkout then gets "RuntimeError: deque mutated
during iteration". Here every change is made on a copy that takes the deque's place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import event


def listen(target: Any, name: str, listener: Any, dispatches: Iterable[Any]) -> None:
    """``event.listen``; ``dispatches`` are all that may be called meanwhile."""
    with _copy_on_write(name, dispatches):
        event.listen(target, name, listener)


def unlisten(target: Any, name: str, listener: Any, dispatches: Iterable[Any]) -> None:
    """``event.remove``; also from pools that have outlived ``target`` (None then)."""
    with _copy_on_write(name, dispatches) as collections:
        with suppress(Exception):  # an event that is gone needs no removal
            if target is not None:
                event.remove(target, name, listener)
        for collection in collections:
            if listener in collection.listeners:
                collection.listeners.remove(listener)


class _Stage(deque[Any]):
    """In the place of a collection's listeners while they change: never changes."""

    def __init__(self, collection: Any) -> None:
        super().__init__(collection.listeners)
        self._collection = collection

    def append(self, listener: Any) -> None:
        """Put a longer copy in our place."""
        self._collection.listeners = deque([*self, listener])

    def remove(self, listener: Any) -> None:
        """Put a shorter copy in our place."""
        rest = [each for each in self if each is not listener]
        self._collection.listeners = deque(rest)


@contextmanager
def _copy_on_write(name: str, dispatches: Iterable[Any]) -> Iterator[list[Any]]:
    found: list[Any] = [getattr(dispatch, name, None) for dispatch in dispatches]
    collections = [
        each for each in found if isinstance(getattr(each, "listeners", None), deque)
    ]
    for collection in collections:
        collection.listeners = _Stage(collection)
    try:
        yield collections
    finally:
        for collection in collections:
            if isinstance(collection.listeners, _Stage):
                collection.listeners = deque(collection.listeners)
