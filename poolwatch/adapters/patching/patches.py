"""Methods of classes stand under ours, for every object of the class, and the way back.

For what is found by an attribute of the object itself; compare class_methods.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

Method = Callable[..., Any]


class Patches:
    """Those of one adapter."""

    def __init__(self) -> None:
        self._put: dict[tuple[type, str], tuple[Method, Method]] = {}
        """Ours, and the one below it."""

    def put(self, kind: type, name: str, make: Callable[[Method], Method]) -> None:
        """Have what ``make`` returns stand in the place of a method that ``kind``
        defines itself, which it is given; once, however often this is called.
        """
        if (kind, name) not in self._put:
            below = kind.__dict__[name]
            ours = make(below)
            self._put[kind, name] = ours, below
            setattr(kind, name, ours)

    def undo(self) -> None:
        """Take ours off where it is the outermost; below another's it stays."""
        while self._put:
            (kind, name), (ours, below) = self._put.popitem()
            if kind.__dict__.get(name) is ours:
                setattr(kind, name, below)


def where_defined(kind: type, name: str) -> type | None:
    """The class that a method of ``kind`` comes from; None if it is no plain function,
    but an object of somebody else's that stands for one.
    """
    where = next((each for each in kind.__mro__ if name in each.__dict__), None)
    if where is None or not isinstance(where.__dict__[name], FunctionType):
        return None
    return where
